"""Tasks of a Ray cluster: one of two workers is killed half-way, and every shard is whole, none of them twice."""

import importlib.util
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from support.commands import error_lines, write_pictures
from support.sources import make_tar

from vqtool.errors import VqtoolError
from vqtool.grids import read_grids
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


def kill_a_worker(killed):
    """Kill the process that writes the first file that is not whole yet, and say which it was."""
    for _ in range(6000):
        for lock in Path().glob(".tok-*.h5.lock"):
            found = re.match(r"process (\d+) on", lock.read_text())
            partial = Path(f"{lock.name[1:].removesuffix('.h5.lock')}.partial.h5")
            if found and partial.exists() and partial.stat().st_size:
                os.kill(int(found[1]), signal.SIGKILL)
                killed.append(partial.name)
                return
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: bash scripts/setup.sh dev")
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_shards_are_whole_and_none_is_made_twice_though_a_worker_is_killed(work, tokenizer_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray

    encode([f"s{n}.tar" for n in range(4)], "whole.h5", tokenizer_path, image_size=(16, 16))
    whole = read_grids("whole.h5")[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    try:
        killed = []
        thread = threading.Thread(target=kill_a_worker, args=(killed,))
        thread.start()
        how = {"image_size": (16, 16), "batch_size": 1, "engine": "ray"}
        done = encode_shards(["s*.tar"], "tok-{shard}.h5", tokenizer_path, **how)
        thread.join()
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
    finally:
        ray.shutdown()


def test_what_is_not_installed_or_not_meant_is_one_clear_line(vqtool, work, tokenizer_path, monkeypatch):
    line = ("encode", "s*.tar", "--size", "16", "-t", tokenizer_path, "-o", "tok-{shard}.h5", "--engine")
    monkeypatch.setitem(sys.modules, "ray", None)
    (said,) = error_lines(vqtool(*line, "ray").err)
    assert re.fullmatch(r"error: --engine ray needs Ray: pip install .*\[ray\].*", said)
    (said,) = error_lines(vqtool(*line, "rays").err)
    assert said == "error: unknown engine 'rays': known are local, ray"
    (said,) = error_lines(vqtool(*line, "ray", "--per-file", "3").err)
    assert said == "error: --per-file is for --engine local; of ray, each source is a shard"
    with pytest.raises(VqtoolError, match="one name for each shard is expected"):
        encode_shards(["s0.tar"], "tok.h5", tokenizer_path, engine="ray")
    assert not list(work.glob("tok*"))
