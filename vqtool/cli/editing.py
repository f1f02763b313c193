"""What the commands that edit pictures share: their flags, where pictures come from, and where they go."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from vqtool.cli.console import echo, shape
from vqtool.cli.inputs import Skipped
from vqtool.cli.options import Device, Force, Seed, Strict, TokenizerOption
from vqtool.cli.runs import Run, RunFlags, filmed
from vqtool.cli.sample import find_texts
from vqtool.cli.sampling import SamplingFlags, describe
from vqtool.distributed import choose_device
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vqtool.grids import GridBatch, GridHeader
    from vqtool.images.writer import ImageWriter
    from vqtool.priors import Prior
    from vqtool.samplers.editing import Variants
    from vqtool.tokenizers import Tokenizer

    Images = NDArray[np.uint8]  # (B, 3, height, width)

GRID_FILES = (".h5", ".hdf5")

Sources = Annotated[
    list[Path],
    typer.Argument(help="A grid file (- is stdin), or images as for `encode`.", show_default=False),
]


@dataclass(frozen=True, kw_only=True)
class EditFlags:
    """What to edit with, how often, and where to."""

    prior: Annotated[Path, typer.Option("--prior", "-p", help="Prior file.")] = Path("prior.safetensors")
    num: Annotated[
        int, typer.Option("--num", "-n", min=1, help="How many variants of each picture; one process makes them all.")
    ] = 1
    label: Annotated[str | None, typer.Option("--label", help="Class. Default: each picture's own.")] = None
    caption: Annotated[str | None, typer.Option("--caption", help="Caption. Default: each picture's own.")] = None
    size: Annotated[
        str | None,
        typer.Option("--size", help="Pixels that images are brought to. Default: those of the prior's training."),
    ] = None
    tokenizer: TokenizerOption = None
    seed: Seed = 0
    device: Device = "auto"
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Grid file (x.h5; - is stdout), or pictures as of `decode`: folder/, x.png, x.tar."
        ),
    ] = Path("-")
    strict: Strict = False
    force: Force = False

    @property
    def writes_grids(self) -> bool:
        """Whether the output is token grids."""
        return str(self.output) == "-" or self.output.suffix.lower() in GRID_FILES


class Change(Protocol):
    """What a command does to pictures before the prior fills the masked cells."""

    @property
    def header(self) -> "GridHeader":
        """Of the grids that are made."""

    def open(self, batch: "GridBatch", number: int) -> "GridBatch":
        """The masked grids; `number` is that of the first in the run."""

    def finish(self, made: "Images", originals: "Images", number: int) -> "Images":
        """Made pictures (B * variants, 3, height, width) with what is kept of the originals (B, 3, h, w)."""


@dataclass(frozen=True)
class Unchanged:
    """Grids as they are."""

    header: "GridHeader"

    def open(self, batch: "GridBatch", number: int) -> "GridBatch":
        """The batch."""
        return batch

    def finish(self, made: "Images", originals: "Images", number: int) -> "Images":
        """What was made."""
        return made


def edit(
    name: str,
    sources: Sequence[Path],
    flags: EditFlags,
    run_flags: RunFlags,
    sampling: SamplingFlags,
    change: "Callable[[GridHeader], Change]",
    *,
    strength: float | None = None,
    details: dict[str, Any],
) -> None:
    """Read pictures, change them, and write what the prior makes of them. One process does it, and others nothing.

    Args:
        name: of the command.
        sources: grids, or images.
        flags: what with, how often, where to.
        run_flags: how the run goes.
        sampling: how.
        change: what is done to grids under a header; fails where they do not fit. Holes that its header has stay.
        strength: None to fill masked cells; else how far pictures are varied.
        details: what the history says beyond the flags.
    """
    from vqtool.artifacts import history_record
    from vqtool.distributed import is_main_process
    from vqtool.priors import load_prior
    from vqtool.samplers.editing import check_fits
    from vqtool.samplers.trajectories import NUM_SAMPLES

    if not is_main_process():  # variants of a few pictures are one process's work
        return
    skipped = Skipped(flags.strict, flags.output)
    with ExitStack() as stack:
        image_writer = stack.enter_context(_open_image_writer(flags, run_flags))
        model = load_prior(flags.prior).to(choose_device(flags.device))
        pictures = stack.enter_context(_open_pictures(name, sources, model, flags, skipped))
        todo = change(pictures.header)
        check_fits(model, todo.header, pictures.name)
        text = _find_text(model, flags)
        options = sampling.choose(model, has_condition=text is not None or model.conditioner.kind in pictures.columns)
        options |= run_flags.choose()
        echo(f"prior {model.fingerprint} ({flags.prior}): {name} by {options['sampler']} sampling, seed {flags.seed}")
        inputs = {"prior": model.fingerprint, **pictures.digests}
        record = history_record(name, inputs=inputs, seed=flags.seed, num=flags.num, **details, **describe(options))
        work = _Work(pictures, todo, text, flags.num, strength, options | {"seed": flags.seed})
        num = None if pictures.total is None else pictures.total * flags.num
        run = Run(model, num, work.options | {"grid_size": todo.header.grid_size}, run_flags)
        if not todo.header.masked:
            run.echo_cost()
        if run_flags.dry_run:
            work.rehearse(run)
            return
        texts = [text] if text else []
        film = filmed(run_flags, range(NUM_SAMPLES), pictures.tokenizer, texts=texts, force=flags.force)
        observe = stack.enter_context(film)
        with _open_output(image_writer, todo, flags, pictures, record) as write:
            for _ in run.batches(partial(work.make, model, write), observe, name=name):
                pass
            if skipped.count and not run.num_drawn:
                raise VqtoolError(f"none of the {skipped.count} images could be read")
    echo(f"wrote {run.num_drawn} pictures to {'stdout' if str(flags.output) == '-' else flags.output}: {run.summary}")
    skipped.finish()


@dataclass(frozen=True)
class _Work:
    """Pictures, and what is to be made of them."""

    pictures: "_Pictures"
    todo: Change
    text: str | None  # that all are made by; None for their own
    variants: int
    strength: float | None
    options: dict[str, Any]  # of `vqtool.sample`

    def _open(self, prior: "Prior", batch: "GridBatch", number: int) -> "tuple[GridBatch, Sequence[str | None] | None]":
        """Masked grids, and the labels or captions that they are made by."""
        own = prior.conditioner.select(batch.labels, batch.captions)
        return self.todo.open(batch, number), [self.text] * len(batch) if self.text else own

    def make(
        self,
        prior: "Prior",
        write: "Callable[[GridBatch, Images | None, int], None]",
        *,
        batch_size: int,
        **how: Any,
    ) -> "Iterator[Variants]":
        """Make and write all, as many pictures together as are `batch_size` variants."""
        from vqtool.samplers.editing import Variants, make_variants

        number = 0
        for batch, originals in self.pictures.read(max(1, batch_size // self.variants)):
            holed, texts = self._open(prior, batch, number)
            if self.todo.header.masked:
                made = Variants(holed, range(number, number + len(batch)), 0.0)
            else:
                which = {"number": number, "variants": self.variants, "strength": self.strength}
                how |= {"batch_size": batch_size, **which, **self.options}
                made = make_variants(prior, holed, texts, **how)
            write(made.batch, originals, number)
            number += len(batch)
            yield made

    def rehearse(self, run: Run) -> None:
        """Say what it would take, by one variant of each of the first few pictures."""
        from vqtool.samplers.editing import known_rows
        from vqtool.samplers.estimates import NUM_REHEARSED

        for batch, _ in self.pictures.read(NUM_REHEARSED):
            holed, texts = self._open(run.prior, batch, 0)
            known = known_rows(run.prior, holed, texts, number=0, strength=self.strength)
            run.rehearse(range(len(batch)), **known)
            return
        raise VqtoolError(f"{self.pictures.name}: no picture to rehearse with")


@dataclass(frozen=True)
class _Pictures:
    name: str
    header: "GridHeader"
    columns: set[str]  # of label (as "class") and caption, those that are known
    total: int | None
    digests: dict[str, str]
    read: "Callable[[int], Iterator[tuple[GridBatch, Images | None]]]"  # so many at a time
    tokenizer: "Callable[[], Tokenizer]"


@contextmanager
def _open_pictures(
    name: str, sources: Sequence[Path], prior: "Prior", flags: EditFlags, skipped: Skipped
) -> Iterator[_Pictures]:
    """Grids, or images as grids by the prior's tokenizer together with their pixels."""
    from vqtool.grids import open_grids
    from vqtool.images.sources import holds_grids
    from vqtool.tokenizers import tokenizer_of

    is_masked = name == "complete"
    if not is_masked and not holds_grids(sources[0]):
        yield _open_images(sources, prior, flags, skipped)
        return
    source = sources[0]
    if len(sources) > 1:
        raise VqtoolError(f"one grid file at a time; `vqtool cat a.h5 b.h5 | vqtool {name} -` joins several")
    if flags.size is not None:
        raise VqtoolError(f"--size is for images, but {source} holds token grids")
    with open_grids(source, masked=is_masked) as reader:
        columns = {{"label": "class"}.get(column, column) for column in reader.columns}
        yield _Pictures(
            name=reader.name,
            header=reader.header,
            columns=columns,
            total=reader.num_grids,
            digests={reader.name: reader.digest} if reader.digest else {},
            read=lambda count: ((batch, None) for batch in reader.batches(count)),
            tokenizer=cache(lambda: tokenizer_of(reader.header, source, given=flags.tokenizer).to(prior.device)),
        )


