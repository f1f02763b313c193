"""Sources and outputs behind URLs: a server that breaks off, files in memory, and a stand-in for S3."""

import gc
import http.server
import importlib.util
import re
import socket
import sys
import tempfile
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from support.commands import error_lines, write_pictures
from support.sources import make_tar, make_zip

from vqtool import inspection, urls
from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import read_grids
from vqtool.images import find_images, read_images
from vqtool.inputs import expand, locate
from vqtool.tokenizers import _shard
from vqtool.tokenizers.encoding import encode
from vqtool.tokenizers.shards import encode_shard, encode_shards

HTTP = pytest.mark.skipif(not importlib.util.find_spec("aiohttp"), reason="aiohttp is not installed")


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; each answer ends after `most` bytes while `breaks` are left, and says what was asked for."""

    def __init__(self, *, ranges):
        self.files, self.asked, self.ranges = {}, [], ranges
        self.breaks, self.most, self.fails = 0, 0, 0
        self.status, self.times = None, 0  # the answer to all that is asked, HEAD too, and how many more GETs get it
        self.replace = {}
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, data = self.server, self.server.files.get(self.path)
        if status := server.status:
            server.times -= 1  # before the client goes on
            server.status = status if server.times else None
            self.send_error(status)
            return
        server.asked.append((self.path, self.headers.get("Range")))
        if data is None or server.fails:
            server.fails -= data is not None
            self.send_error(404 if data is None else 503)
            return
        start = 0
        if server.ranges and (match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")):
            start = int(match[1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{hash(data)}"')
        self.end_headers()
        end = None
        if server.breaks:
            server.breaks -= 1
            end = start + server.most
        self.wfile.write(data[start:end])
        if end is not None:
            server.files |= server.replace
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_HEAD(self):
        data = self.server.files.get(self.path)
        self.send_response(self.server.status or (404 if data is None else 200))
        self.send_header("Content-Length", str(len(data or b"")))
        self.send_header("ETag", f'"{hash(data)}"')
        self.end_headers()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    """No pauses, no copies of earlier tests, and nothing in memory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("copies")))
    monkeypatch.setattr(urls, "PAUSES", (0.0, 0.0, 0.0))
    urls.fetched.cache_clear()
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    urls.fetched.cache_clear()


