"""Artifacts: what their fingerprint depends on, that no half file is ever seen, and what is said of bad ones."""

import hashlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys

import pytest
import torch
from safetensors import deserialize, safe_open
from safetensors.torch import save as to_bytes

from vqtool import artifacts
from vqtool.artifacts import history_record
from vqtool.errors import FormatError, VqtoolError
from vqtool.outputs import atomic_path

CONFIG = {"width": 3, "names": ["a", "b"], "sides": (1, 2)}
TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "number": torch.tensor(3),
    "empty": torch.empty(0, 4),
}


def save(path, *, config=CONFIG, tensors=TENSORS, **rest):
    return artifacts.save(path, **{"kind": "tokenizer", "config": config, "tensors": tensors, "force": True, **rest})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


def rewrite(path, change, data=lambda data: data):
    """Rewrite a safetensors file with another header."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data(raw[8 + length :]))


def change_vqtool_header(path, **fields):
    def change(header):
        header["__metadata__"]["vqtool"] = json.dumps({**json.loads(header["__metadata__"]["vqtool"]), **fields})

    rewrite(path, change)


def test_what_is_saved_is_loaded_bit_for_bit(path):
    written = save(path, parents={"tokenizer": "0123"}, history=[{"step": "made"}], summary={"loss": 0.5})
    header, tensors = artifacts.load(path, "tokenizer")
    assert header == written
    assert header == artifacts.read_header(path) == artifacts.verify(path)
    assert header.config == {"width": 3, "names": ["a", "b"], "sides": [1, 2]}
    assert (header.parents, header.history, header.summary) == (
        {"tokenizer": "0123"}, ({"step": "made"},), {"loss": 0.5},
    )  # fmt: skip
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert artifacts.tensor_shapes(path) == {"weight": (2, 3), "half": (2,), "number": (), "empty": (0, 4)}


def test_the_fingerprint_depends_on_content_and_not_on_order_or_history(path):
    first = save(path).fingerprint
    turned = dict(reversed(TENSORS.items()))
    assert save(path, tensors=turned, config=dict(reversed(CONFIG.items()))).fingerprint == first
    assert save(path, history=[{"step": "x"}], parents={"a": "b"}, summary={"s": 1}).fingerprint == first
    transposed = TENSORS["weight"].T.contiguous().T  # other strides, equal numbers
    assert save(path, tensors={**TENSORS, "weight": transposed}).fingerprint == first


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "prior"},
        {"config": {**CONFIG, "width": 4}},
        {"config": {**CONFIG, "more": None}},
        {"tensors": {**TENSORS, "weight": TENSORS["weight"].nextafter(torch.tensor(9.0))}},
        {"tensors": {**TENSORS, "weight": TENSORS["weight"].reshape(3, 2)}},
        {"tensors": {**TENSORS, "weight": TENSORS["weight"].view(torch.int32)}},
        {"tensors": {**TENSORS, "another": torch.empty(0)}},
        {"tensors": {name: tensor for name, tensor in TENSORS.items() if name != "empty"}},
        {"tensors": {**TENSORS, "half": TENSORS["number"], "number": TENSORS["half"]}},
    ],
)
def test_any_change_of_kind_config_or_tensors_changes_the_fingerprint(path, changes):
    assert save(path, **changes).fingerprint != save(path).fingerprint


def test_the_fingerprint_is_sha256_as_written_down(path):
    """By hand, so that files out there stay valid."""
    found = save(path, config={"b": 2, "a": 1}, tensors={"y": torch.tensor([1.0, 2.0]), "x": torch.tensor(7)})
    text = b'tokenizer\n{"a": 1, "b": 2}\nx I64 []\n' + struct.pack("<q", 7) + b"y F32 [2]\n" + struct.pack("<2f", 1, 2)
    assert found.fingerprint == hashlib.sha256(text).hexdigest()[:16]


def fail_midway(path, error):
    with atomic_path(path, force=True) as temporary:
        temporary.write_text("half")
        raise error


def test_a_block_that_fails_leaves_nothing(path, tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_midway(path, ZeroDivisionError)
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_fails_leaves_the_old_file(path, tmp_path):
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fail_midway(path, KeyboardInterrupt)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_appears_when_the_block_ends_with_the_permissions_of_any_new_file(path, tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_existing_file_is_kept_without_force(path):
    path.write_text("old")
    with pytest.raises(VqtoolError, match="exists; use `force`"), atomic_path(path):
        pytest.fail("the block must not run")
    with pytest.raises(VqtoolError, match="exists; use `force`"):
        save(path, force=False)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "is a folder"),
        ("missing/a.safetensors", "the folder .*missing does not exist"),
        ("file/a.safetensors", "the folder .*file does not exist"),
        ("/dev/full", "is a pipe or a device"),
        ("-", "does not go to standard output"),
    ],
)
def test_places_where_no_file_can_stand_are_named(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(VqtoolError, match=message):
        save(tmp_path / name if name != "-" else "-")


def test_a_folder_that_takes_no_files_is_named():
    with pytest.raises(VqtoolError, match=r"/proc/a\.safetensors: cannot be written: "):
        save("/proc/a.safetensors")


def test_a_file_that_outgrows_the_disk_is_one_clear_error_and_leaves_nothing(path, tmp_path):
    """A limit on the size of files stands in for a full disk: writes fail in the same way."""
    save(path)
    old = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(VqtoolError, match=r"a\.safetensors: cannot be written: "):
            save(path, tensors={"large": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file(path):
    save(path)
    old = path.read_bytes()
    code = f"""
