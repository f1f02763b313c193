"""What training runs leave beside their output, and how they begin or go on."""

from pathlib import Path

import pytest

from vqtool import artifacts
from vqtool.errors import FormatError, MismatchError, VqtoolError, VqtoolWarning
from vqtool.training.clock import Length
from vqtool.training.runs import RunFiles, RunOptions, choose_length


def save_state(path, steps=7, minutes=None, *, reached=(3, 90.0), old=False):
    length = {"settings": {"steps": steps}} if old else {"settings": {}, "steps": steps}
    config = {"data": {}, **length, "minutes": minutes}
    summary = {"step": reached[0], "seconds": reached[1], "values": {}}
    artifacts.save(path, kind="training-state", config=config, tensors={}, summary=summary, force=True)


def test_side_files_carry_the_whole_name_of_the_output():
    names = [
        RunFiles(Path(name)).state.name for name in ("lr0.01", "lr0.001", "lr0.01.safetensors", "lr0.001.safetensors")
    ]
    assert names == ["lr0.01.state.safetensors", "lr0.001.state.safetensors"] * 2
    files = RunFiles(Path("out/a.b.safetensors"))
    assert (files.log, files.preview) == (Path("out/a.b.log.jsonl"), Path("out/a.b.preview.png"))


def test_a_run_whose_files_have_the_names_of_earlier_versions_goes_on_under_them(tmp_path):
    save_state(tmp_path / "lr0.state.safetensors")
    files = RunFiles.open(tmp_path / "lr0.01", resume=True, force=False)
    assert (files.state.name, files.log.name, files.preview.name) == (
        "lr0.state.safetensors", "lr0.log.jsonl", "lr0.preview.png",
    )  # fmt: skip
    save_state(tmp_path / "lr0.01.state.safetensors")
    files = RunFiles.open(tmp_path / "lr0.01", resume=True, force=False)
    assert files.state.name == "lr0.01.state.safetensors"


def test_auto_goes_on_where_there_is_a_run_and_begins_where_there_is_none(tmp_path):
    output = tmp_path / "p.safetensors"
    assert not RunFiles.open(output, resume="auto", force=False).resume
    with pytest.raises(VqtoolError, match=r"p\.state\.safetensors: no earlier run is there to go on with"):
        RunFiles.open(output, resume=True, force=False)
    save_state(tmp_path / "p.state.safetensors")
    with pytest.raises(VqtoolError, match="an earlier run is there: `resume` goes on with it, `force` starts anew"):
        RunFiles.open(output, resume=False, force=False)
    for resume in (True, "auto"):
        assert RunFiles.open(output, resume=resume, force=False).resume
    assert not RunFiles.open(output, resume=False, force=True).resume
    with pytest.raises(VqtoolError, match="`resume` perhaps: True, False or auto is expected"):
        RunFiles.open(output, resume="perhaps", force=False)


ANY = Length(999)  # the length where nobody says


@pytest.mark.parametrize(
    ("run", "expected", "announced"),
    [
        ({"steps": 7}, Length(7), "a run of 7 steps"),
        ({"minutes": 0.5}, Length(None, 0.5), "a run of 0.5 minutes"),
        ({}, Length(20_000, 30.0), "a run of 20000 steps, at most 30 minutes"),
    ],
)
def test_the_length_of_a_run_is_what_is_asked_for_and_announced(run, expected, announced):
    told = []
    found = choose_length(RunOptions(**run), RunFiles(Path("t")), default=Length(20_000, 30.0), notify=told.append)
    assert (found, told) == (expected, [announced])


@pytest.mark.parametrize("old", [False, True])
def test_a_run_that_goes_on_keeps_its_length_or_takes_another_that_is_longer_than_what_it_has_taken(tmp_path, old):
    files = RunFiles(tmp_path / "p.safetensors", resume=True)

    def choose(*, told=None, **length):
        return choose_length(RunOptions(**length), files, default=ANY, notify=(told or []).append)

    save_state(files.state, 70, reached=(9, 100.0), old=old)
    assert choose() == choose(steps=70) == Length(70)
    assert choose(steps=10) == Length(10)
    assert choose(minutes=2) == Length(None, 2.0)
    told = ["a line"]
    choose(steps=100, told=told)
    assert told[1:] == [
        "resuming a run of 70 steps after 9 steps in 1.7 min; it is one of 100 steps now, and its learning rate follows"
    ]
    for name, value in (("steps", 9), ("steps", 2), ("minutes", 1.5)):
        with pytest.raises(VqtoolError) as error:
            choose(**{name: value})
        assert str(error.value) == (
            f"`{name}` {value}: the run has taken 9 steps in 1.7 min already: give more, or leave it out for the 70 "
            "steps that it began with"
        )


@pytest.mark.parametrize("old", [False, True])
def test_a_run_by_minutes_that_has_ended_is_not_shorter_than_itself(tmp_path, old):
    files = RunFiles(tmp_path / "p.safetensors", resume=True)
    save_state(files.state, 70 if old else None, 2.5, reached=(70, 151.0), old=old)
    for run in (RunOptions(), RunOptions(minutes=2.5)):
        assert choose_length(run, files, default=ANY) == Length(None, 2.5)
    assert choose_length(RunOptions(minutes=3), files, default=ANY) == Length(None, 3.0)
    with pytest.raises(VqtoolError, match=r"`minutes` 2\.49: the run has taken 70 steps in 2\.5 min already"):
        choose_length(RunOptions(minutes=2.49), files, default=ANY)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"data": {}, "settings": {}},
            "what the run began with: it does not say how many steps or minutes the run has",
        ),
        ({"data": {}, "settings": {}, "steps": 0}, "what the run began with: it does not say how many steps"),
        ({"data": {}, "settings": {}, "minutes": -1}, "what the run began with: "),
        ({"data": {}, "settings": {"steps": "x"}}, "what the run began with: steps: "),
        ({"data": {}, "settings": []}, "what the run began with: settings: "),
        ({"data": {"grids": 3}, "settings": {"steps": 2}}, "what the run began with: data: a text is expected, not 3"),
        ({"data": {}, "settings": {"steps": 2}, "minutes": "x"}, "what the run began with: minutes: "),
    ],
)
def test_a_state_with_forged_settings_is_refused_by_field(tmp_path, config, message):
    artifacts.save(tmp_path / "p.state.safetensors", kind="training-state", config=config, tensors={})
    files = RunFiles.open(tmp_path / "p.safetensors", resume=True, force=False)
    with pytest.raises(FormatError, match=rf"p\.state\.safetensors: {message}"):
        choose_length(RunOptions(), files, default=ANY)


def test_a_preview_that_cannot_be_written_stops_nothing(tmp_path):
    def write(path):
        raise VqtoolError(f"{path}: cannot be written: No space left on device")

    with pytest.warns(VqtoolWarning, match=r"no preview: .*p\.preview\.png: cannot be written"):
        RunFiles(tmp_path / "p.safetensors").draw(write)


def test_the_state_of_an_earlier_version_is_told_as_that(tmp_path):
    artifacts.save(tmp_path / "p.state.safetensors", kind="training-state", config={"loop.num_steps": 3}, tensors={})
    files = RunFiles.open(tmp_path / "p.safetensors", resume=True, force=False)
    with pytest.raises(MismatchError, match=r"p\.state\.safetensors: the state of an earlier version of vqtool"):
        choose_length(RunOptions(), files, default=ANY)