def _open_images(sources: Sequence[Path], prior: "Prior", flags: EditFlags, skipped: Skipped) -> _Pictures:
    from vqtool.images import find_images, parse_size, read_batches
    from vqtool.tokenizers import tokenizer_of
    from vqtool.tokenizers.batches import encode_batch, grid_header

    model = tokenizer_of(prior.grid_spec, flags.prior, given=flags.tokenizer).to(prior.device)
    size = prior.grid_spec.image_size if flags.size is None else parse_size(flags.size)
    header = replace(grid_header(model, size, {}), history=())
    items = find_images(sources, on_error=skipped.on_error)
    echo(f"{len(items)} images at {shape(size)} -> grids of {shape(header.grid_size)} tokens")

    def read(count: int) -> "Iterator[tuple[GridBatch, Images | None]]":
        for found in read_batches(items, size, count, on_error=skipped.on_error):
            yield encode_batch(found, model), found.images

    known = {"class": any(item.label for item in items), "caption": any(item.caption for item in items)}
    return _Pictures(
        name=str(sources[0]),
        header=header,
        columns={kind for kind, is_known in known.items() if is_known},
        total=len(items),
        digests={"tokenizer": model.fingerprint},
        read=read,
        tokenizer=lambda: model,
    )


def _find_text(prior: "Prior", flags: EditFlags) -> str | None:
    """The label or caption that all pictures are made by; None for their own."""
    labels, captions = ([each] if each is not None else None for each in (flags.label, flags.caption))
    return find_texts(prior.conditioner, labels, captions, None)[0] if labels or captions else None


