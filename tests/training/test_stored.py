"""Training on grids that stay on disk: the order of its items, exact resume, and the losses of grids in memory."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support import prior_run
from support.two import run_in_two

from vqtool import conditions, distributed
from vqtool.captions import join_captions, split_captions
from vqtool.errors import FormatError, MismatchError, VqtoolError, VqtoolWarning
from vqtool.grids import GridBatch, GridHeader, GridWriter, cat, read_grids, stored
from vqtool.training import _order, data
from vqtool.training._order import step_items
from vqtool.training.prior import train_prior

RUN = 3  # grids that are read together
KEPT = 64 * RUN * 6  # bytes of 64 runs of grids of 2x3 cells of one byte
QUICK = {"size": "tiny", "steps": 6, "batch_size": 16, "condition": "class", "kernel": "absorbing", "from_": "none"}


def items(steps, num_items, **changes):
    return np.concatenate([step_items(step, num_items, 10, **{"seed": 5, "run": 4, **changes})[0] for step in steps])


@pytest.mark.parametrize("num_items", [30, 256, 257, 1030, 1023])
def test_every_item_is_seen_once_an_epoch_in_an_order_of_its_own(num_items):
    seen = items(range(3 * num_items // 10 + 1), num_items)
    epochs = [seen[first * num_items : (first + 1) * num_items] for first in range(3)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(num_items))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(seen[:num_items], items(range(num_items // 10 + 1), num_items, seed=6)[:num_items])


def test_few_runs_are_wanted_at_a_time_and_items_mix_beyond_them(monkeypatch):
    monkeypatch.setattr(_order, "RUNS", 8)
    _order._groups.cache_clear()
    _order._group.cache_clear()
    seen = items(range(200), 2000)  # runs of 4, 8 at a time: groups of 32
    for group in range(60):
        runs = np.unique(seen[group * 32 : group * 32 + 32] // 4)
        assert len(runs) == 8
        assert np.diff(np.sort(runs)).max() > 1
    steps = np.abs(np.diff(seen))
    assert (steps == 1).mean() < 0.1
    _order._groups.cache_clear()
    _order._group.cache_clear()


def test_a_step_has_the_same_items_whoever_asks_and_whenever():
    late = step_items(57, 1030, 10, 5, run=4)
    items(range(20), 1030)
    again = step_items(57, 1030, 10, 5, run=4)
    assert np.array_equal(late[0], again[0])
    assert late[1].tolist() == list(range(570, 580))


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Files of four pictures many times, 240 in all, that are too large for memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stored, "KEPT_BYTES", KEPT)
    monkeypatch.setattr(data, "IN_MEMORY", 0)
    header = GridHeader(7, (2, 3), (16, 24), "0" * 16, "nowhere.safetensors", "")
    for number, copies in enumerate((30, 10, 20)):
        batch = prior_run.batch(copies)
        with GridWriter(Path(f"tok-{number}.h5"), header) as writer:
            writer.write(GridBatch(batch.tokens.astype(np.uint8), batch.ids, batch.labels))
    return header


QUIET = pytest.mark.filterwarnings(
    "ignore:.*preview", "ignore:.*are different", "ignore:.*no caption", "ignore:.*by heart"
)
CAPTIONED = {**QUICK, "condition": "caption"}


@pytest.fixture
def captioned(shards):
    """180 with captions, so few that none is held out: some have two, some none, those of the last file none at all."""
    for number, copies in enumerate((20, 10, 15)):
        batch = prior_run.batch(copies)
        texts = [[f"a {word} {row % 7}", f"the {word} one"][: row % 3] for row, word in enumerate(batch.labels)]
        captions = [join_captions(own) for own in texts] if number < 2 else None
        with GridWriter(Path(f"tok-{number}.h5"), shards, force=True) as writer:
            writer.write(GridBatch(batch.tokens.astype(np.uint8), batch.ids, None, captions))


def stop(step, metrics):
    if step == 3:
        raise KeyboardInterrupt


def in_memory(monkeypatch):
    """Read all into memory, and see it in the order of grids on disk."""
    monkeypatch.setattr(data, "IN_MEMORY", 1 << 20)
    monkeypatch.setattr(data.GridData, "order", partial(step_items, run=RUN))


def log(name):
    lines = Path(f"{name}.log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@QUIET
def test_grids_on_disk_teach_what_they_teach_in_memory_in_the_same_order(shards, monkeypatch):
    train_prior("tok-*.h5", "disk.safetensors", **QUICK)
    in_memory(monkeypatch)
    train_prior(["tok-0.h5", "tok-1.h5", "tok-2.h5"], "memory.safetensors", **QUICK)
    assert len(log("disk")) == 6
    assert log("disk") == log("memory")


@QUIET
@pytest.mark.parametrize("most", [0, 1 << 20], ids=["disk", "memory"])
def test_files_without_grids_are_passed_over_and_told(shards, monkeypatch, most):
    monkeypatch.setattr(data, "IN_MEMORY", most)
    train_prior("tok-*.h5", "without.safetensors", **QUICK)
    for number in (3, 4):
        with GridWriter(Path(f"tok-{number}.h5"), shards):
            pass
    with pytest.warns(VqtoolWarning, match=r"tok-3\.h5 and 1 more: no token grids in it: passed over") as told:
        train_prior("tok-*.h5", "with.safetensors", **QUICK)
    assert not [warning for warning in told if "has some" in str(warning.message)]  # labels or captions: none has
    assert log("with") == log("without")
    with pytest.raises(VqtoolError, match=r"tok-3\.h5 and 1 more: no token grids in it"):
        train_prior("tok-[34].h5", "none.safetensors", **QUICK)


@QUIET
def test_captions_on_disk_teach_what_they_teach_in_memory(captioned, monkeypatch):
    for name in ("disk", "memory"):
        with pytest.warns(
            VqtoolWarning,
            match=r"tok-2\.h5: no captions, but tok-0\.h5 has some: grids without captions are learnt as such",
        ):
            train_prior("tok-*.h5", f"{name}.safetensors", **CAPTIONED)
        in_memory(monkeypatch)
    assert len(log("disk")) == 6
    assert log("disk") == log("memory")


@QUIET
def test_captions_on_disk_are_tokenised_where_a_step_looks_at_them(captioned, monkeypatch):
    header, batch = data.read_data("tok-*.h5")
    conditioner = conditions.build("caption", None, data.sample_texts(batch).captions)
    told = []
    encode = type(conditioner)._encode
    monkeypatch.setattr(type(conditioner), "_encode", lambda self, texts: (told.extend(texts), encode(self, texts))[1])
    stored_data = data.build_data(batch, conditioner, data.GridSpec.of(header))
    assert told == []
    placed = stored_data.place("cpu")
    _, rows = placed.rows(torch.tensor([100, 3, 0, 170]))
    assert len(told) <= 2 * 4 * RUN
    assert torch.equal(rows, conditioner.encode([split_captions(batch.captions[100])[0], None, None, None]))
    few = stored_data._take(np.array([4, 100, 101, 170])).conditions
    rows, starts = few.all_of()
    own = [split_captions(batch.captions[row]) for row in (4, 100, 101, 170)]
    assert starts.tolist() == [0, *np.cumsum(list(map(len, own)))]
    assert torch.equal(rows, conditioner.encode([text or None for texts in own for text in texts]))
    draws = np.array([0.6, 0.0, 0.99, 0.5])
    picked = [texts[int(draw * len(texts))] or None for texts, draw in zip(own, draws, strict=True)]
    assert torch.equal(few.take(np.arange(4), draws), conditioner.encode(picked))


@QUIET
def test_a_run_on_captions_goes_on_exactly_and_not_on_others(captioned, monkeypatch):
    train_prior("tok-*.h5", "whole.safetensors", **CAPTIONED)
    with pytest.raises(KeyboardInterrupt):
        train_prior("tok-*.h5", "parts.safetensors", report=stop, **CAPTIONED)
    before = Path("tok-1.h5").read_bytes()
    _, batch = read_grids("tok-1.h5")
    changed = replace(batch, captions=[text.replace("a ", "an ") for text in batch.captions])
    with GridWriter(Path("tok-1.h5"), read_grids("tok-0.h5")[0], force=True) as writer:
        writer.write(changed)
    with pytest.raises(MismatchError, match=r"not the grids that the run began with|is not what the run began with"):
        train_prior("tok-*.h5", "parts.safetensors", resume=True, **CAPTIONED)
    Path("tok-1.h5").write_bytes(before)
    train_prior("tok-*.h5", "parts.safetensors", resume=True, **CAPTIONED)
    assert log("parts") == log("whole")


@QUIET
def test_files_that_are_missing_cut_or_replaced_when_a_run_goes_on_are_told(shards):
    with pytest.raises(KeyboardInterrupt):
        train_prior("tok-*.h5", "parts.safetensors", report=stop, **QUICK)
    content = Path("tok-1.h5").read_bytes()
    Path("tok-1.h5").write_bytes(content[:-100])
    with pytest.raises(FormatError, match=r"tok-1\.h5"):
        train_prior("tok-*.h5", "parts.safetensors", resume=True, **QUICK)
    _, batch = read_grids("tok-0.h5")
    with GridWriter(Path("tok-1.h5"), shards, force=True) as writer:  # as many grids, and others
        writer.write(batch[:39])
        writer.write(batch[41:42])
    with pytest.raises(MismatchError, match="not the grids that the run began with"):
        train_prior("tok-*.h5", "parts.safetensors", resume=True, **QUICK)
    with GridWriter(Path("tok-1.h5"), shards, force=True):
        pass
    with (
        pytest.warns(VqtoolWarning, match=r"tok-1\.h5: no token grids in it: passed over"),
        pytest.raises(MismatchError, match="not the grids that the run began with"),
    ):
        train_prior("tok-*.h5", "parts.safetensors", resume=True, **QUICK)
    Path("tok-1.h5").unlink()
    with pytest.raises(VqtoolError, match=r"tok-1\.h5: no such file"):
        train_prior(["tok-0.h5", "tok-1.h5", "tok-2.h5"], "parts.safetensors", resume=True, **QUICK)


@pytest.mark.slow
@QUIET
def test_two_processes_on_grids_on_disk_have_the_losses_of_one(captioned):
    """Sums over processes round differently; dropout, which each draws for itself, is left out."""
    settings = {**CAPTIONED, "dropout": 0.0}
    train_prior("tok-*.h5", "one.safetensors", **settings)
    done = run_in_two("support.stored_run", "tok-*.h5", KEPT, json.dumps(settings))
    assert done.returncode == 0, done.stderr.decode()
    assert [line["loss"] for line in log("two")] == pytest.approx([line["loss"] for line in log("one")], rel=1e-5)
    assert len(log("two")) == 6


@QUIET
def test_a_run_on_files_goes_on_exactly_and_not_on_others(shards):
    train_prior(".", "whole.safetensors", **QUICK)
    with pytest.raises(KeyboardInterrupt):
        train_prior("tok-*.h5", "parts.safetensors", report=stop, **QUICK)
    names = sorted(map(str, Path().glob("tok-*.h5")))
    Path("tok-1.h5").rename("kept")
    with pytest.raises(MismatchError, match="grids"):
        train_prior("tok-*.h5", "parts.safetensors", resume=True, **QUICK)
    Path("kept").rename("tok-1.h5")
    train_prior(names, "parts.safetensors", resume=True, **QUICK)
    assert log("parts") == log("whole")


@QUIET
@pytest.mark.parametrize("most", [0, 1 << 20], ids=["disk", "memory"])
def test_an_index_is_its_files_for_a_run_and_its_resume(shards, monkeypatch, most):
    monkeypatch.setattr(data, "IN_MEMORY", most)
    cat(["tok-*.h5"], "tok.index", index=True)
    train_prior("tok-*.h5", "whole.safetensors", **QUICK)
    with pytest.raises(KeyboardInterrupt):
        train_prior("tok-*.h5", "parts.safetensors", report=stop, **QUICK)
    content = Path("tok-1.h5").read_bytes()
    for change, message in (
        (content[:-1], r"tok\.index: tok-1\.h5 was cut short"),
        (None, r"tok\.index: tok-1\.h5 is missing: bring back the files, or make the index anew"),
    ):
        Path("tok-1.h5").unlink() if change is None else Path("tok-1.h5").write_bytes(change)
        with pytest.raises(VqtoolError, match=message):
            train_prior("tok.index", "parts.safetensors", resume=True, **QUICK)
    Path("tok-1.h5").write_bytes(content)
    train_prior("tok.index", "parts.safetensors", resume=True, **QUICK)
    assert log("parts") == log("whole")


def test_processes_take_their_shares_of_the_same_steps(monkeypatch):
    whole = step_items(7, 240, 12, 0, run=RUN)[0]
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "world_size", lambda: 3)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own = distributed.own_range(12)
        shares.append(step_items(7, 240, 12, 0, run=RUN)[0][own.start : own.stop])
    assert np.array_equal(np.concatenate(shares), whole)


def test_a_file_that_is_named_twice_is_refused(shards):
    with pytest.raises(VqtoolError, match=r"tok-1\.h5: named twice"):
        train_prior(["tok-1.h5", "tok-*.h5"], "p.safetensors", **QUICK)


@pytest.mark.parametrize("most", [0, 1 << 20], ids=["disk", "memory"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_fingerprint": "f" * 16}, r"tok-3\.h5 has tokenizer f{16}, but tok-0\.h5 has tokenizer 0{16}"),
        ({"codebook_size": 8}, r"tok-3\.h5 has codebook size 8, but tok-0\.h5 has codebook size 7"),
        (
            {"grid_size": (3, 2), "image_size": (24, 16)},
            r"tok-3\.h5 has grid size 3x2, but tok-0\.h5 has .* 2x3",
        ),
    ],
)
def test_files_that_do_not_go_together_are_named_first(shards, monkeypatch, most, changes, message):
    monkeypatch.setattr(data, "IN_MEMORY", most)
    header = replace(shards, **changes)
    with GridWriter(Path("tok-3.h5"), header) as writer:
        writer.write(GridBatch(np.zeros((2, *header.grid_size), np.uint8), ["a", "b"]))
    with pytest.raises(MismatchError, match=message):
        train_prior("tok-*.h5", "p.safetensors", **QUICK)
    assert not list(Path().glob("p.*"))


@QUIET
def test_files_without_what_others_have_are_named_when_all_is_read_into_memory(captioned, shards, monkeypatch):
    in_memory(monkeypatch)
    with GridWriter(Path("tok-3.h5"), shards) as writer:
        writer.write(GridBatch(np.zeros((2, 2, 3), np.uint8), ["a", "b"], ["up", "down"]))
    with pytest.warns(VqtoolWarning) as told:
        _, batch = data.read_data("tok-*.h5")
    assert sorted(str(each.message) for each in told) == [
        "tok-0.h5 and 2 more: no labels, but tok-3.h5 has some: grids without labels are learnt as such",
        "tok-2.h5 and 1 more: no captions, but tok-0.h5 has some: grids without captions are learnt as such",
    ]
    assert batch.labels == [""] * 180 + ["up", "down"]
