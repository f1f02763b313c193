"""Without a GPU: what of encoding and decoding would wait for one."""

import numpy as np
import pytest
import torch
from support.commands import build_tokenizer, write_pictures
from support.pretended_gpu import PretendedGpu

from vqtool.grids import GridBatch
from vqtool.images import find_images, read_batches
from vqtool.tokenizers import Tokenizer, vqgan
from vqtool.tokenizers.batches import decode_batch, encode_batch


def build(config=None):
    if config is None:
        return build_tokenizer()
    torch.manual_seed(0)
    tokenizer = Tokenizer(config).eval()
    tokenizer.codebook.normal_()
    return tokenizer


CONFIGS = {"vqvae": None, "vqgan": vqgan.SIZES["f8-small"]}


@pytest.mark.parametrize("network", ["vqvae", "vqgan"])
def test_an_encoder_waits_for_nothing_and_a_decoder_for_the_check_of_its_tokens(network):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = build(CONFIGS[network]).encode(images)
    pictures = build(CONFIGS[network]).decode(tokens)
    with PretendedGpu() as gpu:
        tokenizer, given = build(CONFIGS[network]).to("cuda:0"), images.to("cuda:0")
        gpu.waits.clear()
        found = tokenizer.encode(given)
        assert gpu.waits == []
        decoded = tokenizer.decode(found)
        assert all("checks.py" in wait for wait in gpu.waits)
        assert torch.equal(found.cpu(), tokens)
        torch.testing.assert_close(decoded.cpu(), pictures, rtol=0, atol=1e-4)


def test_a_batch_is_copied_once_there_and_once_back_in_bytes(tmp_path):
    (batch,) = read_batches(find_images([write_pictures(tmp_path / "imgs", 2, size=(32, 32))]), (32, 32), 2)
    expected = encode_batch(batch, build_tokenizer())
    with PretendedGpu() as gpu:
        tokenizer = build_tokenizer().to("cuda:0")
        gpu.waits.clear()
        grids = encode_batch(batch, tokenizer)
        assert len(gpu.waits) == 2
        assert np.array_equal(grids.tokens, expected.tokens)
        gpu.waits.clear()
        decode_batch(GridBatch(grids.tokens, ["a", "b"], None, None), tokenizer)
        assert len([wait for wait in gpu.waits if "checks.py" not in wait]) == 2
