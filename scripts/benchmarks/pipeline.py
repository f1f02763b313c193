"""Whole walks from masks to tokens: against diffusers' pipeline, and against two full passes of the network a step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import VQDiffusionPipeline, VQDiffusionScheduler, VQModel
from torch import Tensor

import vqtool
from benchmarks import Row, race
from benchmarks.dense import dense_logits
from benchmarks.network import to_diffusers
from vqtool.conditions.clip import END, START, ClipCondition, ClipVocabulary
from vqtool.conditions.text_encoders import Config as TextConfig
from vqtool.conditions.text_encoders import TextEncoder
from vqtool.denoisers import vq_diffusion
from vqtool.diffusion import kernels
from vqtool.diffusion.guidance import guide
from vqtool.diffusion.posterior import draw, sample_posterior
from vqtool.priors import GridSpec, Prior

NAME = "6 x 256 text network, 16x16, K = 1024, 8 grids"
SCALE, RATE, INTERVAL = 5.0, 0.86, (0.2, 0.8)  # diffusers' scale, VQ-Diffusion's truncation


@dataclass(frozen=True)
class Sizes:
    """Of the network and of what it draws."""

    batch: int = 8
    side: int = 16  # cells of the grid
    tokens: int = 1024  # K
    steps: int = 20  # T; the walk takes them all, so that diffusers' one is at the right times too
    num_layers: int = 6
    width: int = 256
    num_heads: int = 8
    text_width: int = 512
    text_length: int = 77


class _Loop(VQDiffusionPipeline):
    """Diffusers' pipeline with the features of the texts at hand: (2 B, L, D), without the text first."""

    features: Tensor

    def _encode_prompt(self, *_: object) -> Tensor:
        return self.features


