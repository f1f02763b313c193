"""Improved VQ-Diffusion's ablation of the null condition, by training: what guidance compares with, over its scales.

Small priors are trained on emoji of one drawing style, the same but for what stands in place of a caption that is left
out in a tenth of the draws: nothing ("none": no caption is left out), the empty caption ("fixed"), a learned condition
("learned", as train-prior does by default). The fourth, "tuned", is the first, whose null condition alone is trained
afterwards (`train-prior --train null`). Each is sampled with its null, the first and the third with the zero-shot one
(the empty caption, never trained), and scored as by scripts/score_prior.py, over guidance scales and seeds.

    python scripts/ablate_null.py --pictures build/pictures --work build/null
    python scripts/ablate_null.py --from builtin --steps 200 --batch 32 --pictures build/pictures --work build/null-from

With --from a prior that knows captions goes on learning in each of these ways, as in the paper: on the pictures that
the built-in one was trained on, at the rate of a fine-tuning. What it learned of a null condition is forgotten before,
the empty caption takes its place; what its network knows of pictures without a caption stays, so "none" is not quite
without null training. The prior as it is, with both of its nulls, is measured too.

What is done stands in --work and is not done again. Written are null.json, null.md and null.png. Three seeds take 20
minutes of one core, with --from builtin as above 50.
Source: Tang et al. 2022 (arXiv:2205.16007), section 3.1 and table 4.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import text_image
import torch
from score_prior import choose_prompts, decoded_features, save, score, table, train_dual
from vary_pictures import is_wanted

import vqtool
from vqtool import codebooks, conditions
from vqtool.diffusion import kernels
from vqtool.errors import VqtoolError
from vqtool.images import PREPROCESSING, ImageItem, read_images, to_float
from vqtool.metrics import EfficientNetLite0
from vqtool.priors import GridSpec, Prior, load_prior
from vqtool.tokenizers import Tokenizer, load_tokenizer, tokenizer_of
from vqtool.training.adapters import TuningOptions, merged
from vqtool.training.building import build_prior, choose_learning_rate
from vqtool.training.clock import Length
from vqtool.training.data import GridData
from vqtool.training.objectives import PriorLoss
from vqtool.training.prior import PriorRunOptions, choose_run, fit
from vqtool.training.runs import MachineOptions
from vqtool.training.tuning import choose_tuning_rate

DENOISER, SIZE, PIXELS = "transformer", "tiny", 64
DROPPED = 0.1  # of the captions
CFG_SCALES = (0, 1, 2, 3, 5)  # 0 draws without the caption, 1 without guidance
CALLS = 8
QUALITIES = ("score", "KID")
REFERENCES = 872  # real pictures, at least, that samples are compared with
# What was trained, what guidance compares with -> how it is said.
NULLS = {
    ("none", "zero-shot"): "no null training, zero-shot null",
    ("tuned", "learned"): "the same, its null tuned alone",
    ("fixed", "zero-shot"): "fixed null: the empty caption",
    ("learned", "learned"): "learned null",
    ("learned", "zero-shot"): "learned null, zero-shot in sampling",
}
# The same of a prior that goes on learning.
AS_IT_IS = {("as it is", "learned"): "as it is, learned null", ("as it is", "zero-shot"): "as it is, zero-shot null"}
TUNED_SHARE = 0.25  # of the steps, for the null condition alone
BUILTIN_STYLES = "openmoji,noto,fluent,flat"  # that the built-in prior was last trained on


def fit_tokenizer(images: np.ndarray, codes: int, work: Path) -> Tokenizer:
    """The built-in tokenizer with fewer codes, made for images (N, 3, h, w): fewer are learnt in fewer steps."""
    path = work / f"tokenizer-{codes}.safetensors"
    if not path.exists():
        vqtool.save_images(images, work / "pictures", force=True)
        codebooks.refit(work / "pictures", path, size=str(PIXELS), codebook_size=codes)
    return load_tokenizer(path)


def build_data(
    images: np.ndarray, items: list[ImageItem], tokenizer: Tokenizer, conditioner: Any, *, empty: bool
) -> GridData:
    """Grids with all of their captions; with `empty`, a tenth of each grid's captions are the empty one."""
    with torch.inference_mode():
        tokens = torch.cat([tokenizer.encode(to_float(part)) for part in torch.from_numpy(images).split(64)])
    own = [list(item.captions) for item in items]
    if empty:
        own = [captions * round(1 / DROPPED - 1) + [""] * len(captions) for captions in own]
    starts = np.cumsum([0, *map(len, own)])
    texts = conditioner.encode([text for captions in own for text in captions])
    height, width = tokens.shape[1:]
    spec = GridSpec(tokenizer.fingerprint, tokenizer.location, (height, width), (PIXELS, PIXELS), PREPROCESSING["crop"])
    return GridData(tokens.numpy(), texts, spec, starts)


def forget_null(prior: Prior) -> None:
    """Put the learned null condition of a prior of captions back to the empty caption."""
    weight = prior.denoiser.get_parameter("text.tokens.weight")
    with torch.no_grad():
        weight[conditions.NULL] = weight[conditions.END]