def _open_image_writer(flags: EditFlags, run_flags: RunFlags) -> "AbstractContextManager[ImageWriter | None]":
    """Where pictures go, None for token grids or a dry run; refuses an output before any work is done."""
    from vqtool.grids import check_output
    from vqtool.images.writer import writer_type

    if run_flags.dry_run:
        return nullcontext()
    if run_flags.trajectory == flags.output:
        raise VqtoolError(f"--trajectory and -o both name {flags.output}: pictures and their animation are two files")
    if flags.writes_grids:
        check_output(flags.output, force=flags.force)
        return nullcontext()
    return writer_type(flags.output)(flags.output, force=flags.force)


@contextmanager
def _open_output(
    image_writer: "ImageWriter | None", todo: Change, flags: EditFlags, pictures: _Pictures, record: dict[str, Any]
) -> "Iterator[Callable[[GridBatch, Images | None, int], None]]":
    """What writes made grids: to a grid file, or as pictures with what is kept of their originals."""
    from vqtool.grids import GridWriter
    from vqtool.tokenizers.batches import decode_batch

    if image_writer is None:
        with GridWriter(flags.output, todo.header.with_step(record), force=flags.force) as writer:
            yield lambda made, originals, number: writer.write(made)
        return
    tokenizer = pictures.tokenizer()

    def write(made: "GridBatch", originals: "Images | None", number: int) -> None:
        images = decode_batch(made, tokenizer)
        if originals is not None:
            images = todo.finish(images, originals, number)
        image_writer.write(images, made.ids, made.labels, made.captions)

    yield write
