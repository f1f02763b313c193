"""The text network under guidance, against the published formulation and the machine's matrix products."""

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import Transformer2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks import Row, race
from benchmarks.dense import dense_logits
from vqtool.denoisers import vq_diffusion
from vqtool.denoisers.vq_diffusion import Config, Network
from vqtool.interop.diffusers import _transformer_settings, names_of

NAME = "6 x 256 text network under guidance"
BATCH, SIZE, TOKENS, STEPS = 8, (16, 16), 1024, 100
TEXT_WIDTH, TEXT_LENGTH = 512, 77
GROUP = 4  # rows that pass together: two grids, with the text and without, as in a walk on a CPU
FEW = 16  # cells a grid, as `ancestral` asks for at 100 steps


def _network(num_layers: int, width: int, num_heads: int) -> Network:
    config = Config(
        TOKENS, SIZE, STEPS, num_layers, width, num_heads, text_width=TEXT_WIDTH, text_length=TEXT_LENGTH,
        learned_null=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return vq_diffusion.Network(config).eval().requires_grad_(False)


def to_diffusers(network: Network) -> Transformer2DModel:
    """The same weights in diffusers' network."""
    settings = {k: v for k, v in _transformer_settings(network.config).items() if not k.startswith("_")}
    model = Transformer2DModel(**settings).eval()
    tensors: dict[str, Tensor] = {}
    for ours, theirs in names_of(network.config).items():
        tensors |= dict(zip(theirs, network.state_dict()[ours].chunk(len(theirs)), strict=True))
    model.load_state_dict(tensors, strict=False)
    return model


def _count_attention(q: torch.Size, k: torch.Size, v: torch.Size, *others: object, **named: object) -> int:
    operations: int = sdpa_flop_count(q, k, v)
    return operations


@torch.inference_mode()
def guidance(folder: Path, num: int) -> Iterator[Row]:
    """6 layers of 256, 8 grids of 16x16 with texts of 77 tokens, with and without the text, K = 1024.

    Ours in groups that hold both halves, with the text's keys and values made before, as in sampling; against two
    passes of the published formulation (`benchmarks.dense`), and diffusers' Transformer2DModel in one batch, all with
    the same weights; their outputs are compared first.
    """
    network = _network(6, 256, 8)
    model = to_diffusers(network)
    x_t, t = torch.randint(TOKENS + 1, (BATCH, *SIZE)), torch.full((BATCH,), STEPS // 2)
    text, null = torch.randn(2, BATCH, TEXT_LENGTH, TEXT_WIDTH).div(TEXT_WIDTH**0.5)
    x_twice, t_twice, texts = torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([text, null])
    cells = torch.rand(2 * BATCH, SIZE[0] * SIZE[1]).argsort(1)[:, :FEW]
    groups = [slice(begin, begin + GROUP) for begin in range(0, 2 * BATCH, GROUP)]
    encoded = [network.encode_condition(texts[rows]) for rows in groups]

    def published() -> Tensor:
        return torch.cat([dense_logits(network, x_t, t, each) for each in (text, null)])

    def diffusers() -> Tensor:
        return model(x_twice.flatten(1), encoder_hidden_states=texts, timestep=t[0] - 1).sample

    def ours() -> Tensor:
        pairs = zip(groups, encoded, strict=True)
        return torch.cat([network(x_twice[rows], t_twice[rows], each) for rows, each in pairs])

    def few() -> Tensor:
        pairs = zip(groups, encoded, strict=True)
        return torch.cat([network(x_twice[rows], t_twice[rows], each, cells[rows]) for rows, each in pairs])

    log_p = ours().flatten(1, 2).log_softmax(-1)
    worst = max(float((log_p - other).abs().max()) for other in (published().log_softmax(-1), diffusers().mT))
    yield f"{NAME}, largest difference of log-probabilities", f"{worst:.0e}"
    dense, theirs, one, some = race(published, diffusers, ours, few, repeats=5)
    yield f"{NAME}, two published passes over ours", f"{dense / one:.2f}x ({one * 1e3:.0f} ms)"
    yield f"{NAME}, diffusers' network in one batch over ours", f"{theirs / one:.2f}x"
    yield f"{NAME}, the same with the logits that a step needs", f"{dense / some:.2f}x ({some * 1e3:.0f} ms)"


@torch.inference_mode()
def ceiling(folder: Path, num: int) -> Iterator[Row]:
    """Floating-point operations a second of the text network, of those of a 2048 x 2048 x 2048 product in float32.

    Counted are those of products, of attention too.
    """
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention}
    a, b = torch.randn(2, 2048, 2048)
    product = torch.empty(2048, 2048)
    for num_layers, width, num_heads in ((6, 256, 8), (4, 1024, 16)):
        network = _network(num_layers, width, num_heads)
        x_t, t = torch.randint(TOKENS + 1, (BATCH, *SIZE)), torch.full((BATCH,), STEPS // 2)
        encoded = network.encode_condition(torch.randn(BATCH, TEXT_LENGTH, TEXT_WIDTH))
        with FlopCounterMode(display=False, custom_mapping=attention) as counter:
            network(x_t, t, encoded)
        operations = counter.get_total_flops()
        mine, best = race(
            lambda network=network, x_t=x_t, t=t, encoded=encoded: network(x_t, t, encoded),
            lambda: torch.mm(a, b, out=product),
            repeats=5,
        )
        rate, most = operations / mine / 1e9, 2 * 2048**3 / best / 1e9
        figure = f"{rate / most:.0%} ({rate:.0f} of {most:.0f} Gflop/s)"
        yield f"share of the machine's matrix-product rate, {num_layers} layers of {width}", figure
