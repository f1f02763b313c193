"""Tasks of a Ray cluster: one of two workers is killed half-way, and every shard is whole, none of them twice."""

import os
import re
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from support.commands import error_lines, write_pictures
from support.exact import random_prior
from support.sets import write_noise
from support.sources import make_tar

import vqtool as vqtool_package
from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import read_grids
from vqtool.metrics.saving import save_statistics
from vqtool.samplers.shards import sample_shards
from vqtool.shards import ENGINES
from vqtool.tokenizers.encoding import encode
from vqtool.tokenizers.shards import encode_shards


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A current folder with s0.tar to s3.tar."""
    monkeypatch.chdir(tmp_path)
    for shard in range(4):
        folder = write_pictures(Path(f"p{shard}"), 2, seed=shard)
        many = {f"{shard}-{n:03d}.png": (folder / f"0{n % 2}.png").read_bytes() for n in range(200)}
        make_tar(Path(f"s{shard}.tar"), many)
    return tmp_path


@contextmanager
def a_worker_killed():
    """Kill the process that writes the first file that is not whole yet; gives the names of what it was writing."""
    killed, ended = [], threading.Event()

    def kill():
        while not killed and not ended.wait(0.005):
            for lock in Path().glob(".tok-*.h5.lock"):
                partial = Path(f"{lock.name[1:].removesuffix('.h5.lock')}.partial.h5")
                with suppress(FileNotFoundError):  # the file has become whole
                    found = re.match(r"process (\d+) on", lock.read_text())
                    if found and partial.stat().st_size and not killed:
                        os.kill(int(found[1]), signal.SIGKILL)
                        killed.append(partial.name)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two workers on this machine."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: bash scripts/setup.sh dev")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
        yield
        ray.shutdown()


pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own


@pytest.mark.slow
def test_shards_are_whole_and_none_is_made_twice_though_a_worker_is_killed(cluster, work, tokenizer_path):
    encode([f"s{n}.tar" for n in range(4)], "whole.h5", tokenizer_path, image_size=(16, 16))
    whole = read_grids("whole.h5")[1]
    how = {"image_size": (16, 16), "batch_size": 1, "engine": "ray"}
    with a_worker_killed() as killed:
        done = encode_shards(["s*.tar"], "tok-{shard}.h5", tokenizer_path, **how)
    assert len(killed) == 1
    assert (done.num_shards, done.num_failed, done.num_grids) == (4, 0, 800)
    assert sorted(path.name for path in work.glob("*tok-*")) == [f"tok-{n}.h5" for n in range(4)]
    parts = [read_grids(f"tok-{n}.h5")[1] for n in range(4)]
    assert [id for part in parts for id in part.ids] == whole.ids
    assert [grid for part in parts for grid in part.tokens.tolist()] == whole.tokens.tolist()
    Path("s2.tar").write_bytes(b"no tar")
    told = []
    again = encode_shards(
        ["s*.tar"],
        "tok-{shard}.h5",
        tokenizer_path,
        resume=True,
        on_error=lambda item, error: told.append(str(error)),
        **how,
    )
    assert (again.num_before, again.num_failed) == (3, 1)
    assert told[0].startswith("s2.tar: ")


@pytest.mark.slow
def test_samples_are_those_of_one_file_though_a_worker_is_killed(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prior, how = random_prior(), {"steps": 6, "seed": 2, "batch_size": 1}
    vqtool_package.sample_to_file(prior, "whole.h5", 120, **how)
    whole = read_grids("whole.h5")[1]
    with a_worker_killed() as killed:
        done = sample_shards(prior, "tok-{shard}.h5", 120, 3, engine="ray", **how)
    assert len(killed) == 1
    assert (done.num_shards, done.num_grids) == (3, 120)
    assert sorted(path.name for path in tmp_path.glob("*tok-*")) == [f"tok-{n}.h5" for n in range(3)]
    parts = [read_grids(f"tok-{n}.h5")[1] for n in range(3)]
    assert [id for part in parts for id in part.ids] == whole.ids
    assert [grid for part in parts for grid in part.tokens.tolist()] == whole.tokens.tolist()
    assert sample_shards(prior, "tok-{shard}.h5", 120, 3, engine="ray", resume=True, **how).num_before == 3
    with pytest.raises(MismatchError, match="a run with `steps` 6, but now it is 5"):
        sample_shards(prior, "tok-{shard}.h5", 120, 3, engine="ray", resume=True, **how | {"steps": 5})


@pytest.mark.slow
def test_statistics_of_features_are_those_of_one_process(cluster, work):
    for shard in range(3):
        write_noise(work / "c", 5, seed=shard, label=f"{shard}")
        make_tar(Path(f"c{shard}.tar"), {each.name: each.read_bytes() for each in (work / "c" / f"{shard}").iterdir()})
    found = [save_statistics(["c*.tar"], f"{e}.npz", engine=e, cache=False).statistics["pooled"] for e in ENGINES]
    assert [each.num_samples for each in found] == [15, 15]
    np.testing.assert_allclose(found[1].mean, found[0].mean, rtol=1e-5, atol=1e-6)  # features have 32 bits
    np.testing.assert_allclose(found[1].covariance, found[0].covariance, rtol=1e-4, atol=1e-6)


def test_what_is_not_installed_or_not_meant_is_one_clear_line(vqtool, work, tokenizer_path, monkeypatch):
    line = ("encode", "s*.tar", "--size", "16", "-t", tokenizer_path, "-o", "tok-{shard}.h5", "--engine")
    monkeypatch.setitem(sys.modules, "ray", None)
    (said,) = error_lines(vqtool(*line, "ray").err)
    assert re.fullmatch(r"error: --engine ray needs Ray: pip install .*\[ray\].*", said)
    (said,) = error_lines(vqtool(*line, "rays").err)
    assert said == "error: unknown engine 'rays': known are local, ray"
    (said,) = error_lines(vqtool(*line, "ray", "--per-file", "3").err)
    assert said == "error: --per-file is for --engine local; of ray, each source is a shard"
    (said,) = error_lines(vqtool("encode", "-", *line[2:], "ray").err)
    assert said == "error: standard input: can be read here alone, not by --engine ray: name files or URLs"
    os.mkfifo("pipe.tar")
    with pytest.raises(VqtoolError, match=r"pipe\.tar: can be read here alone, not by `engine` ray"):
        encode_shards(["s0.tar", "pipe.tar"], "tok-{shard}.h5", tokenizer_path, engine="ray")
    with pytest.raises(VqtoolError, match="one name for each shard is expected"):
        encode_shards(["s0.tar"], "tok.h5", tokenizer_path, engine="ray")
    assert not list(work.glob("tok*"))
