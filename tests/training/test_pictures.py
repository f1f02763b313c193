"""Training on images that are decoded meanwhile: the same losses however they are kept and whoever decodes them."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.commands import write_pictures
from support.sources import make_tar
from support.two import run_in_two

from vqtool import artifacts, distributed
from vqtool.errors import MismatchError, VqtoolError
from vqtool.images import find_images, read_images
from vqtool.images import stream as streaming
from vqtool.images.sources import tars
from vqtool.tally import Tally
from vqtool.tokenizers import SIZES
from vqtool.training import data, pictures
from vqtool.training._order import step_items, upcoming
from vqtool.training.tokenizer import train_tokenizer

QUICK = {"size": 16, "batch_size": 4, "codebook_size": 16, "preview_every": 3, "crop": 1.25}
STEPS = 9
TWO = {"size": 16, "batch_size": 4, "steps": 8, "preview_every": 0, "cache": "disk"}


@pytest.fixture(autouse=True)
def narrow(tmp_path, monkeypatch):
    """In an empty folder with `imgs/`, 30 pictures, and narrow networks."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 30, size=(20, 24))
    small = {"channels": (16, 16, 16), "encoder_blocks": (0, 0, 1), "decoder_blocks": (1, 0, 0)}
    monkeypatch.setitem(SIZES, "vqvae-f8", replace(SIZES["vqvae-f8"], **small))


def train(name, images="imgs", **changes):
    train_tokenizer(images, f"{name}.safetensors", **{**QUICK, "steps": STEPS, **changes})
    return log(name)


def log(name):
    lines = Path(f"{name}.log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def stop_at(number):
    def report(step, metrics):
        if step == number:
            signal.raise_signal(signal.SIGINT)

    return report


def interrupt(name, **changes):
    with pytest.raises(KeyboardInterrupt):
        train(name, report=stop_at(4), **changes)


def test_losses_are_the_same_however_images_are_kept_and_however_many_threads_decode_them():
    (Path("imgs") / "07.png").write_bytes(b"no image")
    kinds = [("memory", 3), ("disk", 2), ("none", 1), ("none", 4)]
    told = {kind: [] for kind in kinds}
    logs = []
    for kind, num in kinds:
        listener = Tally(lambda item, error, key=(kind, num): told[key].append(item.id))
        logs.append(train(f"{kind}-{num}", cache=kind, workers=num, on_error=listener))
    assert len(logs[0]) == STEPS
    assert all(each == logs[0] for each in logs)
    assert set(map(tuple, told.values())) == {("07",)}
    summaries = [artifacts.read_header(f"{kind}-{num}.safetensors").summary for kind, num in kinds]
    assert {(each["num_images"], each["num_skipped"]) for each in summaries} == {(29, 1)}
    assert not list(Path().glob("*.cache"))


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_run_goes_on_exactly_with_images_kept_in_another_way(cache):
    whole = train("whole")
    interrupt("parts", cache=cache)
    kept = list(Path().glob("parts.images-*.cache"))
    assert len(kept) == (cache == "disk")
    train("parts", resume=True, cache={"memory": "disk", "disk": "none", "none": "memory"}[cache], workers=2)
    assert log("parts") == whole
    assert not list(Path().glob("*.cache"))


def test_what_a_run_kept_on_disk_is_not_decoded_again_when_it_goes_on(monkeypatch):
    write_pictures(Path("many"), 99, size=(20, 20))
    read, decoded = streaming.read_image, []
    monkeypatch.setattr(streaming, "read_image", lambda item, *rest: (decoded.append(item.id), read(item, *rest))[1])
    interrupt("parts", images="many", cache="disk", workers=1)
    first = len(decoded)
    assert first >= 16 + 4  # the preview's, and a step's
    train("parts", "many", cache="disk", workers=1, resume=True)
    assert len(decoded) > first
    assert len(set(decoded)) == len(decoded)


def test_a_run_of_an_earlier_version_goes_on_exactly():
    """Its state has a digest over all pixels, and it learnt from an array of those that could be read."""
    (Path("imgs") / "07.png").write_bytes(b"no image")
    ignore = {"on_error": lambda item, error: None}
    items = [item for item in find_images(["imgs"]) if item.id != "07"]
    array = read_images(items, (20, 20)).images
    Path("imgs/07.png").rename("07.png")
    whole = train("whole")
    interrupt("parts")
    header, tensors = artifacts.load("parts.state.safetensors", "training-state")
    config = {**header.config, "data": {"images": data.digest(array)}}
    state = {"kind": "training-state", "config": config, "tensors": tensors, "summary": header.summary}
    artifacts.save("parts.state.safetensors", **state, force=True)
    Path("07.png").rename("imgs/07.png")
    train("parts", resume=True, **ignore)
    assert log("parts") == whole
    write_pictures(Path("imgs"), 30, size=(20, 24), seed=1)
    artifacts.save("parts.state.safetensors", **state, force=True)
    with pytest.raises(MismatchError, match="not the images that the run began with"):
        train("parts", resume=True)


def test_other_images_are_told_when_a_run_goes_on():
    interrupt("parts")
    Path("imgs/03.png").rename("03.png")
    with pytest.raises(MismatchError, match="there were 30, and now there are 29"):
        train("parts", resume=True)
    Path("03.png").rename("imgs/31.png")
    with pytest.raises(MismatchError, match="not the images that the run began with"):
        train("parts", resume=True)
    content = bytearray(Path("imgs/31.png").read_bytes())
    Path("imgs/31.png").rename("imgs/03.png")
    content[-30] ^= 1
    Path("imgs/03.png").write_bytes(content)
    with pytest.raises(MismatchError, match="not the images that the run began with"):
        train("parts", resume=True)
    content[-30] ^= 1
    Path("imgs/03.png").write_bytes(content)
    train("parts", resume=True)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def _replace(path):
    """By one of pictures of the same names and lengths, as a shard that was shuffled or compressed anew may have."""
    names = sorted(each.name for each in Path("imgs").iterdir())
    files = {name: (Path("imgs") / name).read_bytes() for name in names}
    make_tar(path, {name: files[name][:-3] + b"???" for name in names[10:20]})


def _reorder(path):
    names = sorted(each.name for each in Path("imgs").iterdir())
    make_tar(path, {name: (Path("imgs") / name).read_bytes() for name in reversed(names[10:20])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, r"^s-1\.tar: no such file or folder"),
        (_cut, r"^s-1\.tar: .*cut short.* after \d+ files; `allow_truncated` takes"),
        (_replace, r"state\.safetensors: not the images that the run began with; resume with those of the start"),
        (_reorder, None),
    ],
)
def test_a_shard_that_is_not_what_it_was_is_told_in_a_line_when_a_run_goes_on(change, message):
    names = sorted(each.name for each in Path("imgs").iterdir())
    shards = [f"s-{number}.tar" for number in range(3)]
    for number, shard in enumerate(shards):
        own = names[10 * number : 10 * number + 10]
        make_tar(Path(shard), {name: (Path("imgs") / name).read_bytes() for name in own})
    whole = train("whole", shards) if message is None else None
    interrupt("parts", images=shards)
    before = Path("parts.state.safetensors").read_bytes()
    change(Path("s-1.tar"))
    if message is None:  # the same pictures in another order, which names decide
        train("parts", shards, resume=True)
        assert log("parts") == whole
        return
    with pytest.raises(VqtoolError, match=message) as caught:
        train("parts", shards, resume=True)
    assert "\n" not in str(caught.value)
    assert Path("parts.state.safetensors").read_bytes() == before
    if change is Path.unlink:
        with pytest.raises(MismatchError, match="there were 30, and now there are 20"):
            train("parts", "s-*.tar", resume=True)


