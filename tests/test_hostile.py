"""What a file may do to its reader: one test a kind of attack or damage, each with the right answer in one line."""

import io
import json
import os
import pickle
import resource
import shutil
import sys
import types
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from support.commands import error_lines

from vqtool import artifacts, interop, load_prior, load_tokenizer, trust
from vqtool.conditions.text_encoders import Config as TextConfig
from vqtool.conditions.text_encoders import TextEncoder, load_text_encoder, save_text_encoder
from vqtool.errors import FormatError
from vqtool.images.sources.numpy_arrays import find_in_numpy
from vqtool.interop._sources import read_yaml
from vqtool.interop.pickles import read_pickle, read_script
from vqtool.metrics.compare.scores import read_features

GOLDEN = Path(__file__).parent / "golden"
OLD = GOLDEN / "v0.2"
CHECKPOINT = next((GOLDEN / "ut-absorbing").glob("*.th"))


def refused(function, *arguments):
    """The message of a refusal: one line that begins with the name of the file."""
    with pytest.raises(FormatError) as error:
        function(*arguments)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(arguments[0]))
    return message


def archive(path, program, **records):
    """A file as torch.save makes it, of a pickle and records of storages."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x/data.pkl", program)
        for name, data in records.items():
            made.writestr(f"x/data/{name}", data)
    return path


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, _Row) else None


@dataclass
class _Row:
    """A storage in a pickle."""

    count: int
    key: str = "0"

    @property
    def pid(self):
        return "storage", torch.FloatStorage, self.key, "cpu", self.count


def program(value):
    made = io.BytesIO()
    _Pickler(made, 2).dump(value)
    return made.getvalue()


def tensor(row, size, stride, offset=0):
    return _Call(torch._utils._rebuild_tensor_v2, row, offset, size, stride, False, {})


# 1. Nothing is run.


class _Evil(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.zeros(1)

    def forward(self, x):
        return x


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "x.pt"
    torch.jit.script(_Evil()).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_recognised_and_not_run(script, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))
    for read in (read_pickle, interop.read_source, interop.read_code_map):
        assert "a TorchScript program, which is not run" in refused(read, script)


class _Names(dict):
    """Pickles as an object of a class of a TorchScript program, with these attributes."""

    def __reduce__(self):
        return _Module, (), dict(self)


class _Module:
    pass


_Module.__module__, _Module.__qualname__ = "__torch__.x", "Module"


def script_of(path, attributes, monkeypatch):
    """An archive of a TorchScript program that holds a module."""
    fake = types.ModuleType("__torch__.x")
    fake.Module = _Module
    monkeypatch.setitem(sys.modules, "__torch__", types.ModuleType("__torch__"))
    monkeypatch.setitem(sys.modules, "__torch__.x", fake)
    archive(path, program(attributes), **{"0": bytes(8)})
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("x/constants.pkl", b"cos\nsystem\n(X\x04\x00\x00\x00exittR.")
        made.writestr("x/code/__torch__.py", b"exit()")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"exit()", b"quit()"))  # another CRC: whoever reads it fails
    return path


def test_of_a_torchscript_program_only_attributes_are_read(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    inner = _Names(weight=tensor(_Row(2), (2,), (1,)), call=_Call(os.system, f"touch {canary}"))
    path = script_of(tmp_path / "x.pt", _Names(a=_Names(b=inner), plain=1, listed=[inner]), monkeypatch)
    assert {name: value.tolist() for name, value in read_script(path).items()} == {"a.b.weight": [0, 0]}
    assert not canary.exists()
    assert "which is not run" in refused(read_pickle, path)
    assert "which is not run" in refused(interop.read_source, path)


def test_modules_in_one_another_end(tmp_path, monkeypatch):
    loop = _Module()
    loop.inside = loop
    loop.weight = tensor(_Row(2), (2,), (1,))
    path = script_of(tmp_path / "x.pt", loop, monkeypatch)
    assert list(read_script(path)) == ["weight"]
    path = script_of(tmp_path / "y.pt", _Names({"a" * 300: 1}), monkeypatch)
    assert "names that none can have" in refused(read_script, path)
    path = script_of(tmp_path / "z.pt", _Names(weight=tensor(_Row(9), (9,), (1,))), monkeypatch)
    assert "has 8 bytes for 9 numbers" in refused(read_script, path)
    assert "not a TorchScript program" in refused(read_script, archive(path, program({})))


def test_a_pickle_reaches_nothing_but_tensors_and_containers(tmp_path):
    canary = tmp_path / "canary"
    value = {"a": _Call(os.system, f"touch {canary}"), "b": _Call(eval, "1"), "c": _Call(getattr, "", "join")}
    found = read_pickle(archive(tmp_path / "x.pt", program(value)))
    assert not canary.exists()
    assert [type(part).name.rpartition(".")[2] for part in found.values()] == ["system", "eval", "getattr"]


# 3. No more is taken than is there.


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor(_Row(2), (1 << 40,), (0,)), "a tensor of 1099511627776 numbers in a storage of 2"),
        (tensor(_Row(2), (2,), (1,), 1), "a tensor of 2 numbers in a storage of 2"),
        (tensor(_Row(2), (2,), (-1,), 1), "describes a tensor that none can be"),
        (tensor(_Row(1 << 40), (2,), (1,)), "has 8 bytes for 1099511627776 numbers"),
        (tensor(_Row(2, "7"), (2,), (1,)), "its record data/7 is missing"),
        ({"a": "b"}, None),
    ],
)
def test_tensors_lie_within_their_storages(tmp_path, value, message):
    path = archive(tmp_path / "x.pt", program(value), **{"0": bytes(8)})
    if message is None:
        assert read_pickle(path) == value
    else:
        assert message in refused(read_pickle, path)


def test_a_storage_is_not_used_again_and_again(tmp_path):
    size = 1 << 20
    shared = [tensor(_Row(size), (size,), (1,)) for _ in range(40)]
    path = archive(tmp_path / "x.pt", program(shared), **{"0": bytes(4 * size)})
    assert "use its storages more than 8 times" in refused(read_pickle, path)
    assert len(read_pickle(archive(path, program(shared[:2]), **{"0": bytes(4 * size)}))) == 2


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"\x80\x02}r\xff\xff\xff\x0f.", "numbers what it does not hold"),  # 4 GB for a memo
        (b"\x80\x02)" + b"\x85" * 100_000 + b".", "deep in one another"),  # comparing it ends the process
        (b"\x80\x04\x8e" + (1 << 50).to_bytes(8, "little") + b".", "not a checkpoint that can be read"),
        (b"\x80\x02c__builtin__\nset\n(K\x01K\x02tR.", "not a checkpoint that can be read"),
        (b"", "not a checkpoint that can be read"),
    ],
)
def test_the_instructions_of_a_pickle_are_read_through_before_they_are_followed(tmp_path, code, message):
    assert message in refused(read_pickle, archive(tmp_path / "x.pt", code))


def test_a_record_that_stands_before_the_file_is_damage(tmp_path):
    path = archive(tmp_path / "x.pt", program({}))
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x05\x06") + 16] += 9  # where the list of the records begins
    path.write_bytes(raw)
    assert "not a checkpoint that can be read" in refused(read_pickle, path)


def test_an_archive_that_unpacks_to_more_than_its_size_allows_is_not_unpacked(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        made.writestr("x/data.pkl", program({}))
        made.writestr("x/data/0", bytes(1 << 28))
    assert "claims 268,435,4" in refused(read_pickle, path)


def test_a_file_of_holes_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    size = 1 << 40
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)
    for read in (artifacts.read_header, interop.read_source, load_tokenizer):
        assert "where" in refused(read, path)


def test_a_map_of_codes_is_read_by_the_same_rules_and_is_whole_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("torch.jit.load was called"))
    path = tmp_path / "map.pt"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x/constants.pkl", b"")
    assert "a TorchScript program, which is not run" in refused(interop.read_code_map, path)
    torch.save(torch.zeros(1, dtype=torch.long).expand(10**9), path)
    assert "in a storage of 1" in refused(interop.read_code_map, path)
    for wrong in (torch.tensor([1j]), torch.tensor([True]), torch.tensor([0.0]), torch.tensor([[0]]), [0]):
        torch.save(wrong, path)
        assert "one row of whole numbers is expected" in refused(interop.read_code_map, path)
    torch.save(torch.tensor([1, 0], dtype=torch.uint8), path)
    assert interop.read_code_map(path).tolist() == [1, 0]


@pytest.mark.parametrize("rows", [None, 10**6, 10**12, 10**30])
def test_features_that_claim_more_rows_than_their_file_has_take_no_memory(tmp_path, rows):
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        if rows is not None:
            claim = {"descr": "<f4", "fortran_order": False, "shape": (rows, 1280)}
            np.lib.format.write_array_header_1_0(file, claim)
            file.write(bytes(4000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "not a .npy file of numbers" in refused(read_features, path, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_an_array_of_numpy_may_not_be_of_holes(tmp_path):
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 1280)})
        file.truncate(file.tell() + 10**7 * 1280 * 4)
    assert "are stored: that is not taken" in refused(read_features, path, None)
    assert "are stored: that is not taken" in refused(find_in_numpy, path)


def test_json_of_many_levels_or_digits_is_refused():
    for text in ("[" * 100_000, "[" * 100 + "]" * 100, '{"a":' * 70 + "0" + "}" * 70):
        with pytest.raises(FormatError, match=r"x: (not JSON|more than 64 levels)"):
            trust.parse_json(text, "x")
    with pytest.raises(FormatError, match="x: not JSON: a number of 5000 digits"):
        trust.parse_json("9" * 5000, "x")
    assert trust.parse_json("[" * 60 + "]" * 60, "x") is not None


def test_yaml_of_aliases_of_aliases_levels_or_python_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    rows = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    for text in (
        "\n".join(rows),
        "a: " + "[" * 5000,
        "a: !!python/object/apply:os.system ['true']",
        "? [a]\n: b",
        "a: 2020-13-45",
    ):
        path.write_text(text)
        assert "not a YAML file of settings" in refused(read_yaml, path)
    path.write_text("a: &a [1]\nb: *a\nc: !!python/tuple [1, 2]")
    assert read_yaml(path) == {"a": [1], "b": [1], "c": [1, 2]}


def forged(path, target, change):
    """An artifact with another config, and the fingerprint that goes with it."""
    header, tensors = artifacts.load(path)
    config = json.loads(json.dumps(header.config))
    change(config, tensors)
    artifacts.save(target, kind=header.kind, config=config, tensors=tensors, force=True)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 1 << 31}, "denoiser: its config makes no network: it has more tensors than the"),
        ({"num_layers": 1 << 40}, "num_layers: a whole number from 0 to 2147483648 is expected, not 1099511627776"),
        ({"width": 1 << 30}, "denoiser: its config makes no network"),
        ({"width": True}, "width: a number is expected, not True"),
        ({"codebook_size": 7}, "denoiser: tokens.weight has shape (7, 8) instead of (8, 8)"),
        ({"num_heads": 7}, "a width of 8 cannot be shared by 7 heads"),
        ({"num_heads": 0}, "a width of 8 cannot be shared by 0 heads"),
        ({"grid_size": [-1, 4]}, "grid_size: a whole number from 0 to"),
        ({"grid_size": [2]}, "grid_size: a list of 2 is expected, not list of 1"),
        ({"num_steps": 9}, "its parts do not fit together: steps are 9 and 8"),
        ({"name": []}, "unknown denoiser []"),
        ({"name": "os"}, "unknown denoiser 'os'"),
        ({"wings": 1}, "'wings' is not known here"),
    ],
)
def test_the_config_of_a_denoiser_is_compared_with_its_tensors_before_it_is_built(tmp_path, change, message):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = forged(OLD / "prior.safetensors", tmp_path / "x", lambda config, _: config["denoiser"].update(change))
    assert message in refused(load_prior, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("condition", {"max_length": 0}, "captions of 0 tokens"),
        ("condition", {"max_length": 7}, "max_length are"),
        ("condition", {"examples": "text"}, "examples: a list is expected, not 'text'"),
        ("condition", {"vocabulary": "morse"}, "upgrade it"),
        ("kernel", {"num_steps": 4}, "alpha_bar must be float64 of length 5"),
        ("kernel", {"name": "gauss"}, "unknown kernel 'gauss'"),
        ("origin", {"grid_size": [0, 3]}, "cells are (2, 3) and (0, 3)"),
        ("origin", {"tokenizer_location": 3}, "tokenizer_location: a text is expected, not 3"),
        ("origin", {"image_size": [16384, 16384]}, "image_size 16384x16384 does not fit grids of 2x3 cells"),
    ],
)
def test_the_other_parts_of_a_prior_are_checked_as_they_are_read(tmp_path, part, change, message):
    path = forged(OLD / "prior.safetensors", tmp_path / "x", lambda config, _: config[part].update(change))
    assert message in refused(load_prior, path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * 40, "vocabulary: not JSON"),
        (b"{}", "vocabulary: vocab is missing"),
        (b'{"model": {"vocab": {"a": 5}, "merges": []}}', "its tokens are not numbered from 0 on"),
        (b'{"model": {"vocab": {"a": 0}, "merges": ["a b"]}}', "its merges are not those of its tokens"),
        (b'{"model": {"vocab": {"a": 0}, "merges": []}}', "vocabulary_size are"),
    ],
)
def test_a_vocabulary_is_read_as_tokens_and_merges_alone(tmp_path, data, message):
    def change(config, tensors):
        tensors["condition.vocabulary"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)

    assert message in refused(load_prior, forged(OLD / "prior.safetensors", tmp_path / "x", change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 1 << 31}, "codebook has shape (6, 2) instead of (2147483648, 2)"),
        ({"encoder_blocks": [1, 1 << 31, 1]}, "it has more tensors than the"),
        ({"channels": [4, 4, 1 << 30]}, "its config makes no network"),
        ({"channels": 3}, "channels: a list is expected, not 3"),
        ({"num_full_codes": 9}, "tensors are missing: code_map, full_codebook"),
        ({"network": ["vqvae"]}, "network ['vqvae'] is not known"),
        ({"lookup": 2}, "lookup: a text is expected, not 2"),
    ],
)
def test_the_config_of_a_tokenizer_is_compared_with_its_tensors_before_it_is_built(tmp_path, change, message):
    path = forged(OLD / "tokenizer.safetensors", tmp_path / "x", lambda config, _: config.update(change))
    assert message in refused(load_tokenizer, path)


def plugin_grids(path, rows):
    """Token grids packed by a filter that HDF5 would load from a folder of plugins."""
    shutil.copyfile(OLD / "tok.h5", path)
    with h5py.File(path, "r+") as file:
        shape = (rows, *file["tokens"].shape[1:])
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((min(rows, 1000), *shape[1:]))
        settings.set_filter(40000, h5py.h5z.FLAG_OPTIONAL, ())
        kind, space = h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple(shape)
        del file["tokens"]
        h5py.h5d.create(file.id, b"tokens", kind, space, settings)


def forge_all(folder):
    """A forged file of each kind that commands read, beside what they need."""
    for name in ("tok.h5", "tokenizer.safetensors", "prior.safetensors"):
        shutil.copyfile(OLD / name, folder / name)
    plugin_grids(folder / "filter.h5", 4)
    plugin_grids(folder / "huge.h5", 10**8)
    many = json.dumps(
        {"model": {"vocab": {"a" * 1000 + str(n): 10**9 + n for n in range(1000)}, "merges": []}}
    ).encode()

    def change(config, tensors):
        tensors["condition.vocabulary"] = torch.frombuffer(bytearray(many), dtype=torch.uint8)

    forged(OLD / "prior.safetensors", folder / "words.safetensors", change)
    shared = [tensor(_Row(1 << 20), (1 << 20,), (1,)) for _ in range(1000)]
    archive(folder / "shared.pt", program(shared), **{"0": bytes(4 << 20)})
    (folder / "out.json").write_text(json.dumps({"kind": "comparison of samplers", "rows": [{"values": [[[[]]]]}]}))
    (folder / "deep.json").write_text('{"rows": ' + "[" * 1000 + "]" * 1000 + "}")
    os.truncate(shutil.copyfile(folder / "out.json", folder / "holes.json"), 1 << 40)


COMPARE = "compare prior.safetensors --sampler fewer --steps 2 -n 2 --seeds 0 --resume -o"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        *((f"{command} filter.h5 {rest}", "filter.h5: 'tokens' is packed by 40000") for command, rest in (
            ("info", ""), ("head", "-o x.h5"), ("cat", "-o x.h5"), ("decode", "-o x"), ("show", "-o x.png"),
            ("train-prior", "--size tiny -o x.safetensors"), ("codebook usage", ""), ("eval", "-o x.json"),
            ("inpaint", "-p prior.safetensors --mask left-half -o x.h5"),
        )),
        *((f"{command} huge.h5", "cannot be in a file of") for command in ("info", "decode", "eval", "head")),
        *((f"{command} words.safetensors {rest}", "words.safetensors: vocabulary: its tokens are not numbered") for
            command, rest in (("sample", "--caption red -o x.h5"), ("compare", "--caption red -o x.json"))),
        ("inpaint tok.h5 -p words.safetensors --mask left-half -o x.h5", "vocabulary: its tokens are not numbered"),
        ("train-prior tok.h5 --from words.safetensors -o x.safetensors", "vocabulary: its tokens are not numbered"),
        ("import shared.pt -o x.safetensors", "shared.pt: damaged: its tensors use its storages more than 8 times"),
        ("import prior.safetensors --code-map shared.pt -o x.safetensors", ""),
        (f"{COMPARE} out.json", "out.json: damaged: row 0 of the comparison: "),
        (f"{COMPARE} deep.json", "deep.json: "),
        (f"{COMPARE} holes.json", "holes.json: claims 1,099,511,627,776 bytes"),
    ],
)  # fmt: skip
def test_forged_files_are_refused_in_one_line_and_little_memory(tmp_path, monkeypatch, vqtool, line, why):
    monkeypatch.chdir(tmp_path)
    forge_all(tmp_path)
    before, there = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sorted(tmp_path.iterdir())
    result = vqtool(*line.split())
    assert result.code == 1
    (error,) = error_lines(result.err)
    assert why in error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kB
    assert sorted(tmp_path.iterdir()) == there


# 4. What is damaged says so.


def test_a_flipped_bit_of_any_record_of_a_checkpoint_is_found(tmp_path):
    raw = bytearray(CHECKPOINT.read_bytes())
    raw[len(raw) // 2] ^= 0x40
    path = tmp_path / "x.th"
    path.write_bytes(raw)
    assert "Bad CRC-32" in refused(read_pickle, path)


def _spoil(name, value):
    def change(config, tensors):
        tensors[name].view(-1)[0] = value

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    for file, load, name in (
        ("tokenizer", load_tokenizer, "codebook"),
        ("prior", load_prior, "denoiser.head.bias"),
    ):
        path = forged(OLD / f"{file}.safetensors", tmp_path / "x", _spoil(name, value))
        assert f"{name.removeprefix('denoiser.')} holds numbers that are not finite" in refused(load, path)
    encoder = TextEncoder(TextConfig(20, 5, 8, 1, 2, 16))
    encoder.norm.bias.data[0] = value
    save_text_encoder(tmp_path / "t", encoder)
    assert "norm.bias holds numbers that are not finite" in refused(load_text_encoder, tmp_path / "t")
    state = read_pickle(CHECKPOINT)
    state["_denoise_fn.head.weight"] = state["_denoise_fn.head.weight"].clone().fill_(value)
    torch.save(state, tmp_path / "x.th")
    source = interop.read_source(tmp_path / "x.th")
    with pytest.raises(FormatError, match=r"x\.th: _denoise_fn\.head\.weight holds numbers that are not finite"):
        interop.load(source, interop.Options(num_heads=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_of_any_artifact_are_finite(tmp_path, dtype, value):
    path, numbers = tmp_path / "x.safetensors", torch.zeros(3, dtype=dtype)
    numbers[1] = torch.finfo(dtype).max
    for kind in ("tokenizer", "prior", "training-state", "adapter", "text-encoder", "code-map"):
        numbers[2] = -torch.finfo(dtype).tiny
        tensors = {"whole": numbers, "tokens": torch.tensor([-1, 2**62]), "none": torch.empty(0)}
        header = artifacts.save(path, kind=kind, config={}, tensors=tensors, force=True)
        assert artifacts.verify(path) == header
        numbers[2] = value
        artifacts.save(path, kind=kind, config={}, tensors={"weight": numbers}, force=True)
        for read in (artifacts.verify, artifacts.load):
            assert "weight holds numbers that are not finite: the weights are damaged" in refused(read, path)


# 6. No unforeseen error for any bytes.


@dataclass(frozen=True)
class Inner:
    """Part of a record."""

    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """A record of every type."""

    name: str
    count: int
    share: float
    inner: Inner
    pair: tuple[int, str] | None = None
    notes: dict[str, str] | None = None


WHOLE = {"name": "a", "count": 2, "share": 1, "inner": {"sizes": [1, 2]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name: a text is expected, not None"),
        ({"count": -1}, "count: a whole number from 0 to 2147483648 is expected, not -1"),
        ({"count": 1.5}, "count: a whole number from 0 to 2147483648 is expected, not 1.5"),
        ({"share": float("nan")}, "share: a number is expected, not nan"),
        ({"share": 10**400}, "share: a number is expected"),
        ({"inner": {"sizes": [1, "x"]}}, "inner: sizes: a number is expected, not 'x'"),
        ({"inner": []}, "inner: names and values are expected, not list of 0"),
        ({"pair": [1]}, "pair: a list of 2 is expected, not list of 1"),
        ({"notes": {"a": 1}}, "notes: a text is expected, not 1"),
        ({"more": 1}, "'more' is not known here; known are name, count, share, inner, pair, notes"),
    ],
)
def test_a_record_has_every_field_of_its_type(change, message):
    assert trust.parse_record(Record, WHOLE, "x") == Record("a", 2, 1.0, Inner((1, 2)))
    with pytest.raises(FormatError) as error:
        trust.parse_record(Record, {**WHOLE, **change}, "x.json")
    assert str(error.value).startswith(f"x.json: {message}")
    without = {name: value for name, value in WHOLE.items() if name not in change}
    if len(without) < len(WHOLE):
        with pytest.raises(FormatError, match="is missing"):
            trust.parse_record(Record, without, "x.json")


def test_a_pickle_of_many_numbers_is_no_deep_one(tmp_path):
    value = {"losses": [0] * 300_000}
    assert read_pickle(archive(tmp_path / "x.pt", program(value))) == value