import os, signal
from vqtool.outputs import atomic_path
with atomic_path({str(path)!r}, force=True) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == old


def test_a_truncated_file_says_so(path):
    save(path)
    raw = path.read_bytes()
    for size in (0, 5, 40, len(raw) - 30, len(raw) - 1):
        path.write_bytes(raw[:size])
        for read in (artifacts.read_header, artifacts.load, artifacts.verify):
            with pytest.raises(FormatError, match=r"a\.safetensors: (truncated|not a safetensors file)"):
                read(path)
    path.write_bytes(raw + b"more")
    with pytest.raises(FormatError, match="damaged: "):
        artifacts.read_header(path)


def test_every_flipped_bit_of_the_data_is_found(path):
    save(path, tensors={"x": torch.arange(5.0)})
    raw = bytearray(path.read_bytes())
    for position in range(len(raw) - 20, len(raw)):
        raw[position] ^= 1 << position % 8
        path.write_bytes(raw)
        for read in (artifacts.load, artifacts.verify):
            with pytest.raises(FormatError, match="damaged: its content has fingerprint"):
                read(path)
        raw[position] ^= 1 << position % 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a safetensors file"),
        (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
        ((12).to_bytes(8, "little") + b"not json at ", "not a safetensors file"),
        ((4).to_bytes(8, "little") + b"[1] ", "not a safetensors file"),
        ((9).to_bytes(8, "little") + b'{"a": 12}', "truncated or damaged: .*header"),
        (
            (26).to_bytes(8, "little") + b'{"a": {"data_offsets": 1}}',
            "truncated or damaged: .*header",
        ),
        (to_bytes({"x": torch.zeros(2)}), "not made by vqtool"),
        (to_bytes({"x": torch.zeros(2)}, metadata={"format": "pt"}), "not made by vqtool"),
        (to_bytes({"x": torch.zeros(2)}, metadata={"vqtool": "[]"}), "its vqtool header is damaged"),
        (to_bytes({"x": torch.zeros(2)}, metadata={"vqtool": "{"}), "its vqtool header is damaged"),
        (to_bytes({"x": torch.zeros(2)}, metadata={"vqtool": '{"kind": "a"}'}), "its vqtool header is damaged"),
    ],
)
def test_a_foreign_file_says_what_it_is_not(path, content, message):
    path.write_bytes(content)
    for read in (artifacts.read_header, artifacts.load):
        with pytest.raises(FormatError, match=message) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_a_later_version_is_told_from_damage_even_if_it_has_other_fields(path):
    save(path)
    change_vqtool_header(path, format_version=2, spin="up")
    with pytest.raises(FormatError, match="format version 2, this vqtool reads up to 1: upgrade"):
        artifacts.read_header(path)
    change_vqtool_header(path, format_version=1)
    with pytest.raises(FormatError, match=r"its vqtool header is damaged: .*spin"):
        artifacts.read_header(path)


def test_another_kind_is_refused_by_name(path):
    save(path, kind="prior")
    with pytest.raises(FormatError, match="a prior, but a tokenizer is needed"):
        artifacts.load(path, "tokenizer")


def test_missing_files_and_folders_cannot_be_read(tmp_path):
    for place in (tmp_path / "missing", tmp_path):
        with pytest.raises(VqtoolError, match="cannot be read: "):
            artifacts.read_header(place)


def test_headers_are_read_and_files_verified_without_torch(path):
    save(path)
    code = f"""
import sys
from vqtool import artifacts
print(artifacts.verify({str(path)!r}).kind, artifacts.tensor_shapes({str(path)!r})["weight"])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "tokenizer (2, 3)\n"


def test_a_history_record_holds_the_command_as_one_would_type_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{os.sep}bin{os.sep}vqtool", "encode", "my images", "-o", "tok.h5"])
    record = history_record("encode", inputs={"tokenizer": "0123"}, seed=7, note="x")
    assert record["command"] == "vqtool encode 'my images' -o tok.h5"
    assert (record["step"], record["inputs"], record["seed"], record["note"]) == (
        "encode", {"tokenizer": "0123"}, 7, "x",
    )  # fmt: skip
    assert "seed" not in history_record("encode")
    monkeypatch.setattr(sys, "argv", ["/somewhere/vqtool/__main__.py", "info"])
    assert history_record("info")["command"] == "vqtool info"


def test_files_are_those_of_safetensors_with_every_type_and_empty_tensors(tmp_path):
    types = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    ]
    types += [torch.int16, torch.int8]
    tensors = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in types}
    tensors |= {"empty": torch.zeros(0, 4), "number": torch.tensor(3.5), "turned": torch.arange(6.0).view(2, 3).T}
    path = tmp_path / "a.safetensors"
    header = artifacts.save(path, kind="tokenizer", config={"a": 1}, tensors=tensors)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_tensor(name).dtype == tensor.dtype
    content = deserialize(path.read_bytes())
    assert artifacts.fingerprint("tokenizer", {"a": 1}, content) == header.fingerprint
    assert artifacts.verify(path) == header


@pytest.mark.parametrize("num", [0, 1, 2, 3, 4, 7])
def test_a_digest_of_texts_is_that_of_their_json_list_in_however_many_pieces(monkeypatch, num):
    monkeypatch.setattr(artifacts, "_TEXTS", 2)
    texts = [f'"{number}", ü' for number in range(num)]
    expected = f"sha256:{hashlib.sha256(json.dumps(texts).encode()).hexdigest()}"
    assert artifacts.text_digest(iter(texts)) == artifacts.text_digest(texts) == expected
