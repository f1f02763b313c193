"""A sampling step: its arithmetic against diffusers' scheduler, and its share of the step beside the network."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from diffusers import VQDiffusionPipeline, VQDiffusionScheduler
from torch import Tensor

import vqtool
from benchmarks import Row, peak_memory, race
from vqtool import conditions, denoisers
from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.diffusion import kernels
from vqtool.diffusion.guidance import draw_truncated, truncate
from vqtool.diffusion.posterior import average_posterior, sample_posterior
from vqtool.priors import GridSpec, Prior
from vqtool.samplers import Settings, Walk, ancestral

NAME = "truncation, posterior and draw of one step (8 grids of 16x16, K = 1024)"
BATCH, SIZE, TOKENS, STEPS = 8, (16, 16), 1024, 100
TIME, RATE = 50, 0.86
GROUP = 2  # grids that a walk holds together
ORIGIN = GridSpec("", "", SIZE, (128, 128), "")


class _Stored(Denoiser):
    """Logits that cost nothing: the groups of a walk come in turn."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits  # (B, N, K)
        self.calls = 0
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def encode_condition(self, condition: Tensor) -> EncodedCondition:
        return EncodedCondition()

    def set_frequencies(self, frequencies: Tensor) -> None:
        raise NotImplementedError

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor | EncodedCondition | None = None, cells: Tensor | None = None
    ) -> Tensor:
        begin = self.calls * len(x_t) % len(self.logits)
        self.calls += 1
        logits = self.logits[begin : begin + len(x_t)]
        if cells is None:
            return logits.view(*x_t.shape, -1)
        return logits.gather(1, cells[..., None].expand(-1, -1, logits.shape[-1]))


class _Case:
    """One step of one batch, for both."""

    def __init__(self) -> None:
        noise = torch.Generator().manual_seed(0)
        self.kernel = kernels.build("mask-replace", schedule="release", codebook_size=TOKENS, num_steps=STEPS)
        logits = 2 * torch.randn(BATCH, SIZE[0] * SIZE[1], TOKENS, generator=noise)
        self.log_x0 = logits.log_softmax(-1)  # (B, N, K)
        x_0 = torch.randint(0, TOKENS, (BATCH, *SIZE), generator=noise)
        uniform = torch.rand(BATCH, *SIZE, dtype=torch.float64, generator=noise)
        self.t = torch.full((BATCH,), TIME)
        self.x_t = self.kernel.sample(x_0, self.t, uniform)
        self.scheduler = VQDiffusionScheduler(num_vec_classes=TOKENS + 1, num_train_timesteps=STEPS)
        self.model_output = self.log_x0.transpose(1, 2).contiguous()  # (B, K, N), as their network gives it
        prior = Prior(self.kernel, _Stored(self.log_x0), "stored", conditions.build("none"), ORIGIN, "direct")
        self.walk = Walk(prior, range(BATCH), None, seed=0, grid_size=SIZE, settings=Settings(truncation=RATE))

    def theirs(self) -> object:
        kept = VQDiffusionPipeline.truncate(None, self.model_output, RATE).clamp(-70)  # type: ignore[arg-type]
        return self.scheduler.step(kept, timestep=TIME - 1, sample=self.x_t.flatten(1)).prev_sample

    def dense(self) -> object:
        choice, move = self.walk.noise(1, 2)
        groups = zip(self.log_x0.split(GROUP), choice.flatten(1).split(GROUP), strict=True)
        x_0 = torch.cat([draw_truncated(log_x0, noise, RATE) for log_x0, noise in groups]).view_as(self.x_t)
        return sample_posterior(x_0, self.x_t, self.t, self.t - 1, self.kernel, move)

    def few(self) -> object:
        return ancestral.step(self.walk, self.x_t, TIME, TIME - 1, "mixture", self.walk.noise(1, 2))

    def difference(self) -> float:
        """The largest, of all probabilities of the step, between the two."""
        kept = VQDiffusionPipeline.truncate(None, self.model_output, RATE).clamp(-70)  # type: ignore[arg-type]
        theirs = self.scheduler.q_posterior(kept, self.x_t.flatten(1), TIME - 1).softmax(1).transpose(1, 2)
        log_x0 = truncate(self.log_x0, RATE).view(BATCH, *SIZE, TOKENS)
        ours = average_posterior(log_x0, self.x_t, self.t, self.t - 1, self.kernel).exp()
        return float((ours.flatten(1, 2) - theirs).abs().max())


def _build(name: str) -> Callable[[], object]:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    function: Callable[[], object] = getattr(_Case(), name)
    return function


@torch.no_grad()
def step(folder: Path, num: int) -> Iterator[Row]:
    """Truncation, posterior and draw of one step, 8 grids of 16x16, K = 1024, the network's output being there.

    Against `VQDiffusionPipeline.truncate` and `VQDiffusionScheduler.step` of diffusers on the same log-probabilities,
    after a comparison of the two laws; both with their noise. The second of ours is a step of `ancestral`, log_softmax
    included. Memory as `peak_memory` says.
    """
    case = _Case()
    yield f"{NAME}, largest difference from diffusers in probability", f"{case.difference():.0e}"
    theirs, dense, few = race(case.theirs, case.dense, case.few, repeats=15)
    times = [f"{theirs / ours:.0f}x ({theirs * 1e3:.0f} and {ours * 1e3:.1f} ms)" for ours in (few, dense)]
    yield f"{NAME}, diffusers' scheduler over ours, cells that may change", times[0]
    yield f"{NAME}, diffusers' scheduler over ours, all cells", times[1]
    most, all_cells, some = (peak_memory(partial(_build, name)) for name in ("theirs", "dense", "few"))
    yield f"{NAME}, peak memory over diffusers', cells that may change", f"{some / most:.0%}"
    yield f"{NAME}, peak memory over diffusers', all cells", f"{all_cells / most:.0%} of {most / 2**20:.0f} MB"


def outside(folder: Path, num: int) -> Iterator[Row]:
    """The share of sampling that is not the network: 6 layers of 256, guidance and truncation, 8 grids of 16x16.

    By a clock around the network's forward; noise, groups, guidance, truncation and draw are outside.
    """
    kernel = kernels.build("mask-replace", codebook_size=TOKENS, num_steps=STEPS)
    conditioner = conditions.build("class", [str(i) for i in range(10)])
    options = {"num_layers": 6, "width": 256, "num_heads": 8, "num_classes": 10}
    sizes = {"codebook_size": TOKENS, "grid_size": SIZE, "num_steps": STEPS}
    denoiser = denoisers.build("transformer", {**sizes, **options}).eval()
    prior = Prior(kernel, denoiser, "transformer", conditioner, ORIGIN)
    forward, inside = denoiser.forward, [0.0]

    def timed(*arguments: object, **named: object) -> Tensor:
        start = time.perf_counter()
        logits = forward(*arguments, **named)
        inside[0] += time.perf_counter() - start
        return logits

    denoiser.forward = timed  # type: ignore[method-assign]
    condition = conditioner.encode([str(i) for i in range(BATCH)])
    for sampler, steps in (("ancestral", STEPS // 4), ("purity", 16)):
        shares = []
        for _ in range(3):
            start, inside[0] = time.perf_counter(), 0.0
            vqtool.sample(
                prior, BATCH, sampler=sampler, steps=steps, condition=condition, cfg_scale=2.0, truncation=RATE
            )
            shares.append(1 - inside[0] / (time.perf_counter() - start))
        yield f"share of {sampler} sampling that is not the network, 6 x 256, {steps} steps", f"{min(shares):.1%}"
