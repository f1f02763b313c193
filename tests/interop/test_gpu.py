"""Imported networks on a GPU: the golden numbers of the programs that made the files, as on the CPU."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vqtool import interop
from vqtool.interop import Options

pytestmark = pytest.mark.gpu

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZERS = {  # fixture -> file or folder in it, whether its images are in [0, 1]
    "taming-vqgan": ("last.ckpt", False),
    "taming-gumbel": ("last.ckpt", False),
    "ms-ithq-codec": ("ithq_vqvae.pth", False),
    "ut-vqgan": ("vqgan_ema_1400000.th", True),
    "llamagen-vq": ("vq_ds_tiny.pt", False),
    "om-maskgit-vqgan": ("pytorch_model.bin", True),
    "om-taming-vqgan": ("pytorch_model.bin", True),
    "df-vqmodel": ("vqvae", False),
}
PRIORS = {  # fixture -> its file, how it is read, what is added to its times
    "ms-prior-class": ("tiny_pretrained.pth", {}, 1),
    "ms-prior-text": ("tiny_pretrained.pth", {}, 1),
    "ms-prior-uncond": ("tiny_pretrained.pth", {}, 1),
    "ms-prior-convmlp": ("tiny_pretrained.pth", {}, 1),
    "ut-absorbing": ("absorbing_ema_2000000.th", {"num_heads": 4}, 0),
    "vqddm-unet": ("last.ckpt", {}, 1),
    "vqddm-noise": ("last.ckpt", {}, 1),
    "df-pipeline": ("", {}, 1),
}


def numbers(fixture):
    if not (GOLDEN / fixture / "io.safetensors").is_file():
        pytest.skip("needs tests/golden, which is not here")
    with safe_open(GOLDEN / fixture / "io.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def load(fixture, place, **options):
    folder = GOLDEN / fixture
    if not (folder / place).exists():
        pytest.skip("needs tests/golden, which is not here")
    settings = [folder / "config.yaml"] if fixture.startswith("ms-prior") else []
    return interop.load(interop.read_source(folder / place, *settings), Options(**options))


@pytest.mark.parametrize("fixture", TOKENIZERS)
def test_tokenizers_give_the_golden_tokens_and_pictures(gpu, fixture):
    place, unit = TOKENIZERS[fixture]
    expected, tokenizer = numbers(fixture), load(fixture, place).tokenizer.to(gpu)
    images = (expected["image"] * 2 - 1 if unit else expected["image"]).to(gpu)
    assert torch.equal(tokenizer.encode(images).cpu(), expected["indices"])
    decoded = tokenizer.decode(expected["indices"].to(gpu)).cpu()
    assert float(((decoded + 1) / 2 if unit else decoded).sub(expected["decoded"]).abs().max()) < 5e-4


@pytest.mark.parametrize("fixture", PRIORS)
def test_priors_predict_what_they_do_on_the_cpu(gpu, fixture):
    place, options, shift = PRIORS[fixture]
    given, found = numbers(fixture), []
    for device in ("cpu", gpu):
        prior = load(fixture, place, **options).prior.to(device)
        x_t = given["x_t"].reshape(-1, 4, 4).to(device)
        t = (given["t"] + shift).expand(len(x_t)).to(device)
        condition = given.get("cond")
        found.append(prior.log_x0(x_t, t, None if condition is None else condition.to(device)).exp().cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_captions_become_the_golden_features(gpu):
    given = numbers("df-pipeline")
    encoder = load("df-pipeline", "").prior.to(gpu).text_encoder
    torch.testing.assert_close(encoder(given["input_ids"].to(gpu)).cpu(), given["cond"], rtol=0, atol=1e-4)
