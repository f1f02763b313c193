"""The command itself: help and version without heavy imports, errors as one line, exit codes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from support.command_lines import root_command
from support.commands import COMMAND, error_lines, shell, write_pictures

from vqtool.cli import main as cli
from vqtool.cli.main import COMMANDS, command
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.signals import Interrupted
from vqtool.version import __version__


def test_help_of_every_command_is_printed_without_torch_or_other_heavy_imports():
    code = """
import contextlib, io, sys
from vqtool.cli import main as cli
for arguments in [[], *([name] for name in cli.COMMANDS), ["codebook", "refit"]]:
    sys.argv = ["vqtool", *arguments, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, arguments
    assert "Usage: vqtool" in out.getvalue(), arguments
heavy = {"torch", "numpy", "h5py", "PIL", "accelerate", "sklearn", "scipy", "safetensors", "tokenizers"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_help_of_vqtool_imports_no_command_and_nothing_that_draws():
    code = """
import sys
from pathlib import Path
import typer  # some versions bring what draws along
before = set(sys.modules)
from vqtool.cli import main as cli
sys.argv = ["vqtool", "--help"]
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code
loaded = {name.removeprefix("vqtool.cli.") for name in sys.modules if name.startswith("vqtool.cli.")}
assert loaded == {"main", "help", "console", "_descriptors"}, loaded
drawing = {"rich.console", "rich.markdown", "rich.table", "typer.rich_utils", "pygments"} & set(sys.modules) - before
assert not drawing, drawing
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_help_in_the_list_of_commands_is_the_first_of_the_command(name):
    assert COMMANDS[name][1] == root_command().get_command(None, name).help.split("\n")[0]


def test_the_help_groups_the_commands(vqtool):
    lines = vqtool("--help").out.splitlines()
    groups = [f"{group}:" for group in ("Begin", "Edit", "Look", "Convert")]
    assert [line for line in lines if line in groups] == groups
    group, found = "", {}
    for line in lines:
        group = line if line in groups else group
        if group and line.strip():
            found[re.split("  +", line.strip())[0]] = group[:-1]
    assert {name: found[name] for name in COMMANDS} == {name: its for name, (its, _) in COMMANDS.items()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vqtool in", {"inpaint", "info"}),
        ("vqtool codebook re", {"refit", "remap"}),
        ("vqtool encode --tok", {"--tokenizer"}),
        ("vqtool sample --sampler p", {"psi", "purity"}),
        ("vqtool compare --sampler m", {"moment"}),
        ("vqtool train-prior --kernel ", {"mask-replace", "absorbing", "uniform"}),
        ("vqtool train-prior --schedule maskgit", {"maskgit-cosine"}),
        ("vqtool train-prior --denoiser u", {"unet"}),
        ("vqtool train-prior --loss m", {"mlm", "mdlm"}),
        ("vqtool train-tokenizer --quantizer f", {"fsq"}),
        ("vqtool train-tokenizer --network vqgan-f16", {"vqgan-f16", "vqgan-f16-small"}),
        ("vqtool codebook refit --seeding ", {"k-means++", "afk-mc2"}),
        ("vqtool inpaint --mask l", {"left-half"}),
        ("vqtool import --format diff", {"diffusers", "diffusers-vqmodel"}),
        ("vqtool export --format t", {"taming"}),
        ("vqtool decode --device c", {"cpu", "cuda"}),
    ],
)
def test_the_shell_completes_commands_flags_and_values(words, expected):
    environment = {**os.environ, "_VQTOOL_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
    code = "from vqtool.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert set(re.findall(r'"([\w+-]+)"(?=[:\n)]|$)', done.stdout)) == expected


def test_the_help_lists_every_command_and_goes_to_stdout(vqtool):
    result = vqtool("--help")
    assert result.code == 0
    assert result.err == ""
    for name in COMMANDS:
        assert f" {name} " in result.out


def test_the_version_is_printed_on_stdout(vqtool):
    result = vqtool("--version")
    assert (result.code, result.out, result.err) == (0, f"vqtool {__version__}\n", "")


def test_the_module_runs_as_the_command_does():
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"vqtool {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [("unknown",), ("--unknown",), ("encode", "--unknown"), ("encode",), ("decode", "--batch-size", "0"),
     ("codebook", "unknown"), ("show", "--num", "many", "a")],
)  # fmt: skip
def test_wrong_usage_exits_with_2_and_says_so_on_stderr(vqtool, arguments):
    result = vqtool(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Usage: vqtool" in result.err
    assert "Traceback" not in result.err


def test_no_arguments_show_the_help(vqtool):
    result = vqtool()
    assert "Usage: vqtool" in result.out + result.err


@pytest.fixture
def call(capsys):
    """Call a command that raises: (exit code, stderr)."""

    def call(error):
        @command
        def failing():
            print("data")
            raise error

        with pytest.raises(typer.Exit) as stop:
            failing()
        out, err = capsys.readouterr()
        assert out == "data\n"
        return stop.value.exit_code, err

    return call


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (VqtoolError("a.h5: bad"), 1, "error: a.h5: bad\n"),
        (FormatError("a.h5: two\n  lines"), 1, "error: a.h5: two lines\n"),
        (MismatchError("a and b"), 1, "error: a and b\n"),
        (PermissionError(13, "Permission denied", "/root/a"), 1, "error: /root/a: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (MemoryError(), 1, "error: MemoryError; this is unexpected: --debug shows where it happened\n"),
        (KeyError("x"), 1, "error: KeyError: 'x'; this is unexpected: --debug shows where it happened\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("state saved"), 130, "interrupted: state saved\n"),
        (Interrupted(15, "state saved"), 143, "interrupted: state saved\n"),
        (Interrupted(1), 129, "interrupted\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (typer.Exit(3), 3, ""),
    ],
)
def test_errors_become_one_line_and_an_exit_code(call, error, code, text):
    assert call(error) == (code, text)


def test_debug_shows_where_an_error_was_raised(call, monkeypatch):
    monkeypatch.setitem(cli._state, "debug", True)
    code, err = call(VqtoolError("bad"))
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert "raise error" in err
    assert err.endswith("error: bad\n")


@pytest.mark.parametrize("arguments", [("--debug", "encode", "gone"), ("encode", "gone", "--debug")])
def test_debug_may_stand_anywhere_and_lasts_for_one_command(vqtool, tmp_path, monkeypatch, tokenizer_path, arguments):
    monkeypatch.chdir(tmp_path)
    with_debug = vqtool(*arguments, "-t", tokenizer_path)
    without = vqtool(*(argument for argument in arguments if argument != "--debug"), "-t", tokenizer_path)
    assert with_debug.code == without.code == 1
    assert "Traceback" in with_debug.err
    assert "Traceback" not in without.err
    assert error_lines(with_debug.err) == error_lines(without.err) != []


def test_after_two_dashes_debug_is_a_name(vqtool):
    result = vqtool("encode", "--", "--debug")
    assert result.code == 1
    assert "--debug: no such file or folder" in result.err
    assert "Traceback" not in result.err


@pytest.fixture(scope="module")
def imgs(tmp_path_factory):
    """A folder with `imgs/`, 40 pictures."""
    folder = tmp_path_factory.mktemp("work")
    write_pictures(folder / "imgs", 40)
    return folder


def test_a_closed_pipe_ends_a_command_quietly_with_141(imgs, tokenizer_path):
    line = "$vqtool encode imgs -t $t -b 1 --size 16 -o - | head -c 1000 | wc -c; echo ${PIPESTATUS[@]}"
    result = shell(line, imgs, t=tokenizer_path)
    assert result.out.split() == ["1000", "141", "0", "0"]
    assert error_lines(result.err) == []
    assert "Traceback" not in result.err
    assert "Exception ignored" not in result.err


def test_a_full_disk_behind_stdout_is_one_error(imgs, tokenizer_path):
    line = "$vqtool encode imgs -t $t --size 16 -o - > /dev/full; echo $?; $vqtool info $t > /dev/full; echo $?"
    result = shell(line, imgs, t=tokenizer_path)
    assert result.out.split() == ["1", "1"]
    assert error_lines(result.err) == [
        "error: standard output: cannot be written: No space left on device",
        "error: standard output: cannot be written: No space left on device",
    ]
    assert "Traceback" not in result.err
    assert "Exception ignored" not in result.err


def test_a_machine_whose_only_gpu_is_apples_uses_its_cpu(monkeypatch):
    import torch

    from vqtool.distributed import choose_device, has_gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == "cpu"
    assert not has_gpu()


def test_warnings_of_the_library_are_lines_with_flags_each_once(vqtool, monkeypatch):
    from vqtool.errors import warn

    def show(**values):
        for _ in range(2):
            warn("x\n\x1b[31m.png: left out; `num` takes more")

    monkeypatch.setattr("vqtool.tokenizers.preview.draw_preview", lambda *sources, **options: show() or 0)
    result = vqtool("show", ".")
    assert result.err.splitlines() == [
        r"warning: x\n\x1b[31m.png: left out; --num takes more",
        "wrote 0 pictures to preview.png",
    ]


def test_names_in_errors_cannot_control_the_terminal(vqtool):
    result = vqtool("show", "\x1b]0;owned\x07.png")
    assert error_lines(result.err) == [
        r"error: \x1b]0;owned\x07.png: no such file or folder; expected images, tar shards or an HDF5 of images"
    ]


@pytest.mark.parametrize(
    ("command", "end"),
    [
        *((name, "") for name in ("encode imgs", "sample p", "complete g.h5", "head g.h5", "cat g.h5", "eval imgs")),
        *(
            (name, "")
            for name in ("import c.pth", "train-prior g.h5", "train-tokenizer imgs", "show imgs", "compare p")
        ),
        *((f"codebook {name}", "") for name in ("refit imgs", "prune g.h5", "remap g.h5", "apply-map g.h5")),
        *((name, "") for name in ("codebook finetune t imgs",)),
        *((name, ".h5") for name in ("inpaint imgs", "outpaint imgs", "vary imgs")),
        *((name, ".tar") for name in ("decode g.h5", "export t")),
    ],
)
@pytest.mark.parametrize("form", ["-o {}", "-o{}", "--output {}", "--output={}"])
def test_an_output_that_ends_with_a_slash_is_a_folder_and_no_file(vqtool, tmp_path, monkeypatch, command, end, form):
    monkeypatch.chdir(tmp_path)
    result = vqtool(*command.split(), *form.format(f"new{end}/").split())
    assert result.code == 1
    said = f"error: new{end}/: a file is to be written, but this names a folder: name a file"
    assert error_lines(result.err) == [said]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "name", "kind"),
    [
        ("encode imgs -o x.png", "x.h5", "token grids"),
        ("sample prior.safetensors -o x.zip", "x.h5", "token grids"),
        ("head g.h5 -o x.json", "x.h5", "token grids"),
        ("cat g.h5 -o x.tar.gz", "x.tar.h5", "token grids"),
        ("codebook remap g.h5 -t tokenizer.safetensors -o x.npz", "x.h5", "token grids"),
        ("codebook refit imgs -o x.h5", "x.safetensors", "an artifact"),
        ("codebook prune g.h5 -o x.tar", "x.safetensors", "an artifact"),
        ("train-prior g.h5 -o x.h5", "x.safetensors", "an artifact"),
        ("train-tokenizer imgs -o x.jpg", "x.safetensors", "an artifact"),
        ("show imgs -o x.JPG", "x.png", "a PNG image"),
        ("eval imgs --ref imgs -o x.png", "x.json", "JSON"),
        ("codebook usage g.h5 --plot x.gif", "x.png", "a PNG image"),
        ("eval imgs --ref imgs --report x.txt", "x.html", "a page"),
        ("eval stats imgs -o x.txt", "x.npz", "saved statistics"),
    ],
)
def test_a_suffix_of_a_file_of_another_kind_is_refused_before_any_work(vqtool, kinds, line, name, kind):
    before = sorted(os.listdir())
    result = vqtool(*line.split())
    output = line.split()[-1]
    assert result.code == 1
    assert error_lines(result.err) == [f"error: {output}: {kind} would be written there; name it {name}"]
    assert sorted(os.listdir()) == before


def test_side_files_of_outputs_that_differ_behind_a_dot_are_two(vqtool, kinds):
    assert vqtool("sample", "prior.safetensors", "-n", 2, "--steps", 2, "--seed", 1, "-o", "few.h5").code == 0
    for output in ("min0.1", "min0.2"):
        assert vqtool("codebook", "prune", "few.h5", "--min-uses", 3, "-o", output).code == 0
        assert Path(f"{output}.map.safetensors").exists()


@pytest.fixture
def kinds(tmp_path, monkeypatch, tokenizer_path):
    """A folder with pictures, grids, a tokenizer and a prior."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 2)
    golden = Path(__file__).parents[1] / "golden" / "v0.2"
    for source, name in (("tok.h5", "g.h5"), ("prior.safetensors",) * 2, ("tokenizer.safetensors",) * 2):
        shutil.copyfile(golden / source, name)