def begin(
    kind: str, data: GridData, conditioner: Any, path: Path, settings: argparse.Namespace, seed: int
) -> tuple[Prior, float]:
    """What is trained in one of the ways, and its learning rate."""
    if kind == "tuned" or settings.start is not None:
        prior = load_prior(path.with_name(f"none-{seed}.safetensors") if kind == "tuned" else settings.start)
        prior.denoiser.train().requires_grad_(True)
        if settings.start is not None:
            forget_null(prior)
        if kind == "tuned":
            TuningOptions(train="null").begin(prior.denoiser, [], seed=seed)
    else:
        kernel = kernels.build("absorbing", schedule=None, codebook_size=settings.codes, num_steps=100)
        prior = build_prior(
            kernel, conditioner, data.grid_spec, SIZE, seed=seed, tokens=data.tokens, denoiser=DENOISER
        )  # fmt: skip
    if settings.start is None:
        return prior, choose_learning_rate(DENOISER, SIZE)
    return prior, choose_tuning_rate(prior.denoiser_name, prior.denoiser, small=kind == "tuned")


def train(kind: str, data: GridData, conditioner: Any, path: Path, settings: argparse.Namespace, seed: int) -> Prior:
    """A prior of one kind, read where it was trained before."""
    if kind == "as it is":
        return load_prior(settings.start)
    if path.exists():
        return load_prior(path)
    prior, rate = begin(kind, data, conditioner, path, settings, seed)
    steps = max(1, round(TUNED_SHARE * settings.steps)) if kind == "tuned" else settings.steps
    dropped = {"learned": DROPPED, "tuned": 1.0}.get(kind, 0.0)
    options = PriorRunOptions(batch_size=settings.batch, preview_every=0)
    run = choose_run(
        Length(steps), run=options, learning_rate=rate, seed=seed, machine=MachineOptions(),
        fresh=kind != "tuned" and settings.start is None,
    )  # fmt: skip
    began = time.process_time()
    trained = fit(
        prior, data, loss=PriorLoss(cond_dropout=dropped), run=run, state_path=path.with_suffix(".state"),
        log_path=path.with_suffix(".log.jsonl"), resume=path.with_suffix(".state").exists(),
    )  # fmt: skip
    print(f"{path.stem}: {steps} steps, {time.process_time() - began:.0f} s of one core", file=sys.stderr)
    if kind == "tuned":
        trained = replace(trained, denoiser=merged(trained.denoiser, trained.denoiser_name))
    trained.save(path, force=True)
    return load_prior(path)


def sample(
    prior: Prior, captions: list[str], null: str, scale: float, *, seed: int, runtime: str = "torch"
) -> torch.Tensor:
    """Tokens (N, H, W) of one sample a caption."""
    with torch.inference_mode():
        return vqtool.sample(
            prior, len(captions), condition=vqtool.condition(prior, captions=captions), sampler="purity", steps=CALLS,
            cfg_scale=float(scale), null=None if scale == 1 else null, seed=seed, batch_size=len(captions),
            runtime=runtime,
        )  # fmt: skip


