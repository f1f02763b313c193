"""Editing: parts of pictures drawn again, pictures enlarged, varied, or completed.

Known tokens come out as they went in. Several variants can be made of a picture; variant v of picture i is sample
i * variants + v of the run, whatever the batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtool.artifacts import history_record
from vqtool.distributed import is_main_process
from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch, GridWriter, check_output
from vqtool.images import SourceOptions, to_float
from vqtool.images.sources.options import DEFAULTS
from vqtool.images.writer import ImageWriter, writer_type
from vqtool.priors import Prior
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.samplers import DEFAULT_BATCH_SIZE, Method, Observer
from vqtool.samplers._changes import Array, Change, Sides, build_change
from vqtool.samplers._edit import check_tokens
from vqtool.samplers._pictures import Images, OnError, Pictures, open_pictures
from vqtool.samplers._texts import check_texts
from vqtool.samplers.estimates import NUM_REHEARSED
from vqtool.samplers.runs import Run, Summary, animated, grid_header, take_run_options
from vqtool.samplers.trajectories import NUM_SAMPLES
from vqtool.tally import Tally
from vqtool.tokenizers import Tokenizer, tokenizer_of
from vqtool.tokenizers.batches import decode_batch

GRID_FILES = (".h5", ".hdf5")


@dataclass(frozen=True)
class Variants:
    """What was made of some pictures."""

    batch: GridBatch  # those of one picture in a row
    samples: range  # their numbers
    num_calls: float  # of the denoiser, the mean of the samples


@dataclass(frozen=True)
class _Editor:
    """Makes variants of grids."""

    method: Method
    change: Change
    variants: int
    strength: float | None  # None fills masked cells; else cells start from q(x_t | x_0) at this share t / T
    texts: Sequence[str]  # that pictures are made by in turn; empty for their own

    def rows(self, batch: GridBatch, number: int, *, variants: int = 1) -> tuple[GridBatch, dict[str, Any]]:
        """Masked grids, and what `Method.batches` is told of them; `number` is that of the first in the run."""

        def of_samples(rows: Tensor) -> Callable[[range], Tensor]:
            return lambda samples: rows[[sample // variants - number for sample in samples]]

        opened, conditioner = self.change.open(batch, number), self.method.prior.conditioner
        texts: Sequence[str | None] | None = conditioner.select(batch.labels, batch.captions)
        if self.texts:
            texts = [self.texts[(number + row) % len(self.texts)] for row in range(len(batch))]
        known = {"condition": None if texts is None else of_samples(conditioner.encode(texts))}
        if self.strength is None or self.change.masks:
            known["known"] = of_samples(torch.from_numpy(opened.tokens.astype(np.int64)))
        if self.strength is None:
            return opened, known
        return opened, known | {
            "source": of_samples(torch.from_numpy(batch.tokens.astype(np.int64))),
            "strength": self.strength,
        }

    def make(self, batch: GridBatch, number: int, **how: Any) -> Variants:
        """Variants of grids; ids get -1, -2, ... where there are several."""
        opened, rows = self.rows(batch, number, variants=self.variants)
        if self.change.header.masked:
            return Variants(opened, range(number, number + len(batch)), 0.0)
        samples = range(number * self.variants, (number + len(batch)) * self.variants)
        made = list(self.method.batches(len(samples), start=samples.start, **rows, **how))
        tokens = torch.cat([part.grids for part in made]).numpy().astype(self.change.header.dtype)
        calls = sum(part.num_calls * len(part.samples) for part in made) / max(1, len(samples))
        count = range(1, self.variants + 1)
        ids = batch.ids if self.variants == 1 else [f"{id}-{v}" for id in batch.ids for v in count]
        labels, captions = (
            None if column is None else [text for text in column for _ in count]
            for column in (batch.labels, batch.captions)
        )
        return Variants(GridBatch(tokens, ids, labels, captions), samples, calls)

    def read_and_make(
        self, pictures: Pictures, write: "Write", *, batch_size: int, observe: Observer | None
    ) -> Iterator[Variants]:
        """Make and write all, as many pictures together as are `batch_size` variants."""
        number = 0
        for batch, originals in pictures.read(max(1, batch_size // self.variants)):
            made = self.make(batch, number, batch_size=batch_size, observe=observe)
            write(made.batch, originals, number)
            number += len(batch)
            yield made

    def rehearse(self, pictures: Pictures, run: Run) -> Summary:
        """Say what it would take, by one variant of each of the first few pictures."""
        for batch, _ in pictures.read(NUM_REHEARSED):
            return run.rehearse(range(len(batch)), **self.rows(batch, 0)[1])
        raise VqtoolError(f"{pictures.name}: no picture to rehearse with")


def edit(
    prior: Prior,
    pictures: Tensor | Array,
    mask: str | Array | None = None,
    *,
    strength: float | None = None,
    sides: Sides | None = None,
    variants: int = 1,
    labels: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    paste: bool = True,
    feather: int = 0,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    observe: Observer | None = None,
    **how: Any,
) -> Tensor | Images:
    """Draw parts of pictures again, enlarge them, vary them, or fill their masked cells.

    Args:
        prior: from `vqtool.load_prior`; its device does the work.
        pictures: (B, H, W) integer tokens, K where masked; or (B, 3, height, width) uint8 images.
        mask: what is drawn again: "left-half", "box:TOP,LEFT,HEIGHT,WIDTH" and the like, or an image file, as for
            `vqtool inpaint`; or bool of cells or pixels, (B, ...) or one for all.
        strength: start from a noisy copy of each picture, x_t ~ q(x_t | x_0) with t = strength * T, in place of
            nothing: 0 changes nothing, 1 leaves nothing of it. Without a mask whole pictures are varied.
        sides: enlarge the pictures: {"left": 4, "bottom": "32px"} adds cells or pixels.
        variants: how many are made of each picture.
        labels: for the pictures in turn, if the prior takes labels; None is the null condition.
        captions: for the pictures in turn, if the prior takes captions.
        tokenizer: of images; None for the one that the prior names.
        paste: whether images get back their pixels outside of the mask.
        feather: width of the soft edge between both, pixels.
        seed: of all noise, and of a random mask.
        batch_size: how many are drawn at once.
        observe: see `vqtool.sample`.
        how: further arguments of `vqtool.sample`: sampler, steps, cfg_scale, ...

    Returns:
        (B * variants, H, W) int64 tokens or (B * variants, 3, height, width) uint8 images, variants of one picture in
        a row.

    Raises:
        MismatchError: the tokenizer is not the prior's.
        VqtoolError: an argument is not possible, or not with this prior.
    """
    if variants < 1:
        raise VqtoolError(f"`variants` {variants}: at least 1")
    given = torch.as_tensor(pictures)
    are_images = given.ndim == 4 and given.shape[1] == 3 and given.dtype == torch.uint8
    if not are_images and (given.ndim != 3 or given.dtype not in (torch.int64, torch.int32, torch.int16)):
        raise VqtoolError(
            f"`pictures` has shape {tuple(given.shape)} and type {given.dtype}: (B, H, W) integer tokens or "
            "(B, 3, height, width) uint8 images are expected"
        )
    decoder = _tokenizer(prior, tokenizer) if are_images else None
    grids = given.long() if decoder is None else decoder.encode(to_float(given.numpy()).to(prior.device)).cpu()
    size, num_codes = (int(grids.shape[1]), int(grids.shape[2])), prior.codebook_size
    check_tokens("pictures", grids, size, num_codes + 1)
    header = replace(grid_header(prior, size, {}), masked=bool((grids == num_codes).any()))
    change = build_change(
        prior, header, "pictures", mask=mask, sides=sides, strength=strength, paste=paste, feather=feather, seed=seed
    )
    texts = check_texts(prior, labels, captions)
    how |= {"has_condition": bool(texts), "completes": strength is None}
    method = Method.build(prior, seed=seed, grid_size=change.header.grid_size, **how)
    batch = GridBatch(grids.numpy().astype(np.uint64), [""] * len(grids))
    made = _Editor(method, change, variants, strength, texts).make(batch, 0, batch_size=batch_size, observe=observe)
    if decoder is None:
        return torch.from_numpy(made.batch.tokens.astype(np.int64))
    return change.finish(decode_batch(made.batch, decoder), given.numpy(), 0)


def _tokenizer(prior: Prior, tokenizer: Tokenizer | str | Path | None) -> Tokenizer:
    """The tokenizer of images that a prior is to edit, on its device."""
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = tokenizer_of(prior.grid_spec, prior.location or None, given=tokenizer)
    if prior.grid_spec.tokenizer_fingerprint:
        prior.check_tokenizer(tokenizer.fingerprint, tokenizer.location)
    return tokenizer.to(prior.device)


Write = Callable[[GridBatch, Images | None, int], None]


def edit_to_file(
    prior: Prior,
    sources: Sequence[str | Path],
    output: str | Path,
    mask: str | None = None,
    *,
    strength: float | None = None,
    sides: Sides | None = None,
    variants: int = 1,
    labels: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    size: str | None = None,
    options: SourceOptions = DEFAULTS,
    tokenizer: str | Path | None = None,
    paste: bool = True,
    feather: int = 0,
    masked: bool = False,
    seed: int = 0,
    force: bool = False,
    on_error: OnError | None = None,
    notify: Notify = ignore,
    progress: Progress = silent,
    **how: Any,
) -> Summary:
    """`edit` pictures of files into a file. One process does it, and others nothing.

    Args:
        prior: and mask, strength, sides, variants, labels, captions, paste, feather, seed: as for `edit`, but that
            without labels and captions each picture's own is taken.
        sources: a grid file ("-" is standard input), or images: folders, files, tars, HDF5. Without mask, strength and
            sides they are masked grids.
        output: grid file ("-" is standard output); or a folder, x.png or x.tar for pictures.
        size: pixels that images are brought to; None for those of the prior's training.
        options: which images of the sources are taken, and where their own captions and labels come from.
        tokenizer: a file or "builtin"; None for the one that the grids or the prior name.
        masked: write the masked grids themselves, and draw nothing.
        force: overwrite what is there.
        on_error: told of a bad image, which is left out; None raises.
        notify: is told, line by line, what is done and what it takes.
        progress: shows how far it is; see `vqtool.progress`.
        how: further arguments of `vqtool.sample`, and of a run: see `sample_to_file`.

    Raises:
        MismatchError: the grids are not of the prior's tokenizer.
        VqtoolError: an argument is not possible, or a file cannot be read or written.
    """
    run_options = take_run_options(how)
    if not is_main_process():  # variants of a few pictures are one process's work
        return Summary(0, 0.0, 0.0)
    step = "inpaint" if mask is not None else "outpaint" if sides is not None else "complete"
    step = step if strength is None or mask is not None else "vary"
    _check_output(output, variants, feather, masked, bool(run_options.trajectory or run_options.dry_run))
    tally = on_error if isinstance(on_error, Tally) else Tally(on_error)
    with ExitStack() as stack:
        image_writer = stack.enter_context(
            nullcontext()
            if run_options.dry_run
            else _open_image_writer(Path(output), run_options.trajectory, force=force)
        )
        pictures = stack.enter_context(
            open_pictures(
                sources,
                prior,
                masked=step == "complete",
                size=size,
                options=options,
                tokenizer=tokenizer,
                on_error=None if on_error is None else tally,
                notify=notify,
            )
        )
        change = build_change(
            prior,
            pictures.header,
            pictures.name,
            mask=mask,
            sides=sides,
            strength=strength,
            paste=paste,
            feather=feather,
            masked=masked,
            seed=seed,
        )
        texts = check_texts(prior, labels, captions)
        has_condition = bool(texts) or prior.conditioner.kind in pictures.columns
        if not texts and prior.conditioner.kind == "class":
            prior.conditioner.encode(pictures.labels)  # an unknown label is found before any work is done
        new_size = change.header.grid_size
        how |= {"has_condition": has_condition, "completes": strength is None}
        method = Method.build(prior, seed=seed, grid_size=new_size, **how)
        notify(f"prior {prior.fingerprint} ({prior.location}): {step} by {method.sampler} sampling, seed {seed}")
        details = {
            "num": variants,
            "num_images": pictures.num_images,
            "mask": mask,
            "feather": feather or None,
            "strength": strength,
            **(sides or {}),
        }
        record = _record(step, method, pictures, details)
        editor = _Editor(method, change, variants, strength, texts)
        num = None if pictures.total is None else pictures.total * variants
        run = Run(method, num, run_options, notify=notify, progress=progress, output=output)
        if not masked:
            run.tell_estimates()
        if run_options.dry_run:
            return editor.rehearse(pictures, run)
        samples, find = range(NUM_SAMPLES), pictures.tokenizer
        observe = stack.enter_context(
            animated(run_options.trajectory, samples, find, texts=texts, force=force, notify=notify)
        )
        with _open_output(image_writer, change, Path(output), pictures, record, force=force) as write:
            for _ in run.batches(partial(editor.read_and_make, pictures, write), observe, name=step):
                pass
            if tally.skipped and not run.num_drawn:
                raise VqtoolError(f"none of the {len(tally.skipped)} images could be read")
    return run.summary


def _record(step: str, method: Method, pictures: Pictures, details: dict[str, Any]) -> dict[str, Any]:
    """What stands in the history of what is made."""
    known = {name: value for name, value in details.items() if value is not None}
    own = {name: value for name, value in method.record.items() if name != "grid_size"}
    inputs = {"prior": method.prior.fingerprint, **pictures.digests}
    return history_record(step, inputs=inputs, seed=method.seed, **known, **own)


def _writes_grids(output: str | Path) -> bool:
    return str(output) == "-" or Path(output).suffix.lower() in GRID_FILES


def _check_output(output: str | Path, variants: int, feather: int, masked: bool, is_run: bool) -> None:
    """Raise VqtoolError unless what is asked for goes with the kind of output."""
    if feather and _writes_grids(output):
        raise VqtoolError("`feather` is about pictures, but `output` asks for token grids: a folder, x.png or x.tar")
    if variants < 1:
        raise VqtoolError(f"`variants` {variants}: at least 1")
    if masked and (not _writes_grids(output) or variants > 1):
        raise VqtoolError("`masked` writes one masked grid a picture: it needs an `output` like x.h5, and 1 variant")
    if masked and is_run:
        raise VqtoolError("`masked` makes nothing: there is nothing for `trajectory` to show or `dry_run` to count")


def _open_image_writer(
    output: Path, trajectory: Path | None, *, force: bool
) -> "AbstractContextManager[ImageWriter | None]":
    """Where pictures go, None for token grids; refuses an output before any work is done."""
    if trajectory is not None and Path(trajectory) == output:
        raise VqtoolError(f"`trajectory` and `output` both name {output}: pictures and their animation are two files")
    if _writes_grids(output):
        check_output(output, force=force)
        return nullcontext()
    return writer_type(output)(output, force=force)


@contextmanager
def _open_output(
    image_writer: ImageWriter | None,
    change: Change,
    output: Path,
    pictures: Pictures,
    record: dict[str, Any],
    *,
    force: bool,
) -> Iterator[Write]:
    """What writes made grids: to a grid file, or as pictures with what is kept of their originals."""
    if image_writer is None:
        with GridWriter(output, change.header.with_step(record), force=force) as writer:
            yield lambda made, originals, number: writer.write(made)
        return
    tokenizer = pictures.tokenizer()

    def write(made: GridBatch, originals: Images | None, number: int) -> None:
        images = decode_batch(made, tokenizer)
        if originals is not None:
            images = change.finish(images, originals, number)
        image_writer.write(images, made.ids, made.labels, made.captions)

    yield write
