"""Reading other projects' files: hostile and broken ones do no harm, and what is wrong is said."""

import collections
import os
import pickle
import subprocess
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from vqtool import artifacts, interop
from vqtool.errors import FormatError, VqtoolError
from vqtool.interop import Source
from vqtool.interop._sources import read_yaml
from vqtool.interop._unpickling import Inert
from vqtool.interop.pickles import read_pickle
from vqtool.priors import load_prior
from vqtool.tokenizers import load_tokenizer


class Runs:
    """Has any function called when it is unpickled by Python itself."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize(
    "call",
    [
        lambda path: (os.system, f"touch {path}"),
        lambda path: (subprocess.check_call, ["touch", str(path)]),
        lambda path: (eval, f"open({str(path)!r}, 'w')"),
        lambda path: (exec, f"open({str(path)!r}, 'w')"),
        lambda path: (open, str(path), "w"),
        lambda path: (getattr, path, "touch"),
        lambda path: (__import__, "os"),
    ],
    ids=["os.system", "subprocess", "eval", "exec", "open", "getattr", "import"],
)
def test_a_hostile_pickle_executes_nothing(tmp_path, call, zipped):
    witness = tmp_path / "witness"
    function, *arguments = call(witness)
    torch.save(
        {"evil": Runs(function, *arguments), "good": torch.arange(3)},
        tmp_path / "evil.pt",
        _use_new_zipfile_serialization=zipped,
    )
    content = read_pickle(tmp_path / "evil.pt")
    assert not witness.exists()
    assert isinstance(content["evil"], Inert)
    assert content["good"].tolist() == [0, 1, 2]


def test_a_bare_hostile_pickle_executes_nothing(tmp_path):
    witness = tmp_path / "witness"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Runs(os.system, f"touch {witness}")))
    with pytest.raises(FormatError, match=r"evil\.pkl: not a checkpoint"):
        read_pickle(tmp_path / "evil.pkl")
    assert not witness.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_tensors_parameters_containers_and_numbers_come_through(tmp_path, zipped):
    state = collections.OrderedDict(a=torch.randn(2, 3), b=torch.arange(4, dtype=torch.float16))
    tree = {"state_dict": state, "p": nn.Parameter(torch.ones(2)), "step": 7, "list": [1.5, "x", None, (2, {3})]}
    torch.save({**tree, "dtype": torch.float16}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    content = read_pickle(tmp_path / "m.pt")
    assert all(torch.equal(content["state_dict"][name], tensor) for name, tensor in state.items())
    assert torch.equal(content["p"], tree["p"])
    assert content["dtype"] is torch.float16
    assert {name: content[name] for name in ("step", "list")} == {"step": 7, "list": tree["list"]}


def test_objects_of_classes_that_are_not_loaded_keep_their_state(tmp_path):
    torch.save({"args": Namespace(width=8)}, tmp_path / "m.pt")
    found = read_pickle(tmp_path / "m.pt")["args"]
    assert (found.name, found.state) == ("argparse.Namespace", {"width": 8})


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_checkpoint_cut_short_is_one_clear_error(tmp_path, share):
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    torch.save({"a": torch.randn(100, 100)}, whole)
    assert zipfile.is_zipfile(whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FormatError, match=r"cut\.pt: cut short"):
        read_pickle(cut)


def test_text_is_no_checkpoint(tmp_path):
    (tmp_path / "x.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(FormatError, match=r"x\.pt: not a checkpoint"):
        read_pickle(tmp_path / "x.pt")


def test_yaml_of_python_tuples_is_read_and_other_python_tags_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("size: !!python/tuple [32, 32]\n")
    assert read_yaml(tmp_path / "a.yaml") == {"size": [32, 32]}
    (tmp_path / "b.yaml").write_text(f"size: !!python/object/apply:os.system ['touch {tmp_path}/witness']\n")
    with pytest.raises(FormatError, match=r"b\.yaml: not a YAML file of settings"):
        read_yaml(tmp_path / "b.yaml")
    assert not (tmp_path / "witness").exists()


def test_fill_lists_what_is_missing_too_much_or_of_another_shape(tmp_path):
    source, module = Source(tmp_path / "m.pt"), nn.Linear(2, 3)
    weight, bias = torch.randn(3, 2), torch.randn(3)
    interop.fill(module, {"weight": weight, "bias": bias, "ema.x": bias}, source, ignored=[r"ema\..*"])
    assert torch.equal(module.weight, weight)
    with pytest.raises(FormatError, match=r"1 tensors are missing: net\.b"):
        interop.fill(module, {"weight": weight}, source, names={"bias": "net.b"})
    with pytest.raises(FormatError, match=r"not understood: ema\.x"):
        interop.fill(module, {"weight": weight, "bias": bias, "ema.x": bias}, source)
    with pytest.raises(FormatError, match=r"weight \(2, 3\) instead of \(3, 2\)"):
        interop.fill(module, {"weight": weight.T, "bias": bias}, source)


def test_a_source_of_no_known_format_is_described(tmp_path):
    torch.save({"apple": 1, "pear": torch.ones(1)}, tmp_path / "m.pt")
    with pytest.raises(FormatError, match="it holds the names apple, pear"):
        interop.recognise(interop.read_source(tmp_path / "m.pt"))
    with pytest.raises(VqtoolError, match="no such file or folder"):
        interop.read_source(tmp_path / "none.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match=r"it holds the files \(none\)"):
        interop.recognise(interop.read_source(tmp_path / "folder"))


def test_several_files_of_settings_beside_a_checkpoint_have_to_be_chosen_from(tmp_path):
    torch.save({"a": 1}, tmp_path / "m.pt")
    (tmp_path / "one.yaml").write_text("model: {a: 1}\n")
    assert interop.read_source(tmp_path / "m.pt").config == {"model": {"a": 1}}
    assert interop.read_source(tmp_path / "m.pt", Path("none")).config is None
    (tmp_path / "two.yaml").write_text("model: {a: 2}\n")
    with pytest.raises(VqtoolError, match=r"one\.yaml, two\.yaml are beside it"):
        interop.read_source(tmp_path / "m.pt")
    (tmp_path / "m.yaml").write_text("model: {a: 3}\n")
    assert interop.read_source(tmp_path / "m.pt").config == {"model": {"a": 3}}
    assert interop.read_source(tmp_path / "m.pt", tmp_path / "two.yaml").config == {"model": {"a": 2}}


def test_a_source_that_is_not_copied_lends_its_tensors_to_the_network(tmp_path):
    tensors = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    lent = interop.fill(lambda: nn.Linear(2, 3), tensors, Source(tmp_path / "m.pt", copies=False))
    assert lent.weight.data_ptr() == tensors["weight"].data_ptr()
    assert isinstance(lent.weight, nn.Parameter)
    copied = interop.fill(lambda: nn.Linear(2, 3), tensors, Source(tmp_path / "m.pt"))
    assert copied.weight.data_ptr() != tensors["weight"].data_ptr()
    assert torch.equal(copied(torch.ones(1, 2)), lent(torch.ones(1, 2)))
    half = {name: tensor.half() for name, tensor in tensors.items()}
    kept = interop.fill(lambda: nn.Linear(2, 3), half, Source(tmp_path / "m.pt", copies=False))
    assert kept.weight.dtype == torch.float16
    assert torch.equal(kept.weight, half["weight"])
    widened = interop.fill(lambda: nn.Linear(2, 3), half, Source(tmp_path / "m.pt"))
    assert widened.weight.dtype == torch.float32
    assert torch.equal(widened.weight, half["weight"].float())


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("hm-prior/ImageNet_96_tiny.pth", {"num_heads": 3}),
        ("ms-prior-class/tiny_pretrained.pth", {}),
        ("taming-vqgan/last.ckpt", {}),
        ("amused-pipeline", {}),
    ],
)
def test_a_converted_source_is_what_loading_it_gives(tmp_path, source, options):
    path, out = Path(__file__).parents[1] / "golden" / source, tmp_path / "a.safetensors"
    list(interop.convert(path, out, **options))
    loaded = interop.load(interop.read_source(path), interop.Options(**options))
    kind = artifacts.read_header(out).kind
    found = load_prior(out).denoiser if kind == "prior" else load_tokenizer(out)
    expected = loaded.prior.denoiser if kind == "prior" else loaded.tokenizer
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(found.state_dict()[name], value) for name, value in expected.state_dict().items())