@pytest.mark.parametrize("gone", [True, False])
def test_a_shard_that_is_cut_or_gone_while_a_run_reads_it_is_told_by_its_pictures(monkeypatch, gone):
    """Its file is opened again, since others are open in its place."""
    monkeypatch.setattr(tars, "MOST_OPEN", 1)
    files = {path.name: path.read_bytes() for path in sorted(Path("imgs").iterdir())}
    for shard, own in (("a.tar", list(files)[:15]), ("b.tar", list(files)[15:])):
        make_tar(Path(shard), {name: files[name] for name in own})
    told = []

    def change(step, metrics):
        if step == 3:
            Path("b.tar").unlink() if gone else os.truncate("b.tar", 600)

    tally = Tally(lambda item, error: told.append(str(error)))
    made = train("x", ["a.tar", "b.tar"], report=change, on_error=tally, cache="none", workers=1)
    assert len(made) == STEPS
    assert told
    reason = "cannot be read: No such file or directory" if gone else "the shard is cut short"
    assert all(line.startswith("b.tar: ") and reason in line for line in told)
    assert len(set(told)) == len(told)


def test_the_same_images_brought_to_their_size_in_another_way_are_others():
    items = find_images(["imgs"])
    assert pictures.describe(items, "crop") != pictures.describe(items, "pad")
    assert pictures.describe(find_images(["imgs"]), "pad") == pictures.describe(items, "pad")
    interrupt("parts")
    with pytest.raises(MismatchError, match="not the images that the run began with; resume with those"):
        train("parts", resume=True, fit="stretch")
    with pytest.raises(MismatchError, match=r"`crop` was 1\.25 when the run began, now it is 1\.0"):
        train("parts", resume=True, crop=1.0)


def test_of_many_images_the_lengths_of_all_count_and_the_content_of_some(monkeypatch):
    monkeypatch.setattr(pictures, "LOOKED_INTO", 2)
    items, before = find_images(["imgs"]), []
    opened = []
    monkeypatch.setattr(pictures, "read_bytes", lambda item, num: (opened.append(item.id), b"")[1])
    before = pictures.describe(items, "crop")
    assert opened == ["00", "29"]
    Path("imgs/11.png").write_bytes(b"other")
    assert pictures.describe(items, "crop") != before