def choose_pictures(settings: argparse.Namespace) -> tuple[list[ImageItem], list[int]]:
    """The pictures to learn from, and the rows of those whose captions are drawn."""
    known = text_image.find_captioned([settings.pictures / "emoji.tar.gz"])
    styles = settings.style.split(",")
    items = [item for item in known if is_wanted(item.id, styles, genders=settings.start is None)]
    if settings.start is not None:  # all that it was trained on
        row = {item.id: number for number, item in enumerate(items)}
        return items, [row[item.id] for item in choose_prompts(items, settings.prompts, 0, styles)]
    if settings.num < len(items):
        items = [items[i * len(items) // settings.num] for i in range(settings.num)]
    rows = np.random.default_rng(0).permutation(len(items))[: settings.prompts]
    return items, sorted(rows.tolist())


def measure(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of scores for each null, guidance scale and seed, and one of the real pictures."""
    settings.work.mkdir(parents=True, exist_ok=True)
    cache = settings.cache or settings.work
    items, asked = choose_pictures(settings)
    captions = [items[row].captions[0] for row in asked]
    dual, network = train_dual(settings.pictures, cache, PIXELS, 0), EfficientNetLite0()
    texts = text_image.text_features(captions, cache)
    others = np.delete(np.arange(len(items)), asked)
    others = others[:: max(1, len(others) // REFERENCES)]
    real, reference = (
        text_image.picture_features([items[row] for row in chosen], cache, PIXELS) for chosen in (asked, others)
    )
    rows = [{"set": settings.style, "way": "real", "seed": 0, **score(real, reference, dual, texts)}]
    images = read_images(items, PIXELS, words="none").images
    if settings.start is None:
        tokenizer = fit_tokenizer(images, settings.codes, settings.work)
        said = [caption for item in items for caption in item.captions]
        conditioner = conditions.build("caption", None, said, vocabulary="bpe", vocabulary_size=None)
    else:
        start = load_prior(settings.start)
        tokenizer, conditioner = tokenizer_of(start.grid_spec, settings.start), start.conditioner
    data = {empty: build_data(images, items, tokenizer, conditioner, empty=empty) for empty in (False, True)}
    for seed in settings.seeds:
        for (kind, null), name in names(settings).items():
            path = settings.work / f"{kind}-{seed}.safetensors"
            prior = train(kind, data[kind == "fixed"], conditioner, path, settings, seed)
            for scale in CFG_SCALES:
                kept = features_path(settings.work, kind, null, scale, seed)
                if not kept.exists():
                    grids = sample(prior, captions, null, scale, seed=seed, runtime=settings.runtime)
                    save(kept, decoded_features(tokenizer, network, grids))
                scores = score(np.load(kept), reference, dual, texts, seed)
                rows.append({"set": settings.style, "way": f"{name}, cfg {scale:g}", "seed": seed, **scores})
            write(rows, settings.work, names(settings))
    return rows


def names(settings: argparse.Namespace) -> dict[tuple[str, str], str]:
    """What is measured -> how it is said."""
    return NULLS if settings.start is None else AS_IT_IS | NULLS


def features_path(work: Path, kind: str, null: str, scale: float, seed: int) -> Path:
    """The file of features; without guidance no null is asked, and none tells a prior from one whose null was tuned."""
    if scale == 1:
        kind, null = "none" if kind == "tuned" else kind, "any"
    return work / "features" / f"{kind}-{null}-{scale}-{seed}.npy"


def write(rows: list[dict[str, Any]], work: Path, said: Mapping[tuple[str, str], str]) -> None:
    """Write the numbers, the tables of their means, and the plot."""
    (work / "null.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    lines = [*wide_table(rows, list(said.values())), "", *table(rows)]
    (work / "null.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw_plot(rows, work / "null.png", list(said.values()))


def wide_table(rows: list[dict[str, Any]], said: Sequence[str]) -> Iterator[str]:
    """As docs/text-to-image.md has it: a line a null, with the text-image score and KID over guidance scales."""
    yield "| null | " + " | ".join(f"{quality} at {scale:g}" for quality in QUALITIES for scale in CFG_SCALES) + " |"
    yield "|---" * (1 + len(QUALITIES) * len(CFG_SCALES)) + "|"
    for name in said:
        cells = []
        for values in (found(rows, name, scale, quality) for quality in QUALITIES for scale in CFG_SCALES):
            cells.append(" ± ".join(f"{value:.3f}".replace("0.", ".", 1) for value in mean_and_error(values)))
        yield f"| {name} | " + " | ".join(cells) + " |"


def found(rows: list[dict[str, Any]], name: str, scale: float, quality: str) -> list[float]:
    """What the seeds give."""
    return [row[quality] for row in rows if row["way"] == f"{name}, cfg {scale:g}"]


def mean_and_error(values: Sequence[float]) -> tuple[float, ...]:
    """The mean, and its standard error where there are several values; nothing of none."""
    if len(values) < 2:
        return tuple(values)
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def draw_plot(rows: list[dict[str, Any]], path: Path, said: Sequence[str]) -> None:
    """Draw the text-image score and KID over guidance scales, a line a null, with standard errors."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8.6, 3.4), dpi=100, layout="constrained")
    for axes, quality in zip(drawing.subplots(1, 2), QUALITIES, strict=True):
        for name in said:
            points = {scale: mean_and_error(found(rows, name, scale, quality)) for scale in CFG_SCALES}
            scales = [scale for scale, point in points.items() if point]
            means, errors = ([(*points[scale], 0.0)[part] for scale in scales] for part in (0, 1))
            axes.errorbar(scales, means, errors, marker="o", markersize=3, linewidth=1, capsize=2, label=name)
        axes.set(xlabel="guidance scale", ylabel=quality)
        axes.grid(color="#eeeeee")
    drawing.axes[0].legend(frameon=False, fontsize=7)
    drawing.savefig(path, format="png", metadata={"Software": None})


def main() -> int:
    """Train, sample, score."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pictures", type=Path, required=True, help="what scripts/prepare_pictures.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for priors, features and scores")
    parser.add_argument("--cache", type=Path, help="of features of real pictures, as for score_prior.py")
    parser.add_argument("--from", dest="start", help="a prior of captions that goes on learning, or builtin")
    parser.add_argument(
        "--style", help=f"openmoji, noto, fluent, flat, twemoji (default: flat; with --from {BUILTIN_STYLES})"
    )
    parser.add_argument("--num", type=int, default=240, help="pictures to learn from, without --from (default: 240)")
    parser.add_argument("--prompts", type=int, default=64, help="captions of them to draw (default: 64)")
    parser.add_argument("--codes", type=int, default=512, help="of the refitted tokenizer (default: 512)")
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: 400)")
    parser.add_argument("--batch", type=int, default=24, help="grids a step (default: 24)")
    parser.add_argument("--runtime", choices=("torch", "onnx"), default="torch", help="of sampling (default: torch)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    settings = parser.parse_args()
    settings.style = settings.style or ("flat" if settings.start is None else BUILTIN_STYLES)
    try:
        measure(settings)
    except (VqtoolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print((settings.work / "null.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
