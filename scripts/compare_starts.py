"""Compare ways to train a prior on a folder of some hundred pictures: from nothing, or from the built-in prior.

For each folder of scripts/own_folders.py, and each way that suits it, a prior is trained for so many minutes of one
core, or for so many steps. On the way the bound on the folder's held-out pictures is measured, under the averaged
weights; at the end, of the weights with the lowest bound and of the last ones, the bound on pictures that were learned
from, and what samples are: how many copy a training picture (the nearest training grid has the same token in more than
half of the cells), and KID against all pictures of the folder. Pictures are cropped: white borders would be copies.

    python scripts/compare_starts.py --folders build/own --work build/starts
    python scripts/compare_starts.py --folders build/own --work build/starts --names flags --ways scratch builtin lora

Each run is a JSON file in --work, and is not done again. Written are starts.md and starts.png of all that are there of
the seeds that are named, with means and standard errors.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from score_prior import decoded_features

import vqtool
from vqtool.captions import split_captions
from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch, GridHeader, read_grids
from vqtool.images import SourceOptions, read_images, to_float
from vqtool.metrics import EfficientNetLite0, extract, kernel
from vqtool.options import distribute
from vqtool.priors import GridSpec, Prior, load_prior
from vqtool.tokenizers import Tokenizer, load_tokenizer
from vqtool.training.adapters import TuningOptions
from vqtool.training.building import Beginning, ConditionOptions, DenoiserOptions, DiffusionOptions, begin
from vqtool.training.clock import Length
from vqtool.training.data import GridData, build_data
from vqtool.training.objectives import PriorLoss, validate
from vqtool.training.prior import PriorRunOptions, choose_run, fit
from vqtool.training.runs import MachineOptions
from vqtool.training.tuning import go_on

NAMES = ("clipart", "flags", "photos", "digits")
MIRRORED = ("clipart", "photos")  # folders whose pictures may be mirrored
SEVERAL = ("clipart", "flags")  # folders with several captions a picture
CROPPED = SourceOptions(fit="crop")
COPIED = 0.5  # of the cells that are the same: more is a copy
CALLS, CFG_SCALE = 8, 3.0
TIMED_STEPS = 4
AXES = {"steps": "step", "minutes of one core": "minutes"}  # of the plot -> what looks say


@dataclass(frozen=True)
class Way:
    """One way to train."""

    said: str
    from_builtin: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)  # of `vqtool.train_prior`
    mirrored: bool = False  # whether every picture is there mirrored, too
    one_caption: bool = False  # whether the first caption of each picture is the only one


WAYS = {
    "scratch": Way("from nothing", options={"dropout": 0.0}),
    "absorbing": Way("from nothing, absorbing", options={"kernel": "absorbing", "dropout": 0.0}),
    "dropout": Way("from nothing, dropout .2", options={"dropout": 0.2}),
    "mirrored": Way("from nothing, mirrored too", options={"dropout": 0.0}, mirrored=True),
    "one-caption": Way("from nothing, one caption each", options={"dropout": 0.0}, one_caption=True),
    "builtin": Way("from built-in", from_builtin=True),
    "builtin-dropout": Way("from built-in, dropout .2", from_builtin=True, options={"dropout": 0.2}),
    "builtin-mirrored": Way("from built-in, mirrored too", from_builtin=True, mirrored=True),
    "builtin-one-caption": Way("from built-in, one caption each", from_builtin=True, one_caption=True),
    "lora": Way("from built-in, LoRA 16", from_builtin=True, options={"lora": 16}),
}


@dataclass(frozen=True)
class Folder:
    """Grids of a folder, those held out, and features of all pictures."""

    header: GridHeader
    batch: GridBatch
    mirrored: np.ndarray  # (N, H, W) tokens
    held_out: GridBatch
    features: np.ndarray  # (M, 1280)

    @classmethod
    def read(cls, name: str, settings: argparse.Namespace, size: tuple[int, int]) -> "Folder":
        """Encode a folder with the built-in tokenizer, or read what was encoded before."""
        sources = {"": settings.folders / name, "-heldout": settings.folders / "heldout" / name}
        found = {}
        for kind, source in sources.items():
            path = settings.work / f"{name}{kind}.h5"
            if not path.exists():
                vqtool.encode([source], path, options=CROPPED, image_size=size)
            found[kind] = read_grids(path)
        header, batch = found[""]
        mirrored = settings.work / f"{name}-mirrored.npy"
        if not mirrored.exists():
            images = read_images(sources[""], size, options=CROPPED)
            if images.ids != batch.ids:
                raise VqtoolError(f"{source}: its pictures are not those of {name}.h5: remove that")
            flipped = torch.from_numpy(np.ascontiguousarray(images.images[..., ::-1]))
            np.save(mirrored, _encode(flipped))
        features = settings.work / f"{name}-features.npy"
        if not features.exists():
            pictures = (read_images(source, size, options=CROPPED).images for source in sources.values())
            np.save(features, extract(EfficientNetLite0(), pictures).pooled)
        kept = slice(None, None, len(batch) // min(len(batch), settings.most))
        return cls(header, batch[kept], np.load(mirrored)[kept], found["-heldout"][1], np.load(features))

    def batch_of(self, way: Way) -> GridBatch:
        """What such a way learns from."""
        batch = self.batch
        if way.one_caption and batch.captions is not None:
            batch = replace(batch, captions=[split_captions(text)[0] for text in batch.captions])
        if way.mirrored:
            batch = GridBatch(
                np.concatenate([batch.tokens, self.mirrored.astype(batch.tokens.dtype)]),
                batch.ids + [f"{id}#mirrored" for id in batch.ids],
                batch.labels and batch.labels * 2,
                batch.captions and batch.captions * 2,
            )
        return batch


@torch.inference_mode()
def _encode(images: torch.Tensor) -> np.ndarray:
    tokenizer = load_tokenizer("builtin")
    return torch.cat([tokenizer.encode(to_float(part)) for part in images.split(64)]).numpy()


def begin_run(way: Way, folder: Folder, settings: argparse.Namespace) -> tuple[Beginning, GridData]:
    """What is trained on what, and the grids that the bound is measured on."""
    batch, options, seed = folder.batch_of(way), dict(way.options), settings.seed
    if way.from_builtin:
        tuning = TuningOptions(**{name: options[name] for name in options if name == "lora"})
        prior = load_prior(settings.prior)
        start = go_on(prior, folder.header, batch, ConditionOptions(), tuning, given=options, seed=seed)
    else:
        diffusion, network = distribute(options, DiffusionOptions, DenoiserOptions)
        start = begin(folder.header, batch, diffusion, network, ConditionOptions(), seed=seed)
    held_out = build_data(folder.held_out, start.prior.conditioner, GridSpec.of(folder.header))
    return start, held_out.thin(settings.held_out)


def train(
    start: Beginning, steps: int, settings: argparse.Namespace, look: Callable[[Prior, int], None] | None = None
) -> Prior:
    """Train for some steps; `look` sees the prior with its averaged weights on the way."""
    options = PriorRunOptions(batch_size=settings.batch, preview_every=max(1, steps // settings.looks) if look else 0)
    run = choose_run(
        Length(steps), run=options, learning_rate=start.learning_rate, seed=settings.seed, machine=MachineOptions(),
        fresh=not start.location,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        return fit(
            start.prior, start.data, loss=PriorLoss(), run=run, state_path=Path(folder) / "state",
            log_path=Path(folder) / "log", preview=look,
        )  # fmt: skip


def time_step(start: Beginning, settings: argparse.Namespace) -> float:
    """Seconds of one core that a step takes, whatever else the machine does."""
    trial = replace(start, prior=copy.deepcopy(start.prior))
    times = []
    train(
        trial, TIMED_STEPS, replace_looks(settings, TIMED_STEPS), lambda prior, step: times.append(time.process_time())
    )
    return float(np.median(np.diff(times)))


def replace_looks(settings: argparse.Namespace, looks: int) -> argparse.Namespace:
    """The same settings with another number of looks."""
    return argparse.Namespace(**vars(settings) | {"looks": looks})


def run(name: str, way: Way, folder: Folder, settings: argparse.Namespace) -> dict[str, Any]:
    """Train one way on one folder: the bound over minutes, and what samples are at its lowest and at the end."""
    start, held_out = begin_run(way, folder, settings)
    steps = settings.steps or max(settings.looks, int(60 * settings.minutes / time_step(start, settings)))
    course: list[dict[str, float]] = []
    best: dict[str, Any] = {"bound": float("inf")}
    spent = 0.0  # in looking
    began = time.process_time()

    def look(prior: Prior, step: int) -> None:
        nonlocal spent
        now = time.process_time()
        bound = float(validate(prior.denoiser, prior, held_out, settings.seed))
        course.append({"step": step, "minutes": (now - began - spent) / 60, "bound": bound})
        if bound < best["bound"]:
            best.update(bound=bound, step=step, prior=replace(prior, denoiser=copy.deepcopy(prior.denoiser)))
        spent += time.process_time() - now

    if start.location:
        look(replace(start.prior, denoiser=start.prior.denoiser.eval()), 0)
        start.prior.denoiser.train()
    last = train(start, steps, settings, look)
    if course[-1]["step"] != steps:
        look(last, steps)
    tokenizer, network = load_tokenizer("builtin"), EfficientNetLite0()
    judge = {"tokenizer": tokenizer, "network": network, "folder": folder, "data": start.data}
    found = {"folder": name, "way": way.said, "steps": steps, "grids": len(start.data), "course": course}
    found["alike"] = share_copied(held_out.tokens, start.data.tokens)
    found["best"] = {"step": best["step"], "bound": best["bound"], **score(best["prior"], settings, **judge)}
    same = best["step"] == steps
    found["last"] = found["best"] if same else {"bound": course[-1]["bound"], **score(last, settings, **judge)}
    return found


def score(
    prior: Prior,
    settings: argparse.Namespace,
    *,
    tokenizer: Tokenizer,
    network: EfficientNetLite0,
    folder: Folder,
    data: GridData,
) -> dict[str, float]:
    """The bound on grids that were learned from; what samples are: how many are copies of those, and KID."""
    learned = validate(prior.denoiser, prior, data.thin(settings.held_out), settings.seed)
    options: dict[str, Any] = {"sampler": "purity", "steps": CALLS}
    if prior.conditioner.kind != "none" and (folder.batch.captions or folder.batch.labels):
        said = [split_captions(text)[0] for text in folder.batch.captions or folder.batch.labels or []]
        chosen = [said[i * len(said) // settings.samples] for i in range(settings.samples)]
        kind = "labels" if prior.conditioner.kind == "class" else "captions"
        options |= {"condition": vqtool.condition(prior, **{kind: chosen}), "cfg_scale": CFG_SCALE}
    with torch.inference_mode():
        samples = vqtool.sample(prior, settings.samples, seed=settings.seed, batch_size=settings.samples, **options)
    features = decoded_features(tokenizer, network, samples)
    subset = max(2, min(100, settings.samples // 2))
    distance = kernel.kernel_distance(folder.features, features, subset_size=subset, seed=settings.seed).mean
    copied = share_copied(samples.numpy(), data.tokens)
    return {"learned": float(learned), "copied": copied, "KID": float(distance)}


def share_copied(samples: np.ndarray, grids: np.ndarray) -> float:
    """The share of samples (S, H, W) that agree with one of the grids (N, H, W) in more than half of the cells."""
    flat, own = samples.reshape(len(samples), -1), grids.reshape(len(grids), -1)
    nearest = np.array([(own == sample).mean(axis=1).max() for sample in flat])
    return float((nearest > COPIED).mean())


def suits(way: str, name: str) -> bool:
    """Whether a way is one for a folder."""
    if WAYS[way].mirrored:
        return name in MIRRORED
    return name in SEVERAL if WAYS[way].one_caption else True


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of markdown: means over the seeds, with standard errors where there are several."""
    names = ("folder", "way", "seeds", "steps", "bound, lowest", "step", "learned", "copied", "KID", "last", "learned")
    yield "| " + " | ".join([*names, "copied", "KID"]) + " |"
    yield "|---" * 13 + "|"
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for run in found:
        groups.setdefault((run["folder"], run["way"], run["steps"]), []).append(run)
    for (name, way, steps), runs in groups.items():
        cells = [
            said([run[at][what] for run in runs], digits)
            for at in ("best", "last")
            for what, digits in (("bound", 2), ("step", 0), ("learned", 2), ("copied", 2), ("KID", 3))
            if (at, what) != ("last", "step")
        ]
        yield f"| {name} | {way} | {len(runs)} | {steps} | " + " | ".join(cells) + " |"
    alike = {run["folder"]: run["alike"] for run in found}
    yield ""
    yield "Held-out pictures that agree as much: " + ", ".join(f"{name} {share:.0%}" for name, share in alike.items())