def test_nothing_is_decoded_before_the_first_step_but_what_the_preview_shows(monkeypatch):
    read, decoded = streaming.read_image, []
    monkeypatch.setattr(streaming, "read_image", lambda item, *rest: (decoded.append(item.id), read(item, *rest))[1])
    write_pictures(Path("many"), 99, size=(20, 20))
    train("few", "many", steps=1, workers=1)
    assert 16 < len(set(decoded)) <= 16 + 4 + (4 + 4)  # one batch; and, ahead of the next step, one and four a thread


def test_where_images_are_kept_is_said_and_memory_is_left_for_others(monkeypatch):
    shape = (10, 3, 8, 8)
    monkeypatch.setattr(distributed, "free_memory", lambda: 2 * 10 * 3 * 64)
    store, said = pictures.choose_store(None, shape, Path("x.safetensors"), "ab")
    assert (store.images.shape, said) == (shape, "kept in memory once they are decoded (0.0 MB)")
    monkeypatch.setattr(distributed, "free_memory", lambda: 2 * 10 * 3 * 64 - 1)
    store, said = pictures.choose_store(None, shape, Path("x.safetensors"), "ab")
    assert store is None
    assert said.endswith(": 0.0 MB are more than half of the free memory; `cache` disk keeps them there")
    monkeypatch.setattr(distributed, "free_memory", lambda: 3 * 10 * 3 * 64)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert pictures.choose_store(None, shape, Path("x.safetensors"), "ab")[0] is None
    with pytest.raises(VqtoolError, match=r"x\.images-ab-1000x1000\.cache: .* take 3,000,000,000,000\.0 GB"):
        pictures.choose_store("disk", (10**15, 3, 1000, 1000), Path("x.safetensors"), "ab")


def test_a_container_has_no_more_memory_than_it_may_use(tmp_path, monkeypatch):
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("4096\n")
    monkeypatch.setattr(distributed, "CONTAINER_LIMITS", (str(tmp_path / "max"), str(tmp_path / "none")))
    assert distributed.free_memory() > 4096
    monkeypatch.setattr(distributed, "CONTAINER_LIMITS", (str(tmp_path / "max"), str(tmp_path / "limit")))
    assert distributed.free_memory() == 4096


def test_a_tokenizer_is_not_split_over_processes_and_says_so_before_it_looks_for_images(monkeypatch):
    monkeypatch.setattr(distributed, "splits_weights", lambda: True)
    with pytest.raises(
        VqtoolError, match=r"use_fsdp`\) is for priors: a tokenizer fits every GPU whole; start without"
    ):
        train("x", images="missing")


def test_files_of_other_images_are_removed_when_a_run_begins_anew():
    interrupt("parts", cache="disk")
    Path("parts.images-other.cache").touch()
    Path("partsx.images-other.cache").touch()
    write_pictures(Path("imgs"), 30, size=(20, 24), seed=1)
    interrupt("parts", cache="disk", force=True)
    assert len(list(Path().glob("parts.images-*.cache"))) == 1
    assert Path("partsx.images-other.cache").exists()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_items_of_the_next_steps_are_known_to_each_process(monkeypatch, rank):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    own = slice(2 * rank, 2 * rank + 2)
    seen = [tuple(each[own] for each in step_items(step, 10, 6, 3)) for step in range(8)]
    items, samples = (np.concatenate(each).tolist() for each in zip(*seen, strict=True))
    for place in range(10):
        for count in (1, 2, 5):
            found = upcoming(samples[place], count, 10, 6, 3)
            assert found.tolist() == items[place + 1 : place + 1 + count]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_tell_what_either_cannot_read(tokenizer_path):
    """Sums over processes round differently: losses agree to 1e-4, which fails where noise or images differ."""
    files = {path.name: path.read_bytes() for path in sorted(Path("imgs").iterdir())}
    make_tar(Path("x.tar"), {**files, "07.png": b"no image"})
    train_tokenizer("x.tar", "one.safetensors", from_=tokenizer_path, on_error=lambda item, error: None, **TWO)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TWO.items()]
    done = run_in_two("vqtool", "train-tokenizer", "x.tar", "--from", tokenizer_path, *flags, "-o", "two.safetensors")
    assert b"error: 1 bad input skipped" in done.stderr, done.stderr.decode()
    assert done.stderr.count(b"skipped x.tar: 07.png") == 1
    assert artifacts.read_header("two.safetensors").summary["num_skipped"] == 1
    assert len(log("two")) == 8
    assert [line["loss"] for line in log("two")] == pytest.approx([line["loss"] for line in log("one")], rel=1e-4)
    assert not list(Path().glob("*.cache"))
