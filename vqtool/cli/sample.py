"""`vqtool sample`: prior -> token grids."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.console import echo, warn
from vqtool.cli.main import command
from vqtool.cli.options import Captions, Device, Force, Labels, Seed, TokenizerOption
from vqtool.cli.runs import Run, RunFlags, filmed, image_size
from vqtool.cli.sampling import SamplingFlags, describe
from vqtool.distributed import own_range, world_size
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from torch import Tensor

    from vqtool.conditions import Conditioner
    from vqtool.grids import GridBatch, GridHeader
    from vqtool.priors import Prior
    from vqtool.samplers import SampleBatch

DEFAULT_NUM = 64
MAX_NUMBER = 2**63 - 1
_PLURALS = {"class": "labels", "caption": "captions"}


@command
def sample(
    *,
    prior: Annotated[Path, typer.Argument(help="Prior file.")] = Path("prior.safetensors"),
    num: Annotated[
        int | None, typer.Option("--num", "-n", help="How many. Default: 64, or one a line of --captions.")
    ] = None,
    label: Labels = None,
    caption: Captions = None,
    captions: Annotated[
        Path | None, typer.Option("--captions", help="File of captions or labels, one a line; - is stdin.")
    ] = None,
    flags: SamplingFlags,
    seed: Seed = 0,
    start: Annotated[int, typer.Option("--start", help="Number of the first sample.")] = 0,
    grid: Annotated[
        str | None, typer.Option("--grid", help="Cells of larger pictures, e.g. 32x48. Default: the training grid.")
    ] = None,
    run_flags: RunFlags,
    tokenizer: TokenizerOption = None,
    device: Device = "auto",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Grid file to write; - is stdout: a stream if that is a pipe.")
    ] = Path("-"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same settings, to the same file.")
    ] = False,
    force: Force = False,
) -> None:
    """Draw token grids from a prior.

    Sample i is the same for every batch size, number of samples and --start. Without --label, --caption or --captions
    a prior that takes a condition is given the examples it was trained on, in turn.

    Examples:

        vqtool sample --cfg-scale 3 --purity | vqtool decode

        vqtool sample -n 16 --label 7 --steps 50 --seed 1 -o sevens.h5

        cat prompts.txt | vqtool sample --captions - | vqtool decode -o sheet.png

        vqtool sample -n 50000 -o many.h5 --resume

        vqtool sample --grid 32x48 -n 8 --trajectory how.webp | vqtool decode -o large/
    """
    from vqtool.artifacts import history_record, text_digest
    from vqtool.distributed import choose_device
    from vqtool.grids.resume import check_resumable, resumable_writer
    from vqtool.images import parse_size
    from vqtool.outputs import is_stream
    from vqtool.priors import load_prior
    from vqtool.samplers import sample_batches
    from vqtool.tokenizers import tokenizer_of

    if tokenizer is not None and run_flags.trajectory is None:
        raise VqtoolError("--tokenizer is what --trajectory decodes with: give that too, or leave both out")
    if not run_flags.dry_run:
        check_resumable(output, resume=resume, force=force)
    model = load_prior(prior).to(choose_device(device))
    texts = find_texts(model.conditioner, label, caption, captions)
    num = _check_range(num if num is not None else len(texts) if captions else DEFAULT_NUM, start)
    options = flags.choose(model, has_condition=bool(texts)) | run_flags.choose()
    options |= {} if grid is None else {"grid_size": parse_size(grid, "--grid", "cells")}
    echo(f"prior {model.fingerprint} ({prior}): {num} grids by {options['sampler']} sampling, seed {seed}")
    conditions = {_PLURALS[model.conditioner.kind]: text_digest(texts)} if texts else {}
    details = {"num": num, "start": start, **describe(options), **conditions}
    record = history_record("sample", inputs={"prior": model.fingerprint}, seed=seed, **details)
    own = own_range(num)
    samples = range(start + own.start, start + own.stop)

    def condition(samples: range) -> "Tensor":
        return model.conditioner.encode([texts[number % len(texts)] for number in samples])

    options |= {"seed": seed, "condition": condition if texts else None}
    run = Run(model, len(samples), options, run_flags, is_kept=not is_stream(output))
    run.echo_cost()
    if run_flags.dry_run:
        run.rehearse(samples)
        return
    header = _grid_header(model, run.windows.grid_size, record)
    find = partial(tokenizer_of, header, prior, given=tokenizer)
    with (
        filmed(run_flags, samples, find, texts=texts, force=force) as observe,
        resumable_writer(output, header, resume=resume, force=force) as writer,
    ):
        left = samples[writer.num_grids :]
        draw = partial(sample_batches, model, len(left), start=left.start, **options)
        for batch in run.batches(draw, observe, done=writer.num_grids):
            writer.write(_grid_batch(model.conditioner.kind, batch, texts))
    echo(f"wrote {num} grids to {'stdout' if str(output) == '-' else output}: {run.summary}")


def _check_range(num: int, start: int) -> int:
    if num < 1:
        raise VqtoolError(f"--num {num}: at least 1 grid has to be drawn")
    if not 0 <= start <= MAX_NUMBER - num:
        raise VqtoolError(f"--start {start}: the numbers of the samples must lie in 0 to 2**63 - 1")
    return num


def find_texts(
    conditioner: "Conditioner", labels: list[str] | None, captions: list[str] | None, file: Path | None
) -> list[str]:
    """The labels or captions to draw, in turn: those given, or the prior's own examples.

    Raises:
        VqtoolError: given in two ways, or of a kind that the prior does not take.
    """
    given = [flag for flag, value in (("--label", labels), ("--caption", captions), ("--captions", file)) if value]
    if len(given) > 1:
        raise VqtoolError(f"{' and '.join(given)} are given: one of them says what to draw")
    if not given:
        if conditioner.examples:
            echo(f"conditions: the prior's own {len(conditioner.examples)} {_PLURALS[conditioner.kind]}, in turn")
        elif conditioner.kind != "none":
            echo(f"conditions: none; this prior takes {_PLURALS[conditioner.kind]}, but brings no examples of its own")
        return list(conditioner.examples)
    wrong = {"none": given[0], "class": "--caption", "caption": "--label"}[conditioner.kind]
    if given[0] == wrong:
        takes = {"none": "no condition", "class": "labels: use --label", "caption": "captions: use --caption"}
        raise VqtoolError(f"{wrong} does not go with this prior, which takes {takes[conditioner.kind]}")
    texts = labels or captions or _read_lines(file or Path("-"))
    conditioner.encode(texts)  # an unknown label is found before any work is done
    for text in conditioner.find_truncated(texts):
        warn(f"longer than the prior can read, its end is left out: {text[:60]!r}...")
    return texts


def _read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        VqtoolError: it cannot be read, is not UTF-8, or has none.
    """
    name = "standard input" if str(path) == "-" else str(path)
    if str(path) == "-" and world_size() > 1:
        raise VqtoolError("--captions - is for one process: several cannot share standard input; name a file")
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise VqtoolError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise VqtoolError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise VqtoolError(f"{name}: no captions in it: one a line is expected")
    return texts


def _grid_header(prior: "Prior", grid_size: tuple[int, int], record: dict[str, Any]) -> "GridHeader":
    from vqtool.grids import GridHeader

    return GridHeader(
        codebook_size=prior.kernel.codebook_size,
        grid_size=grid_size,
        image_size=image_size(prior, grid_size),
        tokenizer_fingerprint=prior.grid_spec.tokenizer_fingerprint,
        tokenizer_location=prior.grid_spec.tokenizer_location,
        preprocessing=prior.grid_spec.preprocessing,
        history=(*prior.history, record),
    )


def _grid_batch(kind: str, batch: "SampleBatch", texts: list[str]) -> "GridBatch":
    from vqtool.grids import GridBatch

    ids = [f"sample-{number:06}" for number in batch.samples]
    own = [texts[number % len(texts)] for number in batch.samples] if texts else None
    return GridBatch(
        batch.grids.numpy().astype("uint64"),
        ids,
        labels=own if kind == "class" else None,
        captions=own if kind == "caption" else None,
    )
