"""Editing: parts of pictures drawn again, pictures enlarged, varied, or completed.

Known tokens come out as they went in. Several variants can be made of a picture; variant v of picture i is sample
i * variants + v of the run, whatever the batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtool.artifacts import history_record
from vqtool.distributed import is_main_process
from vqtool.errors import VqtoolError, count_text, warn
from vqtool.grids import GridBatch, GridWriter, check_output
from vqtool.images import SourceOptions, to_float
from vqtool.images.sources import holds_grids
from vqtool.images.sources.options import DEFAULTS
from vqtool.images.writer import ImageWriter, writer_type
from vqtool.priors import Prior
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.samplers import DEFAULT_BATCH_SIZE, Method, Observer
from vqtool.samplers._changes import Array, Sides, Wanted, build_change
from vqtool.samplers._edit import check_tokens
from vqtool.samplers._editor import ALIKE, Editor, Variants, Write
from vqtool.samplers._framing import Framed, Given, cut_all, finish_all, mask_frames
from vqtool.samplers._pictures import Images, OnError, Pictures, build_framing, open_pictures
from vqtool.samplers._texts import check_texts
from vqtool.samplers._windows import CONTEXT
from vqtool.samplers.runs import Run, Summary, grid_header, take_run_options
from vqtool.samplers.trajectories import NUM_SAMPLES, animated
from vqtool.tally import Tally
from vqtool.tokenizers import Tokenizer, tokenizer_of
from vqtool.tokenizers._onnx import use_runtime
from vqtool.tokenizers.batches import decode_batch

GRID_FILES = (".h5", ".hdf5")


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
    context: float = CONTEXT,
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
        context: of images, how many times as high and wide as what is drawn again the window is that the prior sees;
            it is no smaller than the prior's own pictures.
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
    rows = torch.as_tensor(pictures)
    are_images = rows.ndim == 4 and rows.shape[1] == 3 and rows.dtype == torch.uint8
    if not are_images and (rows.ndim != 3 or rows.dtype not in (torch.int64, torch.int32, torch.int16)):
        raise VqtoolError(
            f"`pictures` has shape {tuple(rows.shape)} and type {rows.dtype}: (B, H, W) integer tokens or "
            "(B, 3, height, width) uint8 images are expected"
        )
    wanted = Wanted(mask=mask, sides=sides, strength=strength, paste=paste, feather=feather, context=context, seed=seed)
    texts = check_texts(prior, labels, captions)

    how |= {"has_condition": bool(texts), "completes": strength is None}

    def method(size: tuple[int, int]) -> Method:
        return Method.build(prior, seed=seed, grid_size=size, **how)

    runtime = how.get("runtime", "torch")
    editor = Editor(cache(method), wanted, variants, texts)
    make = partial(editor.make, batch_size=batch_size, observe=observe)
    if are_images:
        decoder, _ = use_runtime(_tokenizer(prior, tokenizer), runtime)
        return _edit_images(prior, decoder, wanted, rows.cpu().numpy(), make)
    grids = rows.long()
    size, num_codes = (int(grids.shape[1]), int(grids.shape[2])), prior.codebook_size
    check_tokens("pictures", grids, size, num_codes + 1)
    header = replace(grid_header(prior, size, {}), masked=bool((grids == num_codes).any()))
    change = build_change(prior, header, "pictures", wanted)
    batch = GridBatch(grids.numpy().astype(np.uint64), [""] * len(grids))
    return torch.from_numpy(make(Given(batch, change.open(batch, 0)), 0).batch.tokens.astype(np.int64))


def _edit_images(
    prior: Prior, tokenizer: Tokenizer, wanted: Wanted, images: Images, make: Callable[[Given, int], Variants]
) -> Images:
    """Images with what `make(given, number of the first)` draws in their windows."""
    framing = build_framing(prior, tokenizer, wanted, "pictures")
    frames = [framing.frame(picture, number) for number, picture in enumerate(images)]
    finished = []
    for number, part in _alike(frames):
        tokens = tokenizer.encode(to_float(cut_all(part)).to(prior.device)).cpu().numpy()
        given = mask_frames(GridBatch(tokens, [""] * len(part)), part, tokenizer.codebook_size)
        finished.append(finish_all(framing, part, decode_batch(make(given, number).batch, tokenizer)))
    return np.concatenate(finished)


def _alike(frames: Sequence[Framed]) -> Iterator[tuple[int, list[Framed]]]:
    """Pictures next to each other whose windows have one size, and the number of the first."""
    for _, group in groupby(enumerate(frames), key=lambda entry: entry[1].window.size):
        part = list(group)
        yield part[0][0], [framed for _, framed in part]


def _tokenizer(prior: Prior, tokenizer: Tokenizer | str | Path | None) -> Tokenizer:
    """The tokenizer of images that a prior is to edit, on its device."""
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = tokenizer_of(prior.grid_spec, prior.location or None, given=tokenizer)
    if prior.grid_spec.tokenizer_fingerprint:
        prior.check_tokenizer(tokenizer.identity, tokenizer.location)
    return tokenizer.to(prior.device)


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
    context: float = CONTEXT,
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
        prior: and mask, strength, sides, variants, labels, captions, paste, feather, context, seed: as for `edit`, but
            that without labels and captions each picture's own is taken.
        sources: a grid file ("-" is standard input), or images: folders, files, tars, HDF5. Without mask, strength and
            sides they are masked grids.
        output: x.h5 for token grids, of images those of the windows; a folder, x.png or x.tar for pictures; "-" is
            standard output: grids of grids, a tar of pictures of images.
        size: pixels that windows of images are brought to; None for those of the prior's training.
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
    wanted = Wanted(
        mask=mask, sides=sides, strength=strength, paste=paste, feather=feather, context=context, masked=masked,
        seed=seed,
    )  # fmt: skip
    output, are_grids = Path(output), wanted.step == "complete" or holds_grids(sources[0])
    to_grids = output.suffix.lower() in GRID_FILES or (str(output) == "-" and (are_grids or masked))
    _check_output(to_grids, variants, wanted, bool(run_options.trajectory or run_options.dry_run))
    tally = on_error if isinstance(on_error, Tally) else Tally(on_error)
    with ExitStack() as stack:
        image_writer = None
        if not run_options.dry_run:
            image_writer = stack.enter_context(
                _open_image_writer(output, to_grids, run_options.trajectory, force=force)
            )
        pictures = stack.enter_context(
            open_pictures(
                sources, prior, wanted, are_grids=are_grids, size=size, options=options, tokenizer=tokenizer,
                runtime=how.get("runtime", "torch"), on_error=None if on_error is None else tally, notify=notify,
            )
        )  # fmt: skip
        _check_sizes(pictures, to_grids=to_grids, is_animated=run_options.trajectory is not None)
        texts = check_texts(prior, labels, captions)
        editor = _build_editor(prior, pictures, wanted, variants, texts, how)
        method = editor.method(pictures.header.grid_size)
        notify(f"prior {prior.fingerprint} ({prior.location}): {wanted.step} by {method.sampler} sampling, seed {seed}")
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
        alike, record = list[str](), _record(method, pictures, wanted, variants)
        with _open_output(image_writer, output, pictures, record, force=force) as write:
            for made in run.batches(partial(editor.read_and_make, pictures, write), observe, name=wanted.step):
                alike += made.find_alike()
            if tally.skipped and not run.num_drawn:
                raise VqtoolError(f"none of the {count_text(len(tally.skipped), 'image')} could be read")
        _tell_alike(alike, run.num_drawn // variants)
    return run.summary


def _build_editor(
    prior: Prior, pictures: Pictures, wanted: Wanted, variants: int, texts: Sequence[str], how: Mapping[str, Any]
) -> Editor:
    """What makes the variants of pictures.

    Args:
        prior: that makes them.
        pictures: to edit.
        wanted: what is done to them.
        variants: of each.
        texts: that they are made by in turn; empty for their own.
        how: arguments of `sample`.

    Raises:
        VqtoolError: a label that the prior does not know, before any work is done.
    """
    has_condition = bool(texts) or prior.conditioner.kind in pictures.columns
    if not texts and prior.conditioner.kind == "class":
        prior.conditioner.encode(pictures.labels)

    @cache
    def methods(grid_size: tuple[int, int]) -> Method:
        return Method.build(
            prior, seed=wanted.seed, grid_size=grid_size, has_condition=has_condition,
            completes=wanted.strength is None, **how,
        )  # fmt: skip

    return Editor(methods, wanted, variants, texts)


def _check_sizes(pictures: Pictures, *, to_grids: bool, is_animated: bool) -> None:
    """Raise VqtoolError where windows make grids of several sizes for a file that takes one."""
    if len(pictures.sizes) > 1 and (to_grids or is_animated):
        raise VqtoolError(
            f"{pictures.name}: pictures of several shapes, whose windows make grids of several sizes, but "
            f"`{'output' if to_grids else 'trajectory'}` takes one: edit them into a folder, x.tar or x.png"
        )


def _tell_alike(ids: Sequence[str], num: int) -> None:
    """Tell of pictures whose variants are nearly the same.

    Warns:
        VqtoolWarning: names the first, and says what makes others.
    """
    if ids:
        warn(
            f"the variants of {len(ids)} of {num} pictures ({ids[0]}, ...) differ in fewer than {ALIKE:.0%} of the "
            "cells that are drawn: the prior has one answer there; `temperature` 1.5, another `sampler` and, for "
            "variations, more `strength` make others"
        )


def _record(method: Method, pictures: Pictures, wanted: Wanted, variants: int) -> dict[str, Any]:
    """What stands in the history of what is made."""
    details = {
        "num": variants,
        "num_images": pictures.num_images,
        "mask": wanted.mask,
        "feather": wanted.feather or None,
        "strength": wanted.strength,
        **(wanted.sides or {}),
    }
    known = {name: value for name, value in details.items() if value is not None}
    own = {name: value for name, value in method.record.items() if name != "grid_size"}
    inputs = {"prior": method.prior.fingerprint, **pictures.digests}
    return history_record(wanted.step, inputs=inputs, seed=method.seed, **known, **own)


def _check_output(to_grids: bool, variants: int, wanted: Wanted, is_run: bool) -> None:
    """Raise VqtoolError unless what is asked for goes with the kind of output."""
    if wanted.feather and to_grids:
        raise VqtoolError("`feather` is about pictures, but `output` asks for token grids: a folder, x.png or x.tar")
    if variants < 1:
        raise VqtoolError(f"`variants` {variants}: at least 1")
    if wanted.masked and (not to_grids or variants > 1):
        raise VqtoolError("`masked` writes one masked grid a picture: it needs an `output` like x.h5, and 1 variant")
    if wanted.masked and is_run:
        raise VqtoolError("`masked` makes nothing: there is nothing for `trajectory` to show or `dry_run` to count")


def _open_image_writer(
    output: Path, to_grids: bool, trajectory: Path | None, *, force: bool
) -> "AbstractContextManager[ImageWriter | None]":
    """Where pictures go, None for token grids; refuses an output before any work is done."""
    if trajectory is not None and Path(trajectory) == output:
        raise VqtoolError(f"`trajectory` and `output` both name {output}: pictures and their animation are two files")
    if to_grids:
        check_output(output, force=force)
        return nullcontext()
    return writer_type(output)(output, force=force)


@contextmanager
def _open_output(
    image_writer: ImageWriter | None,
    output: Path,
    pictures: Pictures,
    record: dict[str, Any],
    *,
    force: bool,
) -> Iterator[Write]:
    """What writes made grids: to a grid file, or as pictures with what is kept of their originals."""
    if image_writer is None:
        with GridWriter(output, pictures.header.with_step(record), force=force) as writer:
            yield lambda made, given: writer.write(made)
        return
    tokenizer = pictures.tokenizer()

    def write(made: GridBatch, given: Given) -> None:
        images, variants = decode_batch(made, tokenizer), len(made) // len(given.batch)
        if given.frames is None or pictures.framing is None:
            image_writer.write(images, made.ids, made.labels, made.captions)
            return
        for number, framed in enumerate(given.frames):
            rows = slice(number * variants, (number + 1) * variants)
            own, finished = made[rows], finish_all(pictures.framing, [framed], images[rows])
            image_writer.write(finished, own.ids, own.labels, own.captions)

    yield write