def said(values: list[float], digits: int) -> str:
    """The mean, and its standard error if there are several values."""
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{error}"


def draw_plot(found: list[dict[str, Any]], path: Path, over: str = "steps") -> None:
    """Draw the bounds over steps or minutes, a panel a folder, a line a way."""
    from matplotlib.figure import Figure

    names = [name for name in NAMES if any(run["folder"] == name for run in found)]
    drawing = Figure(figsize=(3.2 * len(names) + 1, 3.6), dpi=100, layout="constrained")
    for axes, name in zip(np.atleast_1d(drawing.subplots(1, len(names))), names, strict=True):
        for number, way in enumerate(WAYS.values()):
            own = [run for run in found if (run["folder"], run["way"]) == (name, way.said)]
            for run in own:
                x, y = ([point[key] for point in run["course"]] for key in (AXES[over], "bound"))
                style = "-" if way.from_builtin else "--"
                label = way.said if run is own[0] else None
                axes.plot(x, y, style, marker="o", markersize=3, linewidth=1, color=f"C{number}", label=label)
        axes.set(xlabel=over, title=name)
        axes.grid(color="#eeeeee")
    drawing.axes[0].set_ylabel("bound on held-out pictures, nats a token")
    lines = {
        label: line for axes in drawing.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    drawing.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    drawing.savefig(path, format="png", metadata={"Software": None})


def main() -> int:
    """Train all ways on all folders, and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folders", type=Path, required=True, help="what scripts/own_folders.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for grids and results")
    parser.add_argument("--prior", default="builtin", help="to begin with (default: builtin)")
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--minutes", type=float, default=1.5, help="of one core a training (default: 1.5)")
    parser.add_argument("--steps", type=int, help="of each training, in place of minutes")
    parser.add_argument("--batch", type=int, default=64, help="grids a step (default: 64)")
    parser.add_argument("--most", type=int, default=10**6, help="pictures of a folder that are learned from, about")
    parser.add_argument("--looks", type=int, default=5, help="at the bound on the way (default: 5)")
    parser.add_argument("--held-out", type=int, default=40, help="held-out pictures (default: 40)")
    parser.add_argument("--samples", type=int, default=48, help="to score (default: 48)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    settings = parser.parse_args()
    settings.work.mkdir(parents=True, exist_ok=True)
    try:
        size = load_prior(settings.prior).grid_spec.image_size
        for seed, way, name in product(settings.seeds, settings.ways, settings.names):
            path = settings.work / f"{name}-{way}-{seed}.json"
            if not path.exists() and suits(way, name):
                settings.seed = seed
                found = run(name, WAYS[way], Folder.read(name, settings, size), settings)
                path.write_text(json.dumps(found, indent=1), encoding="utf-8")
                print(f"{path.stem}: {json.dumps(found['best'])} {json.dumps(found['last'])}", file=sys.stderr)
    except (VqtoolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    paths = (settings.work / f"{name}-{way}-{seed}.json" for name, way, seed in product(NAMES, WAYS, settings.seeds))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    (settings.work / "starts.md").write_text("\n".join(table(found)) + "\n", encoding="utf-8")
    draw_plot(found, settings.work / "starts.png", "steps" if settings.steps else "minutes of one core")
    print((settings.work / "starts.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
