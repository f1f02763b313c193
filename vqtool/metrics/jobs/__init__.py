"""What `evaluate` does, one job a file: each takes a `Request` and gives a `Report`.

| file | inputs | with |
|---|---|---|
| images.py | images, token grids, saved features or statistics | `ref` |
| pairs.py | images | `ref` and `paired` |
| reconstruction.py | images | `tokenizer` |
| texts.py | images with captions | `text` |
| grids.py | token grids | `ref` of token grids, or none |
| likelihood.py | token grids | `likelihood` |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vqtool.errors import VqtoolError
from vqtool.images import ImageItem, OnError, SourceOptions, find_images, parse_size
from vqtool.images.sources import WordsNeeded
from vqtool.metrics.features.options import ComputationOptions, FeatureOptions
from vqtool.metrics.report import Report
from vqtool.options import Checked, option
from vqtool.priors import Prior
from vqtool.products import Computation
from vqtool.progress import Notify, Progress
from vqtool.tally import Tally
from vqtool.tokenizers import Tokenizer

KINDS = {"grids": "token grids", "images": "images", "saved": "saved features"}


@dataclass(frozen=True, kw_only=True)
class ImageOptions(FeatureOptions, ComputationOptions):
    """How images are scored."""

    tokenizer: str | Path | Tokenizer | None = option(None, "Score this on images, or decode grids.", flag="-t")
    paired: bool = option(False, "PSNR, SSIM of equal names.")
    perceptual: str | None = option(
        None, "Of pairs: also this distance, efficientnet-lite0 or a file of ST-LPIPS.", advanced=True
    )
    with_features: bool = option(False, "Of pairs: also scores of features.", advanced=True)
    text: Path | None = option(None, "How images fit their captions: CLIP's folder, or builtin.", advanced=True)
    per_class: bool = option(False, "Score each label too.")
    size: str | None = option(None, "Pixels, 64 or 48x80.", shown="their own, or 64")
    max_images: int = option(10_000, "At most so many a side.", minimum=2, advanced=True)
    decode: bool = option(False, "Compare token grids as pictures.", advanced=True)
    cache: bool = option(True, "Keep features in ~/.cache/vqtool.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(Checked):
    """How token grids are scored under a prior."""

    likelihood: bool = option(False, "Bits per token of grids under a prior.")
    prior: Path | Prior | None = option(None, "The prior.", shown="prior.safetensors, else builtin", advanced=True)
    times: int | None = option(None, "Timesteps a grid; T or more is all.", shown="16", minimum=1, advanced=True)
    unconditional: bool = option(False, "Tell the prior no labels and no captions.", advanced=True)
    plot: Path | None = option(None, "PNG file: what each t adds to the bits.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be scored, and how."""

    sources: Sequence[str | Path]
    ref: Sequence[str | Path]
    kinds: Sequence[str]  # of the sources and then of the reference: keys of KINDS
    images: ImageOptions
    likelihood: LikelihoodOptions
    source_options: SourceOptions
    of_metrics: dict[str, Any]  # options of metrics of features
    seed: int
    device: str
    computation: Computation
    exhibits: bool  # whether a page shows it
    force: bool
    on_error: OnError | None
    notify: Notify
    progress: Progress
    left_out: dict[str, list[str]] = field(default_factory=dict)  # side -> what finding left out; jobs fill it in

    @property
    def kind(self) -> str:
        """Of what is scored."""
        return self.kinds[0]

    @property
    def ref_kind(self) -> str:
        """Of the reference; "" where there is none."""
        return self.kinds[len(self.sources)] if self.ref else ""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels that is asked for; None if none is.

        Raises:
            VqtoolError: it is no size.
        """
        return None if self.images.size is None else parse_size(str(self.images.size), "`size`")

    def find(self, side: str, words: WordsNeeded = "none") -> Sequence[ImageItem]:
        """The images of one side, "images" or "reference", without those that are given on the other side."""
        sources, others = (self.sources, self.ref) if side == "images" else (self.ref, self.sources)
        leave_out = [path for path in others if Path(path).is_dir()] if side == "images" else others
        tally = Tally(self.on_error)
        told = None if self.on_error is None else tally
        items = find_images(sources, self.source_options, words=words, leave_out=leave_out, on_error=told)
        self.left_out[side] = list(tally.skipped)
        if isinstance(self.on_error, Tally):
            self.on_error.found(items, with_words=words != "none")
        return items


def check(request: Request) -> None:
    """Raise unless inputs and parameters go together.

    Raises:
        VqtoolError: they do not.
    """
    source, images, likelihood = request.sources[0], request.images, request.likelihood
    for name in ("prior", "times", "unconditional", "plot"):
        if getattr(likelihood, name) and not likelihood.likelihood:
            raise VqtoolError(f"`{name}` is for `likelihood`, which is not given: add it, or leave `{name}` out")
    if likelihood.likelihood and request.kind != "grids":
        raise VqtoolError(
            f"`likelihood` is for token grids, but {source} holds {KINDS[request.kind]}: encode them first"
        )
    if likelihood.likelihood and request.ref:
        raise VqtoolError("`likelihood` compares token grids with a prior, not with others: leave `ref` out")
    for sources, kinds in (
        (request.sources, request.kinds[: len(request.sources)]),
        (request.ref, request.kinds[len(request.sources) :]),
    ):
        _check_one_kind(sources, kinds)
    if request.kind == "grids":
        scores_tokens = not (images.decode or (request.ref and request.ref_kind != "grids"))
        for name in ("tokenizer", "size", "per_class") if scores_tokens else ():
            if getattr(images, name):
                raise VqtoolError(f"`{name}` is for images, but {source} holds token grids")
        if scores_tokens and not likelihood.likelihood:
            _refuse_computation(images, "token grids are counted")
        if images.paired:
            raise VqtoolError(f"`paired` is for images, but {source} holds token grids: decode them first")
    grids = "grids" in (request.kind, request.ref_kind)
    if images.tokenizer is not None and request.ref and not grids:
        raise VqtoolError("`ref` scores images, `tokenizer` the tokenizer: give one of them")
    pairs_alone = images.paired and not images.with_features
    if pairs_alone:
        _refuse_computation(images, "pixels are compared")
    for name in request.of_metrics if pairs_alone or (not request.ref and not images.with_features) else ():
        raise VqtoolError(f"`{name}` is about scores of features, which nothing asks for: add `with_features`")
    reconstructs = request.kind == "images" and not request.ref and images.text is None
    for name in ("perceptual", "with_features"):
        if getattr(images, name) and not (images.paired or reconstructs):
            raise VqtoolError(f"`{name}` is for pairs: add `paired`, or give `tokenizer` alone")
    if images.paired and not request.ref:
        raise VqtoolError("`paired` needs originals to compare with: add `ref`")
    if images.paired and request.ref_kind != "images":
        raise VqtoolError(f"`paired` is for images, but {request.ref[0]} holds {KINDS[request.ref_kind]}")
    if images.text is not None and (request.kind != "images" or request.ref or images.tokenizer is not None):
        raise VqtoolError("`text` scores images by their captions alone: leave `ref` and `tokenizer` out, decode grids")
    if request.kind != "grids" and images.tokenizer is None and images.text is None and not request.ref:
        what = "images" if request.kind == "images" else KINDS[request.kind]
        raise VqtoolError(
            f"{source}: {what} alone have no score: add `ref` with images to compare with, or `tokenizer`"
        )
    if {*request.kinds} == {"saved"} and request.ref:
        for name in ("size", "tokenizer", *(each.name for each in fields(FeatureOptions)), *_COMPUTATION):
            if getattr(images, name) != getattr(ImageOptions, name):
                raise VqtoolError(f"`{name}` is about pictures, but both sides are saved features: leave it out")
    if request.kind == "grids" and images.decode and not request.ref:
        raise VqtoolError("`decode` compares token grids as pictures: add `ref`")


_COMPUTATION = tuple(each.name for each in fields(ComputationOptions))


def _refuse_computation(images: ImageOptions, what: str) -> None:
    for name in _COMPUTATION:
        if getattr(images, name) != getattr(ImageOptions, name):
            raise VqtoolError(f"`{name}` is about networks, and here {what} without any: leave it out")


def _check_one_kind(sources: Sequence[str | Path], kinds: Sequence[str]) -> None:
    for path, kind in zip(sources, kinds, strict=True):
        if kind != kinds[0]:
            raise VqtoolError(
                f"{sources[0]} holds {KINDS[kinds[0]]}, {path} {KINDS[kind]}: one kind on a side; `vqtool decode` "
                "makes images of token grids"
            )
    if kinds and kinds[0] == "saved" and len(sources) > 1:
        raise VqtoolError(f"{sources[0]}, {sources[1]}: `vqtool eval merge` makes one file of several saved ones")


def choose(request: Request) -> "Callable[[Request], Report]":
    """The job that inputs and parameters ask for."""
    from vqtool.metrics.jobs import grids, images, likelihood, pairs, reconstruction, texts

    if request.likelihood.likelihood:
        return likelihood.run
    if request.kind == "grids" and not request.images.decode and request.ref_kind in ("", "grids"):
        return grids.run
    if request.images.text is not None:
        return texts.run
    if request.images.paired:
        return pairs.run
    if request.kind == "images" and not request.ref:
        return reconstruction.run
    return images.run
