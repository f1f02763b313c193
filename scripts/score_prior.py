"""Score a text prior over guidance scales, samplers and numbers of calls, on captions of its training and held out.

Two sets of captions, an emoji each in one of the five styles: of training pictures, and of concepts that are in no
training picture. Each way to sample draws a picture for each caption. Scores of each set: the text-image score of
scripts/text_image.py (cosine), the rank of a picture's own caption among all of the set, and with EfficientNet-Lite0's
features KID, Fréchet distance, precision and recall against real pictures of the set. Rows "real" are the real pictures
of the same captions, the upper bound; "tokenizer" the same after the tokenizer, the bound of its prior. The score with
shuffled captions is the chance. CPU seconds are those of the process, for a picture; take one thread.

    python scripts/score_prior.py PRIOR --pictures build/pictures --work build/scores
    python scripts/score_prior.py PRIOR --pictures build/pictures --work build/scores --only-sample  # on a GPU
    python scripts/score_prior.py PRIOR --pictures build/pictures --work build/scores --minutes 20   # on one core
    python scripts/score_prior.py PRIOR --pictures build/pictures --work build/scores --ways calls front

The ways stand in order of worth; the first seed of all of them comes first. After --minutes no other one is begun. What
is done stands in --work and is not done again: tokens (a few MB for all ways), features. Written are scores.json,
scores.md, scores.png (over guidance scales) and front.png (over CPU seconds).
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import text_image
import torch

import vqtool
from vqtool.distributed import choose_device
from vqtool.errors import VqtoolError
from vqtool.grids import read_grids
from vqtool.images import ImageItem, read_images, to_float, to_uint8
from vqtool.metrics import EfficientNetLite0, extract, frechet, judges, kernel, prdc
from vqtool.metrics.dual_encoder import NAME, DualEncoder, load_dual_encoder, save_dual_encoder
from vqtool.priors import Prior
from vqtool.tokenizers import Tokenizer, tokenizer_of

SETS = ("trained", "held-out")
COLOURS = ("#3b75af", "#e8a33d")
_REAL = {"real": "real pictures", "tokenizer": "after the tokenizer"}
STYLES = ("openmoji", "noto", "fluent", "flat", "twemoji")
SMALL_CELLS = 64  # grids of so many take half of the calls
CALLS = (8, 16, 25, 50, 100, 200)
FEW_CALLS = (4, 6)  # by the usual sampler alone
DUAL_PICTURES = 6_000  # that the dual encoder is trained on, at most
BATCH, DECODED = 64, 16  # samples drawn at once, pictures decoded at once


@dataclass(frozen=True)
class Way:
    """One way to sample."""

    cfg_scale: float
    sampler: str
    steps: int
    seed: int = 0
    null: str | None = None  # what guidance compares with; None is the learned null
    truncation: float = 1.0
    temperature: float = 1.0
    best: int = 1  # candidates of each picture, of which the prior's likelihood keeps one
    cfg_refresh: int = 1  # calls for which what guidance compares with is kept
    times: str | None = None  # "auto" plans them
    runtime: str = "torch"

    @property
    def calls(self) -> int:
        """Calls of the network for a picture, those of guidance not counted."""
        return self.steps * (2 if self.sampler == "gibbs" else 1)

    @property
    def _extras(self) -> Iterator[tuple[str, str]]:
        """In names and in tables, what is not as usual."""
        if self.null:
            yield self.null, f"{self.null} null"
        if self.truncation < 1:
            yield f"top{self.truncation:g}", f"truncation {self.truncation:g}"
        if self.temperature != 1:
            yield f"t{self.temperature:g}", f"temperature {self.temperature:g}"
        if self.best > 1:
            yield f"best{self.best}", f"best of {self.best}"
        if self.cfg_refresh > 1:
            yield f"refresh{self.cfg_refresh}", f"cfg-refresh {self.cfg_refresh}"
        if self.times:
            yield f"times-{self.times}", f"{self.times} times"
        if self.runtime != "torch":
            yield self.runtime, f"{self.runtime} runtime"

    @property
    def name(self) -> str:
        """Of its files."""
        extras = "".join(f"-{name}" for name, _ in self._extras)
        return f"{self.sampler}-{self.steps}-cfg{self.cfg_scale:g}{extras}-seed{self.seed}"

    @property
    def said(self) -> str:
        """In tables."""
        extras = "".join(f", {words}" for _, words in self._extras)
        return f"{self.sampler}, {self.calls} calls, cfg {self.cfg_scale:g}{extras}"


KINDS = ("guidance", "calls", "front", "best", "few")
CFG_SCALES = (3, 1, 2, 5, 0)  # 1 is without guidance, 0 without the caption
BEST = 8


def ways(seeds: Sequence[int], usual: Way, cells: int, num_steps: int, kinds: Sequence[str] = KINDS[:3]) -> list[Way]:
    """What is measured, the most telling first: the usual way, and what differs from it in one or two points.

    Args:
        seeds: of each.
        usual: purity with guidance.
        cells: of a grid; `purity` and `fewer` make no more calls.
        num_steps: T; `ancestral` makes no more.
        kinds: "guidance" has its scales, temperatures and nulls; "calls" their number, by three samplers, up to the
            most that each makes; "front" what makes calls cheaper, or better use of them; "best" what a choice among
            candidates gains; "few" what two and four calls of the network give, for students too.
    """
    calls = usual.steps
    most = {"purity": cells, "fewer": cells, "ancestral": num_steps}
    chosen = {kind: [] for kind in KINDS} | {
        "guidance": [replace(usual, cfg_scale=scale) for scale in CFG_SCALES]
        + [replace(usual, temperature=warmth) for warmth in (1.0, 0.8, 0.6)]
        + [replace(usual, null="zero-shot")],
        "calls": [replace(usual, steps=steps) for steps in FEW_CALLS]
        + [
            replace(usual, sampler=sampler, steps=steps)
            for steps in sorted({*CALLS, *most.values()})
            for sampler in most
            if steps == min(most[sampler], CALLS[-1]) or (steps in CALLS and steps <= most[sampler])
        ],
        "front": [replace(usual, sampler="ancestral", steps=100), usual]
        + [replace(usual, cfg_refresh=refresh) for refresh in (2, 4)]
        + [replace(usual, runtime=runtime) for runtime in ("torch", "onnx")]
        + [replace(usual, sampler="ancestral", steps=calls, times=times) for times in (None, "auto")]
        + [replace(usual, sampler="remask", steps=steps) for steps in (calls, 2 * calls)]
        + [replace(usual, sampler="gibbs", steps=steps) for steps in (calls // 2, calls)],
        "best": [replace(usual, best=best) for best in (1, BEST)],
        "few": [replace(usual, steps=2)]
        + [
            replace(usual, steps=steps, cfg_scale=1, temperature=warmth)
            for steps in (4, 2)
            for warmth in (usual.temperature, 1.0)
        ],
    }
    found = dict.fromkeys(way for kind in kinds for way in chosen[kind])
    return [replace(way, seed=seed) for seed in seeds for way in found]


def choose_prompts(items: Sequence[ImageItem], num: int, seed: int, styles: Sequence[str] = STYLES) -> list[ImageItem]:
    """So many emoji of different concepts, the styles in turn, each in its style."""
    by_name: dict[str, dict[str, ImageItem]] = {}
    for item in items:
        style, name = item.id.split("/")
        by_name.setdefault(name, {})[style] = item
    names = sorted(name for name, own in by_name.items() if all(style in own for style in styles))
    order = np.random.default_rng([seed, 5]).permutation(len(names))[:num]
    return [by_name[names[row]][styles[i % len(styles)]] for i, row in enumerate(order)]


def sample(prior: Prior, captions: list[str], way: Way) -> np.ndarray:
    """Tokens (N, H, W) of one sample a caption."""
    judge = judges.build(prior, judges.JudgeOptions(best=way.best), seed=way.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.h5"
        vqtool.sample_to_file(
            prior,
            path,
            len(captions),
            captions=captions,
            sampler=way.sampler,
            steps=way.steps,
            cfg_scale=float(way.cfg_scale),
            cfg_refresh=way.cfg_refresh,
            null=way.null,
            truncation=way.truncation,
            temperature=way.temperature,
            runtime=way.runtime,
            seed=way.seed,
            best=way.best,
            judge=judge,
            batch_size=BATCH,
            **({"times": way.times} if way.times else {}),
        )
        return read_grids(path)[1].tokens.astype(np.uint16)


class _Spent:
    """CPU seconds a picture of each way, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def __getitem__(self, way: Way) -> float:
        return self._seconds[way.name]

    def add(self, way: Way, seconds: float) -> None:
        """Keep one, on disk too."""
        self._seconds[way.name] = seconds
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._seconds, indent=1), encoding="utf-8")