@pytest.fixture(params=[True, False], ids=["ranges", "whole files only"])
def server(request):
    server = Server(ranges=request.param)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A current folder with s0.tar to s2.tar of 2 pictures each."""
    monkeypatch.chdir(tmp_path)
    for shard in range(3):
        folder = write_pictures(Path(f"p{shard}"), 2, seed=shard)
        make_tar(Path(f"s{shard}.tar"), {f"{shard}-{each.name}": each.read_bytes() for each in folder.iterdir()})
    return tmp_path


@HTTP
def test_a_file_that_breaks_off_is_fetched_from_where_it_did(server, monkeypatch):
    monkeypatch.setattr(urls, "PAUSES", (0.0,) * 9)  # on a busy machine aiohttp may lose all that came before a break
    data = np.random.default_rng(0).bytes(3_000_000)
    server.files["/x.bin"] = data
    server.breaks, server.most = 5, 500_000
    path = urls.fetched(f"{server.url}/x.bin")
    assert str(path) == f"{server.url}/x.bin"
    assert path.read_bytes() == data
    starts = [int(asked[1][6:-1]) if asked[1] else 0 for asked in server.asked]
    assert starts[0] == 0
    assert sorted(starts) == starts
    assert len(starts) == 6
    assert starts[-1] > 0


@HTTP
def test_a_server_that_fails_at_first_is_asked_again(server):
    server.files["/x.bin"] = b"all of it"
    server.fails = 2
    assert urls.fetched(f"{server.url}/x.bin").read_bytes() == b"all of it"
    assert len(server.asked) == 3


@HTTP
def test_only_404_means_that_there_is_no_file(server):
    server.files["/x.bin"], server.status, server.times = b"all of it", 503, 2
    assert urls.fetched(f"{server.url}/x.bin").read_bytes() == b"all of it"
    for status, said in ((403, "403, message='Forbidden'"), (404, r"no such file there \(404\)")):
        server.status, server.times = status, 10**6
        with pytest.raises(VqtoolError, match=said):
            urls.fetched(f"{server.url}/{status}.bin").open()
    nobody = "http://127.0.0.1:9/x.bin"
    with pytest.raises(VqtoolError, match="cannot be read: ClientConnectorError"):
        urls.fetched(nobody).open()


@HTTP
def test_a_server_that_fails_does_not_say_that_there_is_no_file(server, vqtool, work, tokenizer_path):
    server.files["/x.h5"] = b"whole"
    for status in (500, 503):
        server.status, server.times = status, 2
        assert urls.exists(f"{server.url}/x.h5")
        assert server.status is None
        server.status, server.times = status, 2
        assert "ETag" in urls.stamp(f"{server.url}/x.h5")
    assert not urls.exists(f"{server.url}/y.h5")
    line = ("encode", "s*.tar", "--size", "16", "-t", tokenizer_path, "-o", f"{server.url}/tok-{{shard}}.h5")
    for status, said in ((500, "500, message='Internal Server Error'"), (403, "403, message='Forbidden'")):
        server.status, server.times = status, 10**6
        for more in ((), ("--resume",)):
            (error,) = error_lines(vqtool(*line, *more).err)
            assert error.startswith(f"error: {server.url}/tok-0.h5: cannot be read: ClientResponseError: {said}")
        assert server.times == 10**6 - 2 * (len(urls.PAUSES) + 1 if status == 500 else 1)
    (error,) = error_lines(vqtool("encode", f"{server.url}/*.tar", *line[2:]).err)
    assert error.startswith(f"error: {server.url}/*.tar: cannot be read: ClientResponseError: 403")


@HTTP
def test_a_file_that_is_replaced_while_it_is_fetched_is_not_mixed(server):
    server.files["/x.bin"], server.replace = b"a" * 1_000_000, {"/x.bin": b"b" * 900_000}
    server.breaks, server.most = 1, 400_000
    assert urls.fetched(f"{server.url}/x.bin").read_bytes() == b"b" * 900_000


@HTTP
def test_a_file_that_breaks_off_for_good_or_is_not_there_is_one_clear_line(server, vqtool, work, tokenizer_path):
    server.files["/x.tar"] = Path("s0.tar").read_bytes()
    server.breaks, server.most = 10**6, 0
    for name, message in (("x", "cannot be read: ClientPayloadError"), ("y", "no such file there (404)")):
        result = vqtool("encode", f"{server.url}/{name}.tar", "--size", "16", "-t", tokenizer_path, "-o", "tok.h5")
        assert result.code == 1
        (line,) = error_lines(result.err)
        assert line.startswith(f"error: {server.url}/{name}.tar: {message}")
    assert not Path("tok.h5").exists()


@HTTP
def test_shards_of_a_server_that_breaks_off_are_those_on_disk(server, vqtool, work, tokenizer_path):
    server.files = {f"/d/s{n}.tar": Path(f"s{n}.tar").read_bytes() for n in range(3)}
    server.breaks, server.most = 3, 6_000
    line = ("encode", f"{server.url}/d/s{{0..2}}.tar", "--size", "16", "-t", tokenizer_path, "-o", "tok-{shard}.h5")
    result = vqtool(*line)
    assert result.code == 0, result.err
    encode([f"s{n}.tar" for n in range(3)], "whole.h5", tokenizer_path, image_size=(16, 16))
    whole = read_grids("whole.h5")[1]
    parts = [read_grids(f"tok-{n}.h5")[1] for n in range(3)]
    assert np.array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)
    assert [id for part in parts for id in part.ids] == whole.ids
    num = len(server.asked)
    urls.fetched.cache_clear()
    again = vqtool(*line, "--resume")
    assert "3 files complete before" in again.err
    assert len(server.asked) == num + 1  # the first shard, which decides on the fit; of others the ETag says enough
    urls.fetched.cache_clear()
    gc.collect()
    assert not list(Path(tempfile.gettempdir()).glob("vqtool-*"))


def test_every_kind_of_source_is_read_behind_a_url(quick, work):
    pytest.importorskip("h5py")
    pictures = {each.name: each.read_bytes() for each in sorted(Path("p0").iterdir())}
    make_zip(Path("x.zip"), pictures)
    make_tar(Path("x.tar.gz"), pictures, "w:gz")
    expected = read_images("p0").images
    np.save("x.npy", expected)
    import h5py

    with h5py.File("x.h5", "w") as file:
        file["images"] = expected
    for name in ("x.zip", "x.tar.gz", "x.npy", "x.h5", "s0.tar"):
        quick.pipe(f"/b/{name}", Path(name).read_bytes())
        found = read_images([f"memory://b/{name}"])
        assert np.array_equal(found.images, expected), name
        assert found.items[0].location.startswith(f"memory://b/{name}"), name


def test_urls_have_globs_and_ranges_and_survive_being_a_path(quick):
    for name in ("a-1.tar", "a-2.tar", "b.tar"):
        quick.pipe(f"/bucket/{name}", b"")
    assert expand(["memory://bucket/a-*.tar"]) == ["memory://bucket/a-1.tar", "memory://bucket/a-2.tar"]
    assert expand([Path("memory://bucket/{08..10}")]) == [f"memory://bucket/{n}" for n in ("08", "09", "10")]
    assert expand(["memory://bucket/c-*"]) == ["memory://bucket/c-*"]
    assert urls.url_of(Path("s3://bucket/x")) == "s3://bucket/x"
    assert urls.url_of(Path("file:///a/b")) == urls.url_of("file:///a/b") == "file:///a/b"
    assert urls.url_of("hdfs:///a/b") == "hdfs:///a/b"
    assert [urls.url_of(name) for name in ("x.tar", "/a/b", "C:/x", "a:b", "-")] == [None] * 5
    assert locate(locate("memory://bucket/b.tar")) is locate("memory://bucket/b.tar")


def test_the_next_shard_is_fetched_while_one_is_encoded(quick, work, tokenizer_path, monkeypatch):
    for shard in range(3):
        quick.pipe(f"/b/s{shard}.tar", Path(f"s{shard}.tar").read_bytes())
    events, encode_items, copy = [], _shard.encode_items, urls._copy
    second = threading.Event()

    def fetch(url, target):
        copy(url, target)
        events.append(url[-5])
        if url.endswith("s1.tar"):
            second.set()

    def encoding(*arguments, **how):
        assert second.wait(20)  # nobody has asked for its images yet
        return encode_items(*arguments, **how)

    monkeypatch.setattr(urls, "_copy", fetch)
    monkeypatch.setattr(_shard, "encode_items", encoding)
    done = encode_shards(["memory://b/s{0..2}.tar"], "tok-{shard}.h5", tokenizer_path, image_size=(16, 16))
    assert done.num_grids == 6
    assert events == ["0", "1", "2"]


def test_outputs_may_be_urls_and_are_gone_on_with(quick, vqtool, work, tokenizer_path):
    line = ("encode", "s*.tar", "--size", "16", "-t", tokenizer_path, "-o", "memory://out/tok-{shard}.h5")
    assert vqtool(*line, "--partial", "1/2").code == 0
    assert quick.ls("/out", detail=False) == ["/out/tok-0.h5"]
    refused = vqtool(*line)
    assert error_lines(refused.err) == [
        "error: memory://out/tok-0.h5: exists; --resume goes on with what is left to do, --force overwrites it"
    ]
    kept = quick.cat("/out/tok-0.h5")
    assert "wrote 2 files; 1 file complete before: 6 grids in all" in vqtool(*line, "--resume").err
    assert quick.cat("/out/tok-0.h5") == kept
    assert [len(read_grids(f"memory://out/tok-{n}.h5")[1]) for n in range(3)] == [2, 2, 2]
    quick.pipe("/out/tok-1.h5", quick.cat("/out/tok-1.h5")[:1000])
    urls.fetched.cache_clear()
    again = vqtool(*line, "--resume")
    assert "warning: memory://out/tok-1.h5: truncated" in again.err
    assert inspection.verify("memory://out/tok-1.h5")["num_grids"] == 2
    make_tar(Path("s2.tar"), {"x.png": Path("p0/00.png").read_bytes()})
    with pytest.raises(MismatchError, match=r"memory://out/tok-2\.h5: a run with"):
        encode_shard("s2.tar", tokenizer_path, "memory://out/tok-2.h5", image_size=(16, 16), resume=True)


def test_one_output_may_be_a_url_and_grids_are_read_from_there(quick, vqtool, work, tokenizer_path):
    line = ("encode", "s0.tar", "--size", "16", "-t", tokenizer_path, "-o", "memory://out/tok.h5")
    assert "wrote 2 grids to memory://out/tok.h5" in vqtool(*line).err
    assert vqtool(*line).err.splitlines()[-1] == (
        "error: memory://out/tok.h5: exists; use --force to overwrite it or write elsewhere"
    )
    assert vqtool(*line, "--force").code == 0
    assert vqtool("check", "memory://out/tok.h5").out == "ok memory://out/tok.h5\n"
    assert vqtool("cat", "memory://out/tok.h5", "memory://out/tok.h5", "-o", "both.h5").code == 0
    assert len(read_grids("both.h5")[1]) == 4
    assert "nothing is kept" in error_lines(vqtool(*line, "--resume").err)[0]


def test_a_url_may_lead_to_this_machine(vqtool, work, tokenizer_path):
    line = ("encode", f"file://{work}/s{{0..2}}.tar", "--size", "16", "-t", tokenizer_path)
    line += ("-o", f"file://{work}/tok-{{shard}}.h5", "--resume")
    assert "wrote 3 files: 6 grids in all" in vqtool(*line).err
    assert [len(read_grids(work / f"tok-{n}.h5")[1]) for n in range(3)] == [2, 2, 2]
    assert "3 files complete before" in vqtool(*line).err
    assert expand([f"file://{work}/tok-*.h5"]) == [f"file://{work}/tok-{n}.h5" for n in range(3)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing://bucket/x.tar", "nothing://bucket/x.tar: the scheme nothing:// is not known"),
        ("memory://bucket/x.tar", "memory://bucket/x.tar: no such file there"),
        ("memory://bucket/x.png", "memory://bucket/x.png: no such file there"),
        ("memory://there/x.png", "memory://there/x.png: single files are not taken from URLs"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(quick, vqtool, work, tokenizer_path, source, message):
    quick.pipe("/there/x.png", Path("p0/00.png").read_bytes())
    result = vqtool("encode", source, "--size", "16", "-t", tokenizer_path, "-o", "tok.h5")
    assert result.code == 1
    (line,) = error_lines(result.err)
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("scheme", "module", "message"),
    [
        ("https", "aiohttp", r"https:// needs more than is installed: pip install .*url\]"),
        ("s3", "s3fs", r"s3:// needs more than is installed: pip install .*url\]"),
        ("gs", "gcsfs", "gs:// needs more than is installed: install what it asks for: .*gcsfs"),
    ],
)
def test_what_is_not_installed_is_named(monkeypatch, scheme, module, message):
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("fsspec.implementations.http", "s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(registry, "_registry", {})
    monkeypatch.setattr(registry, "registry", {})
    with pytest.raises(VqtoolError, match=message):
        urls.fetched(f"{scheme}://host/x.tar").open()


def test_images_of_many_urls_cannot_be_counted_off_and_other_commands_write_to_no_url(vqtool, work, tokenizer_path):
    shared = ("--size", "16", "-t", tokenizer_path)
    result = vqtool("encode", "memory://b/x.tar", *shared, "-o", "tok-{shard}.h5", "--per-file", "3")
    assert error_lines(result.err)[0].startswith("error: memory://b/x.tar: --per-file needs all images at hand")
    vqtool("encode", "s0.tar", *shared, "-o", "tok.h5")
    result = vqtool("head", "tok.h5", "-o", "s3://bucket/few.h5")
    assert error_lines(result.err) == [
        "error: s3://bucket/few.h5: this goes to a file on this machine; `encode` and shards of `sample` go to URLs"
    ]


def test_a_copy_that_does_not_fit_the_disk_is_one_clear_line(quick, monkeypatch):
    quick.pipe("/b/x.tar", b"x" * 100)

    def full(stream, file, url):
        raise OSError(28, "No space left on device")

    class Full:
        name = "/tmp/x"

        def write(self, data):
            raise OSError(28, "No space left on device")

    with fsspec.open("memory://b/x.tar").open() as stream, pytest.raises(VqtoolError, match="No space left on device"):
        urls._write_all(stream, Full(), "memory://b/x.tar")


def test_shards_in_a_bucket_are_encoded_into_a_bucket(work, tokenizer_path, monkeypatch):
    pytest.importorskip("s3fs", reason="s3fs is not installed: bash scripts/setup.sh dev")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: bash scripts/setup.sh dev")
    import s3fs

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
        bucket = s3fs.S3FileSystem(skip_instance_cache=True)
        bucket.mkdir("pictures")
        bucket.mkdir("tokens")
        for shard in range(3):
            bucket.put_file(f"s{shard}.tar", f"pictures/s{shard}.tar")
        how = {"image_size": (16, 16), "resume": True}
        done = encode_shards(["s3://pictures/s*.tar"], "s3://tokens/tok-{shard:05d}.h5", tokenizer_path, **how)
        assert (done.num_shards, done.num_grids) == (3, 6)
        again = encode_shards(["s3://pictures/s*.tar"], "s3://tokens/tok-{shard:05d}.h5", tokenizer_path, **how)
        assert again.num_before == 3
        assert read_grids("s3://tokens/tok-00002.h5")[1].ids == [item.id for item in find_images(["s2.tar"])]
        with pytest.raises(VqtoolError, match=r"s3://pictures/s9\.tar: no such file there"):
            find_images(["s3://pictures/s9.tar"])
    finally:
        server.stop()
