"""Draw the pictures of docs/diffusion.md: python scripts/plot_diffusion.py [--output docs]

Nothing is trained: every line is computed from the tables, or by enumeration of all grids of a tiny law.
"""

import argparse
import itertools
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vqtool.diffusion import kernels, schedules
from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.posterior import average_posterior

KEPT, REPLACED, MASKED = "#3b75af", "#e8a33d", "#5b5b5b"
PANELS = (("mask-replace", "paper"), ("absorbing", "linear"), ("uniform", "cosine"))
ONE_CELL = torch.tensor([0.55, 0.3, 0.15, 0.0], dtype=torch.float64)
# All 2x2 grids of two tokens, from AAAA to BBBB.
FOUR_CELLS = torch.tensor([30, 2, 3, 5, 1, 0, 7, 4, 6, 2, 1, 3, 2, 8, 5, 21], dtype=torch.float64) / 100
NUM_STEPS = 64  # T of the enumerated chains
STRIDES = [1, 2, 4, 8, 16, 32, 64]


def figure(width: float = 8.6, height: float = 2.9) -> Figure:
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def draw_kernels() -> Figure:
    """Of a token after t steps: untouched, drawn anew, masked."""
    result = figure()
    for axes, (name, schedule) in zip(result.subplots(1, 3, sharey=True), PANELS, strict=True):
        kernel = kernels.build(name, schedule=schedule, codebook_size=1024, num_steps=100)
        replaced = kernel.codebook_size * kernel.beta_bar
        axes.stackplot(
            range(101), kernel.alpha_bar, replaced, kernel.gamma_bar, colors=[KEPT, REPLACED, MASKED], alpha=0.85
        )
        axes.set(title=f"{name} ({schedule})", xlabel="t", xlim=(0, 100), ylim=(0, 1))
    axes = result.axes[0]
    axes.set_ylabel("share of the cells")
    for x, y, text in ((22, 0.3, "kept"), (66, 0.79, "masked"), (64, 0.365, "replaced")):
        axes.text(x, y, text, color="white" if text != "replaced" else "black", ha="center", va="center")
    return result


def draw_schedules() -> Figure:
    """alpha_bar, K beta_bar and gamma_bar of every schedule, with the first kernel that it is for."""
    result = figure()
    left, middle, right = result.subplots(1, 3, sharey=True)
    styles = dict(zip(schedules.names(), ("-", "-", "--", "--", ":", ":"), strict=True))
    for name, style in styles.items():
        for process in schedules.SCHEDULES[name].kernels:
            kernel = kernels.build(process, schedule=name, codebook_size=1024, num_steps=100)
            first = process == schedules.SCHEDULES[name].kernels[0]
            if first:
                colour = left.plot(kernel.alpha_bar, style, label=name)[0].get_color()
            if kernel.beta_bar.max() > 0:
                middle.plot(kernel.codebook_size * kernel.beta_bar, style, color=colour)
            if kernel.has_mask:
                right.plot(kernel.gamma_bar, style, color=colour)
    left.legend(fontsize=8, frameon=False)
    for axes, title in ((left, "kept: alpha_bar"), (middle, "replaced: K beta_bar"), (right, "masked: gamma_bar")):
        axes.set(title=title, xlabel="t", xlim=(0, 100), ylim=(-0.02, 1.02))
    left.set_ylabel("share of the cells")
    return result


def masked_by_stride(kernel: Kernel, skip: int, *, exact: bool) -> list[float]:
    """The masked share before the first and after each call of a sampler that goes skip + 1 steps at a time.

    Exact: q(x_s | x_t). Else as in the published fast sampler, which uses the posterior of one step, and that of level
    t - skip, for a grid at level t.
    """
    times = [*range(kernel.num_steps, 1, -1 - skip), 1]
    shares = [1.0]
    for t, s in pairwise([*times, 0]):
        taken = t - skip if t - 1 > skip else t
        high, low = (t, s) if exact else (taken, taken - 1)
        shares.append(shares[-1] * float(kernel.gamma_bar[low] / kernel.gamma_bar[high]))
    return shares