def save(path: Path, array: np.ndarray) -> np.ndarray:
    """Write an array whole or not at all; return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, array)
    partial.replace(path)
    return array


@torch.inference_mode()
def decoded_features(tokenizer: Tokenizer, network: EfficientNetLite0, grids: torch.Tensor) -> np.ndarray:
    """EfficientNet-Lite0's features (N, 1280) of the pictures of grids (N, H, W)."""
    parts = (to_uint8(tokenizer.decode(part).cpu()) for part in grids.split(DECODED))
    return extract(network, parts).pooled


def score(
    features: np.ndarray, reference: np.ndarray, dual: DualEncoder, texts: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """All scores of the pictures of one set.

    Args:
        features: (N, 1280) of the pictures, in the order of the captions.
        reference: (M, 1280) of real pictures.
        dual: the text-image score.
        texts: (N, 384) of the captions.
        seed: of KID's subsets and of the shuffled captions.
    """
    cosines = dual.scores(features, texts)
    own = np.arange(len(texts))
    ranks = text_image.ranks(cosines, own)
    shuffled = np.roll(np.random.default_rng([seed, 6]).permutation(len(own)), 1)
    neighbours = prdc.neighbour_scores(reference, features, nearest_k=min(5, len(features) - 1))
    return {
        "score": float(cosines[own, own].mean()),
        "score, shuffled": float(cosines[own, shuffled].mean()),
        "R@1": float((ranks == 1).mean()),
        "R@5": float((ranks <= 5).mean()),
        "median rank": float(np.median(ranks)),
        "KID": kernel.kernel_distance(reference, features, subset_size=min(100, len(features) // 2), seed=seed).mean,
        "FD": float(frechet.frechet_distance(reference, features)),
        "precision": neighbours.precision,
        "recall": neighbours.recall,
    }


def train_dual(pictures: Path, cache: Path, size: int, seed: int) -> DualEncoder:
    """The dual encoder of the training pictures at a size, read from the cache where it was trained before."""
    path = cache / f"dual-{size}-{DUAL_PICTURES}-{seed}.safetensors"
    if not path.exists():
        sources = [pictures / "emoji.tar.gz", pictures / "clipart.tar.gz"]
        save_dual_encoder(path, text_image.train_on(sources, cache, size, most=DUAL_PICTURES, seed=seed)[0])
    return load_dual_encoder(path)[0]


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of markdown: each way's means over its seeds, with standard errors where there are several."""
    names = [name for name in rows[0] if name not in ("way", "set", "seed", "CPU s")]
    yield "| set | way | seeds | " + " | ".join(names) + " |"
    yield "|---" * (3 + len(names)) + "|"
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["way"]), []).append(row)
    for (kind, way), own in groups.items():
        cells = []
        for name in names:
            values = np.array([row[name] for row in own])
            error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.2g}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3g}{error}")
        yield f"| {kind} | {way} | {len(own)} | " + " | ".join(cells) + " |"