class Case:
    """One text prior with random weights, for both."""

    def __init__(self, sizes: Sizes) -> None:
        torch.manual_seed(0)
        self.sizes, size = sizes, (sizes.side, sizes.side)
        config = vq_diffusion.Config(
            sizes.tokens, size, sizes.steps, sizes.num_layers, sizes.width, sizes.num_heads,
            text_width=sizes.text_width, text_length=sizes.text_length, learned_null=False,
        )  # fmt: skip
        network = vq_diffusion.Network(config).eval().requires_grad_(False)
        words = {START: 0, END: 1, **{f"{number}</w>": number for number in range(2, 64)}}
        text = TextConfig(len(words), sizes.text_length, sizes.text_width, num_layers=0, num_heads=1, mlp_width=1)
        encoder = TextEncoder(text).requires_grad_(False)
        torch.nn.init.normal_(encoder.positions)
        self.prior = Prior(
            kernel=kernels.build("mask-replace", schedule="release", codebook_size=sizes.tokens, num_steps=sizes.steps),
            denoiser=network,
            denoiser_name="vq-diffusion",
            conditioner=ClipCondition(ClipVocabulary(words, []), max_length=sizes.text_length, pad=0),
            grid_spec=GridSpec("", "", size, size, ""),
            parameterisation="direct",
            text_encoder=encoder,
        )
        self.ids = torch.randint(2, len(words), (sizes.batch, sizes.text_length))
        self.text, self.null = encoder(self.ids), encoder(self.prior.conditioner.null(sizes.batch))
        self.pipeline = self._build_pipeline()

    def _build_pipeline(self) -> _Loop:
        sizes = self.sizes
        pipeline = _Loop(
            vqvae=VQModel(block_out_channels=(32,), num_vq_embeddings=sizes.tokens, vq_embed_dim=3).eval(),
            text_encoder=None,
            tokenizer=None,
            transformer=to_diffusers(self.prior.denoiser),
            scheduler=VQDiffusionScheduler(num_vec_classes=sizes.tokens + 1, num_train_timesteps=sizes.steps),
            learned_classifier_free_sampling_embeddings=None,
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.features = torch.cat([self.null, self.text])
        return pipeline

    def theirs(self, truncation: float = 1.0) -> object:
        """Diffusers' loop, and a VQModel of 32 channels that makes 16x16 pixels of the tokens."""
        return self.pipeline(
            [""] * self.sizes.batch,
            num_inference_steps=self.sizes.steps,
            guidance_scale=SCALE,
            truncation_rate=truncation,
            output_type="np",
        )

    def ours(self, steps: int | None = None, **settings: object) -> Tensor:
        """`ancestral`, from captions in tokens to grids; with so many steps, else with all."""
        return vqtool.sample(
            self.prior,
            self.sizes.batch,
            steps=steps or self.sizes.steps,
            condition=self.ids,
            cfg_scale=SCALE,
            **settings,
        )

    @torch.no_grad()
    def passes(self, *, published: bool = False) -> Tensor:
        """The same law, each step by two passes of the whole network for all cells, with the texts anew in each.

        The network is vqtool's, or that of `benchmarks.dense`.
        """
        prior, size = self.prior, (self.sizes.batch, self.sizes.side, self.sizes.side)
        x_t = torch.full(size, prior.kernel.mask_id)
        for step in range(self.sizes.steps, 0, -1):
            t = torch.full(size[:1], step)
            if published:
                laws = (dense_logits(prior.denoiser, x_t, t, text).log_softmax(-1) for text in (self.text, self.null))
                log_c, log_u = (law.view(*size, -1) for law in laws)
            else:
                log_c, log_u = (prior.log_x0(x_t, t, text) for text in (self.text, self.null))
            guided = guide(log_c, log_u, SCALE)
            choice, move = torch.rand(2, *size, dtype=torch.float64)
            x_t = sample_posterior(draw(guided, choice), x_t, t, t - 1, prior.kernel, move)
        return x_t

    @torch.no_grad()
    def difference(self) -> float:
        """The largest between guided log-probabilities of both at one state."""
        sizes, time = self.sizes, (self.sizes.steps + 1) // 2
        x_t = torch.randint(sizes.tokens + 1, (sizes.batch, sizes.side, sizes.side))
        t = torch.full((sizes.batch,), time)
        guided = guide(self.prior.log_x0(x_t, t, self.text), self.prior.log_x0(x_t, t, self.null), SCALE)
        output = self.pipeline.transformer(
            x_t.flatten(1).repeat(2, 1), encoder_hidden_states=self.pipeline.features, timestep=torch.tensor(time - 1)
        ).sample
        log_u, log_c = output.chunk(2)
        theirs = (log_u + SCALE * (log_c - log_u)).log_softmax(1).transpose(1, 2)
        return float((guided.flatten(1, 2) - theirs).abs().max())


def compare(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """The rows of `pipeline` for these sizes."""
    case = Case(sizes)
    low, high = INTERVAL
    yield f"{NAME}, largest difference from diffusers in log p", f"{case.difference():.0e}"
    theirs, theirs_cut, published, passes, ours, ours_cut, partly = race(
        case.theirs,
        lambda: case.theirs(RATE),
        lambda: case.passes(published=True),
        case.passes,
        case.ours,
        lambda: case.ours(truncation=RATE),
        lambda: case.ours(cfg_interval=INTERVAL),
        repeats=repeats,
    )

    def row(what: str, mine: float, other: str, its: float) -> Row:
        rates = f"{sizes.batch / mine:.2f} and {sizes.batch / its:.2f} grids/s"
        return f"{NAME}, {what}, {other} over ours", f"{its / mine:.2f}x ({rates})"

    yield row("guidance", ours, "diffusers' pipeline with the same weights and steps", theirs)
    yield row(
        f"guidance and truncation {RATE}", ours_cut, "diffusers' pipeline with the same weights and steps", theirs_cut
    )
    for what, mine in (("guidance", ours), (f"guidance from {low:.0%} to {high:.0%} of the way", partly)):
        yield row(what, mine, "two full passes as published", published)
        yield row(what, mine, "two full passes of the same network", passes)


def pipeline(folder: Path, num: int) -> Iterator[Row]:
    """From masks to tokens, 8 grids of 16x16, K = 1024, a text network of 6 layers of 256, 20 steps, guidance on.

    `vqtool.sample` (ancestral; the text's features, keys, values and all noise included) against diffusers'
    VQDiffusionPipeline with the same weights, which is given the features of the texts and decodes the tokens by a
    network of no account: so what is timed is the loop. Both without truncation, diffusers' default, and with
    VQ-Diffusion's. T is 20: both take the same steps, of the same times. The guided log-probabilities of both are
    compared first.

    Then guidance, and guidance in a part of the way, against two full passes: a loop of vqtool's own functions that in
    each step asks the network for all cells with the text and without it, and encodes the text in every call. Once the
    network is the published formulation (`benchmarks.dense`), once vqtool's.
    """
    yield from compare(Sizes(), repeats=2)


def peers(folder: Path, num: int) -> Iterator[Row]:
    """Grids a second of a core against diffusers' pipeline with the same weights: 2 of 16x16, else as in `pipeline`.

    At equal steps, 20 of 20, with guidance, eager and by ONNX Runtime, where the law is the same; then with what
    changes it: the unconditional half in every second and every fourth call, and `purity` in 8 steps. Turn by turn, in
    seconds of the processor, so that other work on the machine counts for little; give `--threads 1`.
    """
    case = Case(Sizes(batch=2))
    yield "largest difference from diffusers in log p", f"{case.difference():.0e}"
    ways: dict[str, dict[str, object]] = {
        "same law, eager": {},
        "same law, ONNX Runtime": {"runtime": "onnx"},
        "ONNX Runtime, cfg-refresh 2": {"runtime": "onnx", "cfg_refresh": 2},
        "ONNX Runtime, cfg-refresh 4": {"runtime": "onnx", "cfg_refresh": 4},
        "ONNX Runtime, purity, 8 steps of 20": {"runtime": "onnx", "sampler": "purity", "steps": 8},
    }
    theirs, *mine = race(
        case.theirs, *(partial(case.ours, **how) for how in ways.values()), repeats=2, clock=time.process_time
    )
    for what, its in zip(ways, mine, strict=True):
        rates = f"{case.sizes.batch / its:.2f} and {case.sizes.batch / theirs:.2f} grids a second of processor time"
        yield f"diffusers' pipeline in 20 steps over ours, {what}", f"{theirs / its:.2f}x ({rates})"
