"""`vqtool info`: what it says about grids, streams and artifacts, and that it does so without torch."""

import json
import shutil
import subprocess
import sys

import pytest
from support.commands import shell
from support.exact import random_prior
from support.grids import HEADER, make_batch, write_file, write_stream

from vqtool import artifacts


def test_a_grid_file_is_described_by_its_own_header(tmp_path, vqtool):
    path = write_file(tmp_path / "tok.h5", make_batch(12))
    result = vqtool("info", path, "--json")
    found = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert (found["kind"], found["num_grids"], found["dtype"]) == ("token grids", 12, "uint16")
    assert (found["grid_size"], found["image_size"], found["codebook_size"]) == ([3, 5], [24, 40], 1024)
    assert found["tokenizer"] == {"fingerprint": "0123456789abcdef", "location": "builtin"}
    assert found["columns"] == ["caption", "id", "label"]
    assert found["history"] == list(HEADER.history)
    text = vqtool("info", path).out
    assert "12 of 3x5" in text
    assert "vqtool encode imgs/" in text


def test_the_grids_of_a_stream_are_counted(tmp_path, vqtool):
    write_stream(tmp_path / "s.h5", make_batch(5), make_batch(4, first=5))
    found = json.loads(vqtool("info", tmp_path / "s.h5", "--json").out)
    assert (found["num_grids"], found["digest"]) == (9, None)
    assert "9 of 3x5" in shell("$vqtool info < s.h5", tmp_path).out


def test_an_artifact_is_described_with_its_parameters_and_history(tokenizer_path, vqtool):
    header, tensors = artifacts.load(tokenizer_path)
    found = json.loads(vqtool("info", tokenizer_path, "--json").out)
    assert (found["kind"], found["fingerprint"]) == ("tokenizer", header.fingerprint)
    assert found["num_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert found["num_tensors"] == len(tensors)
    assert found["config"] == header.config
    assert f"fingerprint   {header.fingerprint}" in vqtool("info", tokenizer_path).out


def test_the_built_in_artifacts_are_described_with_their_model_cards(builtin, tokenizer_path, vqtool):
    shutil.copy(tokenizer_path, builtin / "tokenizer.safetensors")
    (builtin / "tokenizer.md").write_text("# Card\n\nLimits: few codes.\n")
    assert [*json.loads(vqtool("info", "builtin", "--json").out)] == ["file", "tokenizer"]
    random_prior().save(builtin / "prior.safetensors")
    (builtin / "prior.md").write_text("# Card of the prior\n")
    found = json.loads(vqtool("info", "builtin", "--json").out)
    for kind in ("tokenizer", "prior"):
        fingerprint = artifacts.read_header(builtin / f"{kind}.safetensors").fingerprint
        assert (found[kind]["kind"], found[kind]["fingerprint"]) == (kind, fingerprint)
    assert found["tokenizer"]["card"] == "# Card\n\nLimits: few codes."
    text = vqtool("info", "builtin").out
    for line in ("builtin tokenizer: tokenizer", "Limits: few codes.", "builtin prior: prior", "# Card of the prior"):
        assert f"{line}\n" in text


def test_the_cards_in_the_package_say_data_licences_training_scores_and_limits(vqtool):
    found = json.loads(vqtool("info", "builtin", "--json").out)
    for description in [*found.values()][1:]:
        for section in ("Data and licences", "Training", "Scores", "Limits"):
            assert f"\n## {section}" in description["card"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.h5", b"hello, hello, hello", "found text that begins with 'hello"),
        ("empty.h5", b"", "not a single byte"),
        ("short.h5", b"\x89HDF\r\n\x1a\n", "truncated"),
        ("bad.safetensors", (40).to_bytes(8, "little") + b'{"a": 1' + b" " * 33, "deserializing header"),
    ],
)
def test_a_file_it_does_not_know_is_one_line_of_error(tmp_path, vqtool, name, content, message):
    (tmp_path / name).write_bytes(content)
    result = vqtool("info", tmp_path / name)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_text_from_a_file_cannot_steer_the_terminal(tmp_path, vqtool):
    header = HEADER.with_step({"step": "evil", "command": "\x1b[2J\x07"})
    path = write_file(tmp_path / "a.h5", make_batch(1), header=header)
    assert r"\x1b[2J\x07" in vqtool("info", path).out
    assert "\x1b" not in vqtool("info", path).out


def test_looking_at_files_never_loads_torch(tmp_path, tokenizer_path):
    path = write_file(tmp_path / "tok.h5", make_batch(12))
    commands = [
        ["info", path],
        ["info", tokenizer_path],
        ["head", "-n", "3", path, "-o", tmp_path / "head.h5"],
        ["cat", path, path, "-o", tmp_path / "cat.h5"],
        ["check", path, tokenizer_path],
        ["--help"],
    ]
    script = f"""
import sys
sys.modules["torch"] = None  # importing it is now an error
from vqtool.cli.main import main
for arguments in {[[str(word) for word in command] for command in commands]}:
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, arguments
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