def draw_strides() -> Figure:
    """Masked share over the calls of a sampler, with exact strides and with the published ones."""
    result = figure(5.6, 3.1)
    axes = result.subplots()
    kernel = kernels.build("mask-replace", schedule="release", codebook_size=1024, num_steps=100)
    for skip, colour in ((1, "#9ecae1"), (3, "#4292c6"), (9, "#08519c")):
        shares = masked_by_stride(kernel, skip, exact=False)
        progress = [call / (len(shares) - 1) for call in range(len(shares))]
        label = f"wrong level, {len(shares) - 1} calls: {shares[-2]:.0%} in the last"
        axes.plot(progress, shares, color=colour, marker=".", markersize=4, label=label)
    shares = masked_by_stride(kernel, 9, exact=True)
    axes.plot([call / (len(shares) - 1) for call in range(len(shares))], shares, "k--", label="exact, 11 calls")
    axes.set(xlabel="share of the calls made", ylabel="cells still masked", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    return result


def step_back(kernel: Kernel, law: Tensor, t: int, s: int, rule: str, *, own: bool = True) -> Tensor:
    """(S, S) p(x_s | x_t) of whole grids of few cells, with the denoiser that knows the law of the grids.

    Args:
        kernel: the forward process.
        law: (K ** N,) of the grids.
        t: in [1, T].
        s: in [0, t).
        rule: "mixture" or "plug-in".
        own: whether the denoiser of a cell looks at the cell itself, or at the others alone.
    """
    size = kernel.codebook_size
    num_cells = round(torch.tensor(len(law)).log().item() / torch.tensor(size).log().item())
    grids = torch.tensor(list(itertools.product(range(size), repeat=num_cells)))  # (G, N)
    states = torch.tensor(list(itertools.product(range(size + kernel.has_mask), repeat=num_cells)))  # (S, N)
    alpha, beta, gamma = (table[t] for table in (kernel.alpha_bar, kernel.beta_bar, kernel.gamma_bar))
    seen = torch.where(states[:, None] == size, gamma, alpha * (states[:, None] == grids) + beta)  # (S, G, N)
    cells = []
    for cell in range(num_cells):
        others = [other for other in range(num_cells) if own or other != cell]
        joint = seen[..., others].prod(-1) * law  # (S, G)
        marginal = joint @ torch.nn.functional.one_hot(grids[:, cell], size).double()
        cells.append(torch.where(marginal.sum(-1, keepdim=True) > 0, marginal, 1.0).log().log_softmax(-1))
    steps = torch.full((len(states),), t), torch.full((len(states),), s)
    p = average_posterior(torch.stack(cells, 1)[:, :, None], states[:, :, None], *steps, kernel, rule).exp()[:, :, 0]
    whole = torch.ones(len(states), len(states), dtype=torch.float64)
    for cell in range(num_cells):
        whole *= p[:, cell][:, states[:, cell]]
    return whole


def error_of(kernel: Kernel, law: Tensor, calls: int, rule: str, *, own: bool = True) -> float:
    """Total variation between the law and what so many calls draw, from the stationary law on."""
    size = kernel.codebook_size
    times = [kernel.num_steps * call // calls for call in range(calls, -1, -1)]
    mask = float(kernel.gamma_bar[-1])
    states = size + kernel.has_mask
    cell = torch.tensor([(1 - mask) / size] * size + [mask], dtype=torch.float64)[:states]
    drawn = cell
    num_cells = 1 if len(law) == size else 4
    for _ in range(num_cells - 1):
        drawn = torch.outer(drawn, cell).flatten()
    for t, s in pairwise(times):
        drawn = drawn @ step_back(kernel, law, t, s, rule, own=own)
    clean = drawn.view([states] * num_cells)[(slice(size),) * num_cells].flatten()
    return float((clean - law).abs().sum() / 2)


def draw_rules() -> Figure:
    """The error of both rules over the number of calls."""
    result = figure(8.6, 3.5)
    lines = (
        ("four cells, mixture", FOUR_CELLS, "mixture", True, "#3b75af", "o-"),
        ("four cells, plug-in, wrong denoiser", FOUR_CELLS, "plug-in", True, "#c44e52", "o-"),
        ("four cells, plug-in, its own denoiser", FOUR_CELLS, "plug-in", False, "black", "+"),
        ("one cell, plug-in, wrong denoiser", ONE_CELL, "plug-in", True, "#c44e52", "s:"),
    )
    for axes, (name, schedule) in zip(result.subplots(1, 2, sharey=True), PANELS[:1] + PANELS[2:], strict=True):
        for label, law, rule, own, colour, style in lines:
            size = 2 if law is FOUR_CELLS else 4
            kernel = kernels.build(name, schedule=schedule, codebook_size=size, num_steps=NUM_STEPS)
            errors = [error_of(kernel, law, calls, rule, own=own) for calls in STRIDES]
            axes.loglog(STRIDES, errors, style, color=colour, label=label, markersize=8 if style == "+" else 4)
        axes.set(title=f"{name} ({schedule})", xlabel="denoiser calls", ylim=(2e-3, 0.7))
        axes.set_xticks(STRIDES, [str(calls) for calls in STRIDES])
        axes.minorticks_off()
    result.axes[0].set_ylabel("total variation from the data")
    handles, labels = result.axes[0].get_legend_handles_labels()
    result.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return result


PICTURES = {"kernels": draw_kernels, "schedules": draw_schedules, "rules": draw_rules, "strides": draw_strides}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder to write to (docs)")
    folder = parser.parse_args().output
    torch.set_num_threads(1)
    for name, draw in PICTURES.items():
        path = folder / f"diffusion-{name}.png"
        draw().savefig(path, metadata={"Software": None})
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
