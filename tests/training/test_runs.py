"""What training runs leave beside their output, and how they begin or go on."""

from pathlib import Path

import pytest

from vqtool import artifacts
from vqtool.errors import FormatError, MismatchError, VqtoolError, VqtoolWarning
from vqtool.training.runs import RunFiles, RunOptions, choose_steps


def save_state(path, steps=7, minutes=None):
    config = {"data": {}, "settings": {"steps": steps}, "minutes": minutes}
    artifacts.save(path, kind="training-state", config=config, tensors={}, force=True)


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


def test_a_run_that_goes_on_keeps_its_length_and_is_given_no_other(tmp_path):
    save_state(tmp_path / "p.state.safetensors", steps=70)
    files = RunFiles.open(tmp_path / "p.safetensors", resume=True, force=False)

    def never(*_):
        pytest.fail("no step has to be timed")

    assert choose_steps(RunOptions(), files, default=never, step_seconds=never) == 70
    assert choose_steps(RunOptions(steps=9), files, default=never, step_seconds=never) == 9  # which the loop refuses
    with pytest.raises(VqtoolError, match="`minutes` 1: it was 70 steps when the run began: leave it out"):
        choose_steps(RunOptions(minutes=1), files, default=never, step_seconds=never)
    save_state(tmp_path / "p.state.safetensors", steps=70, minutes=2.5)
    assert choose_steps(RunOptions(minutes=2.5), files, default=never, step_seconds=never) == 70
    with pytest.raises(VqtoolError, match=r"`minutes` 1: it was 2\.5, which were 70 steps, when the run began"):
        choose_steps(RunOptions(minutes=1), files, default=never, step_seconds=never)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": {}, "settings": {}}, "damaged: it does not say how many steps the run has"),
        ({"data": {}, "settings": []}, "what the run began with: settings: "),
        ({"data": {"grids": 3}, "settings": {"steps": 2}}, "what the run began with: data: a text is expected, not 3"),
        ({"data": {}, "settings": {"steps": 2}, "minutes": "x"}, "what the run began with: minutes: "),
    ],
)
def test_a_state_with_forged_settings_is_refused_by_field(tmp_path, config, message):
    artifacts.save(tmp_path / "p.state.safetensors", kind="training-state", config=config, tensors={})
    files = RunFiles.open(tmp_path / "p.safetensors", resume=True, force=False)
    with pytest.raises(FormatError, match=rf"p\.state\.safetensors: {message}"):
        choose_steps(RunOptions(), files, default=int, step_seconds=float)


def test_a_preview_that_cannot_be_written_stops_nothing(tmp_path):
    def write(path):
        raise VqtoolError(f"{path}: cannot be written: No space left on device")

    with pytest.warns(VqtoolWarning, match=r"no preview: .*p\.preview\.png: cannot be written"):
        RunFiles(tmp_path / "p.safetensors").draw(write)


def test_the_state_of_an_earlier_version_is_told_as_that(tmp_path):
    artifacts.save(tmp_path / "p.state.safetensors", kind="training-state", config={"loop.num_steps": 3}, tensors={})
    files = RunFiles.open(tmp_path / "p.safetensors", resume=True, force=False)
    with pytest.raises(MismatchError, match=r"p\.state\.safetensors: the state of an earlier version of vqtool"):
        choose_steps(RunOptions(), files, default=int, step_seconds=float)
