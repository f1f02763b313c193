"""Priors on the states of a frozen text encoder: imported on its own, asked once a caption, kept beside the grids."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.text_priors import random_encoder, text_prior

from vqtool import interop
from vqtool.captions import join_captions
from vqtool.conditions.clip import ClipCondition
from vqtool.conditions.text_encoders import TextEncoder, load_text_encoder, save_text_encoder
from vqtool.errors import FormatError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.interop import Options
from vqtool.interop.transformers import export_text_encoder
from vqtool.priors import load_prior
from vqtool.progress import ignore, silent
from vqtool.samplers import condition, sample
from vqtool.training import data as training_data
from vqtool.training._order import step_items
from vqtool.training.data import build_data
from vqtool.training.prior import train_prior
from vqtool.training.texts import KeptTexts, keep_texts

GOLDEN = Path(__file__).parents[1] / "golden" / "df-pipeline"
CAPTIONS = ["a red boat", join_captions(["two dogs", "some dogs"]), "", "a red boat"] * 3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a text encoder with its vocabulary, as transformers saves both."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "text_encoder", "clip")
    for file in (GOLDEN / "tokenizer").iterdir():
        shutil.copy(file, "clip")
    return Path("clip")


def write_grids(path="tok.h5", captions=CAPTIONS):
    header = GridHeader(5, (2, 3), (16, 24), "0" * 16, "nowhere.safetensors", "")
    tokens = np.random.default_rng(0).integers(0, 2, (len(captions), 2, 3)).astype(np.uint32)
    with GridWriter(Path(path), header) as writer:
        writer.write(GridBatch(tokens, [str(i) for i in range(len(captions))], captions=captions))


def test_a_folder_of_a_text_encoder_becomes_an_artifact_that_reads_captions(folder, vqtool):
    result = vqtool("import", folder, "-o", "clip.safetensors")
    assert result.code == 0, result.err
    assert "clip: clip-text" in result.err
    expected = interop.load(interop.read_source(GOLDEN), Options())
    encoder = load_text_encoder("clip.safetensors")
    ids = expected.prior.conditioner.encode(["a red boat", None])
    assert torch.equal(encoder.captions.encode(["a red boat", None]), ids)
    assert torch.equal(encoder(ids), expected.text_encoder(ids))
    again = save_text_encoder("again.safetensors", encoder)
    assert load_text_encoder("again.safetensors", fingerprint=again.fingerprint).captions.pad == encoder.captions.pad


def openai_tensors():
    theirs = {"positional_embedding": torch.zeros(9, 64), "text_projection": torch.zeros(64, 64)}
    theirs |= {"token_embedding.weight": torch.rand(49408, 64), "visual.class_embedding": torch.zeros(3)}
    theirs |= {f"ln_final.{part}": torch.ones(64) for part in ("weight", "bias")}
    block = {"attn.in_proj_weight": (192, 64), "attn.in_proj_bias": (192,), "attn.out_proj.weight": (64, 64)}
    block |= {"attn.out_proj.bias": (64,), "mlp.c_fc.weight": (128, 64), "mlp.c_fc.bias": (128,)}
    block |= {"mlp.c_proj.weight": (64, 128), "mlp.c_proj.bias": (64,)}
    block |= {f"{norm}.{part}": (64,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    theirs |= {f"transformer.resblocks.0.{name}": torch.rand(shape) for name, shape in block.items()}
    return theirs


def test_weights_in_the_layout_of_openai_are_read_with_the_standard_vocabulary(tmp_path):
    theirs = openai_tensors()
    torch.save(theirs, tmp_path / "ViT-B-32.pt")
    source = interop.read_source(tmp_path / "ViT-B-32.pt")
    assert interop.recognise(source) == "clip-text"
    found = interop.load(source, Options())
    assert isinstance(found.text_encoder.captions, ClipCondition)
    assert (found.text_encoder.config.num_heads, found.text_encoder.captions.max_length) == (1, 9)
    assert any("standard" in note for note in found.notes)
    theirs["token_embedding.weight"] = torch.zeros(50, 64)
    torch.save(theirs, tmp_path / "ViT-B-32.pt")
    with pytest.raises(FormatError, match="vocabulary has 49408 tokens, the text encoder 50"):
        interop.load(interop.read_source(tmp_path / "ViT-B-32.pt"), Options())


class _Program(torch.nn.Module):
    """Modules in one another that hold tensors, with a method."""

    def __init__(self, tensors):
        super().__init__()
        self.input_resolution = 224
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(last, torch.nn.Parameter(tensor.half()))

    def forward(self, x):
        return x @ self.text_projection


@pytest.mark.filterwarnings("ignore")
def test_the_torchscript_program_of_openai_is_read_without_running_it(tmp_path, monkeypatch, vqtool):
    monkeypatch.chdir(tmp_path)
    theirs = openai_tensors()
    torch.save({name: tensor.half() for name, tensor in theirs.items()}, tmp_path / "state.pt")
    torch.jit.script(_Program(theirs)).save(str(tmp_path / "ViT-B-32.pt"))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was run"))
    result = vqtool("import", tmp_path / "ViT-B-32.pt", "-o", "clip.safetensors")
    assert result.code == 0, result.err
    assert vqtool("import", tmp_path / "state.pt", "-o", "plain.safetensors").code == 0
    encoder, plain = load_text_encoder("clip.safetensors"), load_text_encoder("plain.safetensors")
    assert encoder.config == plain.config
    assert float(plain.state_dict()["tokens.weight"].std()) > 0.2
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_an_exact_gelu_is_read_where_the_settings_say_so(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_act": "gelu"}))
    found = interop.load(interop.read_source(folder), Options()).text_encoder
    assert found.config.activation == "gelu"
    assert export_text_encoder(found)[1]["hidden_act"] == "gelu"
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "final_layer_norm.bias" in name)]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(FormatError, match="1 tensors are missing"):
        interop.load(interop.read_source(folder), Options())


def test_a_prior_is_trained_on_the_states_of_a_frozen_encoder(folder, monkeypatch):
    list(interop.convert(folder, "clip.safetensors"))
    write_grids()
    lines = []
    how = {"text_encoder": "clip.safetensors", "size": "tiny", "tokenizer": None, "learning_rate": 3e-3, "keep": "last"}
    with pytest.warns(UserWarning, match="no previews|no caption"):
        prior = train_prior("tok.h5", "p.safetensors", steps=20, notify=lines.append, **how)
    assert prior.denoiser_name == "vq-diffusion"
    assert prior.denoiser.has_learned_null
    kept = list(Path().glob("tok.texts-*.npy"))
    assert len(kept) == 1
    assert any(str(kept[0]) in line and "read 4 captions once" in line for line in lines), lines
    prior = load_prior("p.safetensors")
    assert prior.text_encoder.fingerprint == load_text_encoder("clip.safetensors").fingerprint
    given = condition(prior, captions=["a red boat"])
    grids = sample(prior, 8, condition=given, cfg_scale=1.5, seed=0)
    assert float((grids < 2).double().mean()) > 0.8  # what the grids are of
    monkeypatch.setattr(TextEncoder, "forward", None)  # no caption is read again
    with pytest.warns(UserWarning, match="no previews|no caption"):
        train_prior("tok.h5", "q.safetensors", steps=2, notify=lines.append, **how)


def test_kept_texts_are_those_of_the_encoder_but_for_rounding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prior = text_prior()
    save_text_encoder("t.safetensors", prior.text_encoder)
    batch = GridBatch(np.zeros((3, 2, 3), np.uint32), ["0", "1", "2"], captions=["a bee", "an ant", ""])
    data = build_data(batch, prior.conditioner, prior.grid_spec)
    keeping = keep_texts(prior, [data, None], "g.h5", notify=ignore, progress=silent)
    assert isinstance(keeping.text_encoder, KeptTexts)
    new = torch.cat([data.conditions, prior.conditioner.encode(["a wasp"])])
    found, expected = keeping.read_texts(new), prior.read_texts(new)
    assert torch.equal(found[:3], expected[:3].half().float())
    assert torch.equal(found[3], expected[3])
    path = next(Path().glob("g.texts-*.npy"))
    path.write_bytes(path.read_bytes()[:-4])  # cut short: read again
    again = keep_texts(prior, [data], "g.h5", notify=ignore, progress=silent)
    assert torch.equal(again.read_texts(new), found)


def log(name):
    return [json.loads(line) for line in Path(f"{name}.log.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:.*preview", "ignore:.*caption", "ignore:.*different")
def test_captions_on_disk_are_read_by_the_step_that_looks_at_them_all_in_one_call(folder, monkeypatch):
    list(interop.convert(folder, "clip.safetensors"))
    write_grids(captions=[f"a {word} {row % 9}" for row in range(60) for word in ("boat", "dog", "", "bee")])
    calls, forward = [], TextEncoder.forward
    monkeypatch.setattr(TextEncoder, "forward", lambda self, ids: (calls.append(len(ids)), forward(self, ids))[1])
    how = {"text_encoder": "clip.safetensors", "size": "tiny", "batch_size": 8, "steps": 3}
    with monkeypatch.context() as patch:  # in the order of grids on disk
        patch.setattr(training_data.GridData, "order", partial(step_items, run=1 << 15))
        train_prior("tok.h5", "memory.safetensors", **how)
    assert len(list(Path().glob("*.texts-*.npy"))) == 1
    monkeypatch.setattr(training_data, "IN_MEMORY", 0)
    for file in Path().glob("*.texts-*.npy"):
        file.unlink()
    calls.clear()
    before = []
    train_prior("tok.h5", "disk.safetensors", report=lambda step, metrics: before.append(len(calls)), **how)
    assert before[0] <= 2  # one for the first step, and one to validate
    assert before[-1] <= 3 + 3
    assert max(calls) <= 8
    assert not list(Path().glob("*.texts-*.npy"))
    for mine, theirs in zip(log("disk"), log("memory"), strict=True):  # kept states are rounded to float16
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_captions_that_are_read_together_have_the_states_that_each_has_alone():
    prior = text_prior()
    tokens = prior.conditioner.encode(["a bee", None, "an ant", "a bee"])
    alone, together = prior.read_texts(tokens), prior.read_texts(tokens, together=True)
    assert torch.allclose(alone, together, atol=1e-5)
    assert not together[1].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoiser": "transformer"}, "`text_encoder` goes with `denoiser` vq-diffusion, not with transformer"),
        ({"condition": "class"}, "`text_encoder` is for captions: leave `condition` class out"),
        ({"text_encoder": "other.safetensors"}, "came with a prior, which has its vocabulary"),
        ({"from_": "builtin", "text_encoder": "clip.safetensors"}, "`text_encoder` is that of the prior to begin with"),
    ],
)
def test_what_does_not_go_together_is_one_clear_error(folder, changes, message):
    list(interop.convert(folder, "clip.safetensors"))
    save_text_encoder("other.safetensors", random_encoder())
    write_grids()
    with pytest.raises(VqtoolError, match=message):
        train_prior("tok.h5", "p.safetensors", **{"text_encoder": "clip.safetensors", "steps": 1, **changes})
    if not changes.get("from_"):
        write_grids("bare.h5", captions=None or [""] * 3)
        with pytest.raises(VqtoolError, match="is for captions, and the grids have none"):
            train_prior("bare.h5", "p.safetensors", text_encoder="clip.safetensors", steps=1)