def paired_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """As docs/text-to-image.md has it: a line a way, with "trained / held out" in each cell."""
    names = ("score", "R@1", "R@5", "KID", "FD", "precision", "recall")
    yield "| way | seeds | CPU s | " + " | ".join(names) + " |"
    yield "|---" * (3 + len(names)) + "|"
    for way in dict.fromkeys(row["way"] for row in rows):
        own = {kind: [row for row in rows if (row["way"], row["set"]) == (way, kind)] for kind in SETS}
        cells = [" / ".join(_short(name, [row[name] for row in own[kind]]) for kind in SETS) for name in names]
        spent = [row["CPU s"] for row in own[SETS[0]] if "CPU s" in row]
        yield f"| {way} | {len(own[SETS[0]])} | {_short('CPU s', spent)} | " + " | ".join(cells) + " |"


def _short(name: str, values: Sequence[float]) -> str:
    digits = {"FD": 0, "score": 3, "KID": 3, "CPU s": 3}.get(name, 2)
    return f"{np.mean(values):.{digits}f}".replace("0.", ".", 1) if len(values) else ""


def write_report(work: Path, header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Write scores.json, with a short summary for the prior's header, and scores.md."""
    first = next(row["way"] for row in rows if row["way"] not in ("real", "tokenizer"))
    best = [row for row in rows if row["way"] == first and row["seed"] == 0]
    keys = ("score", "R@1", "R@5", "KID", "precision", "recall")
    summary = {f"{row['set']}.{key}": round(row[key], 4) for row in best for key in keys}
    report = {**header, "summary": summary, "rows": list(rows)}
    (work / "scores.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    text = "\n".join([*paired_table(rows), "", *table(rows)])
    (work / "scores.md").write_text(text + "\n", encoding="utf-8")


def draw_plot(rows: Sequence[dict[str, Any]], path: Path, usual: Way) -> None:
    """Draw quality against diversity over guidance scales: the text-image score and precision against recall."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8.6, 3.4), dpi=100, layout="constrained")
    for axes, quality in zip(drawing.subplots(1, 2), ("score", "precision"), strict=True):
        for kind, colour in zip(SETS, COLOURS, strict=True):
            own = {scale: _found(rows, kind, replace(usual, cfg_scale=scale).said) for scale in sorted(CFG_SCALES)}
            scales = [scale for scale, found in own.items() if found]
            x, y = (np.array([_mean(own[scale], name) for scale in scales]) for name in ("recall", quality))
            x_error, y_error = ([_error(own[scale], name) for scale in scales] for name in ("recall", quality))
            axes.errorbar(
                x, y, y_error, x_error, fmt="-o", color=colour, markersize=4, linewidth=1, elinewidth=0.5, label=kind
            )
            for scale, *place in zip(scales, x, y, strict=True):
                axes.annotate(f" {scale}", place, fontsize=8)
            for way, marker in (("tokenizer", "s"), ("real", "*")):
                for row in _found(rows, kind, way):
                    place = row["recall"], row[quality]
                    axes.plot(*place, marker, color=colour, markersize=8, label=f"{kind}, {_REAL[way]}")
        axes.set(xlabel="recall (diversity)", ylabel=quality)
        axes.grid(color="#eeeeee")
    drawing.axes[0].set_title(f"numbers: guidance scale; {usual.sampler}, {usual.calls} calls", size=8, loc="left")
    drawing.legend(*drawing.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=7)
    drawing.savefig(path, format="png", metadata={"Software": None})


def draw_front(rows: Sequence[dict[str, Any]], path: Path, chosen: Sequence[Way], usual: Way) -> None:
    """Draw score and KID over CPU seconds a picture, a panel a set; calls of one sampler are joined."""
    from matplotlib.figure import Figure

    lines = lines_of_front(chosen, usual)
    shown = {said for calls in lines.values() for said in calls.values()}
    spent = [row["CPU s"] for row in rows if row["way"] in shown]
    drawing = Figure(figsize=(8.6, 6.4), dpi=100, layout="constrained")
    for line, quality in zip(drawing.subplots(2, 2, sharex=True), ("score", "KID"), strict=True):
        for axes, kind in zip(line, SETS, strict=True):
            for number, (label, calls) in enumerate(lines.items()):
                own = {count: _found(rows, kind, said) for count, said in calls.items()}
                counts = [count for count, found in own.items() if found]
                x, y = (np.array([_mean(own[count], name) for count in counts]) for name in ("CPU s", quality))
                errors = [_error(own[count], quality) for count in counts]
                style = {"color": f"C{number % 10}", "marker": "osD^v"[number // 3 % 5]}
                axes.errorbar(x, y, errors, markersize=4, linewidth=1, elinewidth=0.5, label=label, **style)
                for count, *place in zip(counts, x, y, strict=True):
                    axes.annotate(f" {count}", place, fontsize=6)
            limits = min(spent) / 1.3, max(spent) * 1.3
            axes.set(xscale="log", xlim=limits, ylabel=quality, title=kind if quality == "score" else "")
            axes.grid(color="#eeeeee")
    for axes in drawing.axes[2:]:
        axes.set_xlabel("CPU seconds a picture")
    drawing.legend(
        *drawing.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=7
    )
    drawing.savefig(path, format="png", metadata={"Software": None})


def lines_of_front(chosen: Sequence[Way], usual: Way) -> dict[str, dict[int, str]]:
    """What is joined by a line -> calls -> way, of ways with the guidance and temperature of the usual one."""
    lines: dict[str, dict[int, str]] = {}
    for way in sorted(chosen, key=lambda way: way.calls):
        if (way.cfg_scale, way.null, way.temperature) == (usual.cfg_scale, usual.null, usual.temperature):
            said = replace(way, temperature=1.0).said.replace(f", {way.calls} calls, cfg {way.cfg_scale:g}", "")
            lines.setdefault(said, {})[way.calls] = way.said
    return lines


def _found(rows: Sequence[dict[str, Any]], kind: str, way: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["set"], row["way"]) == (kind, way)]


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _error(rows: Sequence[dict[str, Any]], name: str) -> float:
    values = [row[name] for row in rows]
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("prior", help="a text prior of square pictures, or 'builtin'")
    parser.add_argument("--pictures", type=Path, required=True, help="what scripts/prepare_pictures.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for tokens, features and scores")
    parser.add_argument(
        "--cache", type=Path, help="of what all priors share: features of real pictures; default: --work"
    )
    parser.add_argument("--tokenizer", help="default: the one that the prior names")
    parser.add_argument("--num", type=int, default=64, help="captions of each set (default: 64)")
    parser.add_argument(
        "--styles", type=lambda text: tuple(text.split(",")), default=STYLES, help="of emoji (default: all five)"
    )
    parser.add_argument("--seeds", default="0,1,2", help="of the samples (default: 0,1,2)")
    parser.add_argument("--ways", nargs="+", choices=KINDS, default=KINDS[:3], help="default: all but best")
    parser.add_argument("--temperature", type=float, help="of all but those that vary it (default: the prior's own)")
    parser.add_argument("--most-calls", type=int, default=10**6, help="leave out ways of more (default: none)")
    parser.add_argument("--runtime", choices=("torch", "onnx"), default="torch", help="of the prior (default: torch)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no other way is begun after these")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only-sample", action="store_true", help="write tokens, no scores")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Sample and score all ways."""
    start = time.monotonic()
    work, cache = options.work, options.cache or options.work
    device = choose_device(options.device)
    prior = vqtool.load_prior(options.prior).to(device)
    size = prior.grid_spec.image_size[0]  # pixels
    known, kept = (
        [item for item in text_image.find_captioned([options.pictures / name]) if item.id.startswith(options.styles)]
        for name in ("emoji.tar.gz", "heldout-emoji.tar.gz")
    )
    prompts = {
        name: choose_prompts(items, options.num, 0, options.styles)
        for name, items in zip(SETS, (known, kept), strict=True)
    }
    captions = [item.captions[0] for name in SETS for item in prompts[name]]
    cells, seeds = math.prod(prior.grid_spec.grid_size), [int(seed) for seed in options.seeds.split(",")]
    warmth = prior.sampling.get("temperature", 1.0) if options.temperature is None else options.temperature
    usual = Way(3, "purity", 8 if cells <= SMALL_CELLS else 16, temperature=warmth, runtime=options.runtime)
    chosen = ways(seeds, usual, cells, prior.kernel.num_steps, options.ways)
    chosen = [way for way in chosen if way.calls <= options.most_calls]
    done: list[Way] = []
    spent = _Spent(work / "seconds.json")
    for way in chosen:
        path = work / "tokens" / f"{way.name}.npy"
        if not path.exists():
            if time.monotonic() - start > 60 * options.minutes * (1 if options.only_sample else 0.75):
                continue  # others may be there already
            sample(prior, captions[:1], replace(way, steps=1, times=None))  # what a first call takes is not counted
            began = time.process_time()
            tokens = sample(prior, captions, way)
            spent.add(way, (time.process_time() - began) / len(captions))
            save(path, tokens)
            print(f"{way.name}: {spent[way]:.3f} CPU s a picture", file=sys.stderr)
        done.append(way)
    if options.only_sample:
        return
    dual = train_dual(options.pictures, cache, size, 0)
    tokenizer = tokenizer_of(prior.grid_spec, options.prior, given=options.tokenizer, force=True).to(device)
    network = EfficientNetLite0(device)
    sources = {"trained": known[:: max(1, len(known) // len(kept))][: len(kept)], "held-out": kept}
    references = {}
    for name, items in sources.items():
        asked = {item.id for item in prompts[name]}  # the pictures of the captions are no reference for themselves
        others = [item.id not in asked for item in items]
        references[name] = text_image.picture_features(items, cache, size)[others]
    texts = {name: text_image.text_features([item.captions[0] for item in prompts[name]], cache) for name in SETS}
    rows = []
    for name in SETS:
        real = text_image.picture_features(prompts[name], cache, size)
        rows.append({"set": name, "way": "real", "seed": 0, **score(real, references[name], dual, texts[name])})
        path = work / "features" / f"tokenizer-{tokenizer.fingerprint}-{name}.npy"
        if not path.exists():
            originals = torch.from_numpy(read_images(prompts[name], size, words="none").images)
            grids = torch.cat([tokenizer.encode(to_float(part.to(device))) for part in originals.split(DECODED)])
            save(path, decoded_features(tokenizer, network, grids))
        rows.append(
            {"set": name, "way": "tokenizer", "seed": 0, **score(np.load(path), references[name], dual, texts[name])}
        )
    counts = {name: len(prompts[name]) for name in SETS}
    header = {"prior": prior.fingerprint, "num": counts, "text-image": NAME}
    for way in done:
        path = work / "features" / f"{way.name}.npy"
        if path.exists():
            features = np.load(path).astype(np.float32)
        else:
            grids = torch.from_numpy(np.load(work / "tokens" / f"{way.name}.npy").astype(np.int64))
            features = save(path, decoded_features(tokenizer, network, grids.to(device)))
        first = len(prompts["trained"])
        for name, own in zip(SETS, (features[:first], features[first:]), strict=True):
            scores = score(own, references[name], dual, texts[name], way.seed)
            rows.append({"set": name, "way": way.said, "seed": way.seed, "CPU s": spent[way], **scores})
        write_report(work, header, rows)
    draw_plot(rows, work / "scores.png", usual)
    draw_front(rows, work / "front.png", done, usual)


def main() -> int:
    """Score the prior that the command line names."""
    options = parse_arguments()
    try:
        run(options)
    except (VqtoolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not options.only_sample:
        print((options.work / "scores.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
