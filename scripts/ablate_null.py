"""Improved VQ-Diffusion's ablation of the null condition, by training: what guidance compares with, over its scales.

Small priors are trained on emoji of one drawing style, the same but for what stands in place of a caption that is left
out in a tenth of the draws: nothing ("none": no caption is left out), the empty caption ("fixed"), a learned condition
("learned", as train-prior does by default). The fourth, "tuned", is the first, whose null condition alone is trained
afterwards (`train-prior --train null`). Each is sampled with its null, the first and the third with the zero-shot one
(the empty caption, never trained), and scored as by scripts/score_prior.py, over guidance scales and seeds.

    python scripts/ablate_null.py --pictures build/pictures --work build/null

What is done stands in --work and is not done again. Written are null.json, null.md and null.png. Three seeds take 20
minutes of one core.
Source: Tang et al. 2022 (arXiv:2205.16007), section 3.1 and table 4.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import text_image
import torch
from score_prior import decoded_features, save, score, table, train_dual

import vqtool
from vqtool import codebooks, conditions
from vqtool.diffusion import kernels
from vqtool.errors import VqtoolError
from vqtool.images import PREPROCESSING, ImageItem, read_images, to_float
from vqtool.metrics import EfficientNetLite0
from vqtool.priors import GridSpec, Prior, load_prior
from vqtool.tokenizers import Tokenizer, load_tokenizer
from vqtool.training.adapters import TuningOptions, merged
from vqtool.training.building import build_prior, choose_learning_rate
from vqtool.training.clock import Length
from vqtool.training.data import GridData
from vqtool.training.objectives import PriorLoss
from vqtool.training.prior import PriorRunOptions, choose_run, fit
from vqtool.training.runs import MachineOptions

DENOISER, SIZE, PIXELS = "transformer", "tiny", 64
DROPPED = 0.1  # of the captions
CFG_SCALES = (0, 1, 2, 3, 5)  # 0 draws without the caption, 1 without guidance
CALLS = 8
# What was trained, what guidance compares with -> how it is said.
NULLS = {
    ("none", "zero-shot"): "no null training, zero-shot null",
    ("tuned", "learned"): "the same, its null tuned alone",
    ("fixed", "zero-shot"): "fixed null: the empty caption",
    ("learned", "learned"): "learned null",
    ("learned", "zero-shot"): "learned null, zero-shot in sampling",
}
TUNED_SHARE = 0.25  # of the steps, for the null condition alone


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


def train(kind: str, data: GridData, conditioner: Any, path: Path, settings: argparse.Namespace, seed: int) -> Prior:
    """A prior of one kind, read where it was trained before."""
    if path.exists():
        return load_prior(path)
    steps, rate = settings.steps, choose_learning_rate(DENOISER, SIZE)
    if kind == "tuned":
        prior = load_prior(path.with_name(f"none-{seed}.safetensors"))
        prior.denoiser.train().requires_grad_(True)
        TuningOptions(train="null").begin(prior.denoiser, [], seed=seed)
        steps = max(1, round(TUNED_SHARE * steps))
    else:
        kernel = kernels.build("absorbing", schedule=None, codebook_size=settings.codes, num_steps=100)
        prior = build_prior(
            kernel, conditioner, data.grid_spec, SIZE, seed=seed, tokens=data.tokens, denoiser=DENOISER
        )  # fmt: skip
    dropped = {"learned": DROPPED, "tuned": 1.0}.get(kind, 0.0)
    options = PriorRunOptions(batch_size=settings.batch, preview_every=0)
    run = choose_run(
        Length(steps), run=options, learning_rate=rate, seed=seed, machine=MachineOptions(), fresh=kind != "tuned"
    )  # fmt: skip
    began = time.process_time()
    trained = fit(
        prior, data, loss=PriorLoss(cond_dropout=dropped), run=run, state_path=path.with_suffix(".state"),
        log_path=path.with_suffix(".log.jsonl"), resume=path.with_suffix(".state").exists(),
    )  # fmt: skip
    print(f"{path.stem}: {steps} steps, {time.process_time() - began:.0f} s of one core", file=sys.stderr)
    if kind == "tuned":
        trained = replace(trained, denoiser=merged(trained.denoiser, DENOISER))
    trained.save(path, force=True)
    return load_prior(path)


def sample(prior: Prior, captions: list[str], null: str, scale: float, seed: int) -> torch.Tensor:
    """Tokens (N, H, W) of one sample a caption."""
    with torch.inference_mode():
        return vqtool.sample(
            prior, len(captions), condition=vqtool.condition(prior, captions=captions), sampler="purity", steps=CALLS,
            cfg_scale=float(scale), null=None if scale == 1 else null, seed=seed, batch_size=len(captions),
        )  # fmt: skip


def measure(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of scores for each null, guidance scale and seed, and one of the real pictures."""
    settings.work.mkdir(parents=True, exist_ok=True)
    cache = settings.cache or settings.work
    known = text_image.find_captioned([settings.pictures / "emoji.tar.gz"])
    known = [item for item in known if item.id.startswith(f"{settings.style}/")]
    items = [known[i * len(known) // settings.num] for i in range(settings.num)] if settings.num < len(known) else known
    rng = np.random.default_rng(0)
    asked = np.sort(rng.permutation(len(items))[: settings.prompts])
    captions = [items[row].captions[0] for row in asked]
    dual, network = train_dual(settings.pictures, cache, PIXELS, 0), EfficientNetLite0()
    texts = text_image.text_features(captions, cache)
    features = text_image.picture_features(items, cache, PIXELS)
    reference = np.delete(features, asked, axis=0)
    rows = [{"set": settings.style, "way": "real", "seed": 0, **score(features[asked], reference, dual, texts)}]
    images = read_images(items, PIXELS, words="none").images
    tokenizer = fit_tokenizer(images, settings.codes, settings.work)
    said = [caption for item in items for caption in item.captions]
    conditioner = conditions.build("caption", None, said, vocabulary="bpe", vocabulary_size=None)
    data = {empty: build_data(images, items, tokenizer, conditioner, empty=empty) for empty in (False, True)}
    for seed in settings.seeds:
        for (kind, null), name in NULLS.items():
            path = settings.work / f"{kind}-{seed}.safetensors"
            prior = train(kind, data[kind == "fixed"], conditioner, path, settings, seed)
            for scale in CFG_SCALES:
                kept = settings.work / "features" / f"{kind}-{null}-{scale}-{seed}.npy"
                if not kept.exists():
                    grids = sample(prior, captions, null, scale, seed)
                    save(kept, decoded_features(tokenizer, network, grids))
                scores = score(np.load(kept), reference, dual, texts, seed)
                rows.append({"set": settings.style, "way": f"{name}, cfg {scale:g}", "seed": seed, **scores})
        write(rows, settings.work)
    return rows


def write(rows: list[dict[str, Any]], work: Path) -> None:
    """Write the numbers, the table of their means, and the plot."""
    (work / "null.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (work / "null.md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")
    draw_plot(rows, work / "null.png")


def draw_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the text-image score and KID over guidance scales, a line a null, with standard errors."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8.6, 3.4), dpi=100, layout="constrained")
    for axes, quality in zip(drawing.subplots(1, 2), ("score", "KID"), strict=True):
        for name in NULLS.values():
            found = [[row[quality] for row in rows if row["way"] == f"{name}, cfg {scale:g}"] for scale in CFG_SCALES]
            means = [np.mean(values) for values in found]
            errors = [np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0 for values in found]
            axes.errorbar(CFG_SCALES, means, errors, marker="o", markersize=3, linewidth=1, capsize=2, label=name)
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
    parser.add_argument("--style", default="flat", help="openmoji, noto, fluent, flat or twemoji (default: flat)")
    parser.add_argument("--num", type=int, default=240, help="pictures to learn from (default: 240)")
    parser.add_argument("--prompts", type=int, default=64, help="captions of them to draw (default: 64)")
    parser.add_argument("--codes", type=int, default=512, help="of the refitted tokenizer (default: 512)")
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: 400)")
    parser.add_argument("--batch", type=int, default=24, help="grids a step (default: 24)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    settings = parser.parse_args()
    try:
        measure(settings)
    except (VqtoolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print((settings.work / "null.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
