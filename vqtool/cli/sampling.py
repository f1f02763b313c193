"""Flags of the commands that sample, and what they stand for."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli import help
from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import INPUT_OUTPUT, MACHINE, METHOD, advanced
from vqtool.cli.options import EDIT_SOURCE_OPTIONS
from vqtool.distributed import world_size
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.priors import Prior

GUIDANCE = FlagGroup.of_file(
    "samplers/_settings.py", "Guidance", panel=advanced(help.GUIDANCE), panels={"cfg_scale": METHOD}
)
_SAMPLING = (
    FlagGroup.of_registered("samplers", what="Sampler", panel=METHOD, chooser="sampler")
    | FlagGroup.of_file(
        "samplers/_settings.py",
        "Settings",
        panel=METHOD,
        panels=GUIDANCE.panels | dict.fromkeys(("temperature", "truncation", "top_k"), advanced(METHOD)),
    )
    | FlagGroup.of_file("samplers/_tiles.py", "TileOptions", panel=METHOD)
    | FlagGroup.of_file("samplers/_machine.py", "MachineOptions", panel=advanced(MACHINE))
    | FlagGroup.of_file(
        "samplers/runs.py", "RunOptions", panel=advanced(MACHINE), panels={"trajectory": advanced(INPUT_OUTPUT)}
    )
)

SamplingFlags = Annotated[dict[str, Any], _SAMPLING]
_EDITING = _SAMPLING.moved(sampler=advanced(METHOD), truncation=advanced(METHOD))
EditSamplingFlags = Annotated[dict[str, Any], _EDITING]  # editing has more flags of its own: fewer are for every day
EditImageFlags = Annotated[dict[str, Any], _EDITING | EDIT_SOURCE_OPTIONS]  # of images, too
Purity = Annotated[bool, typer.Option("--purity", help="Short for --sampler purity.", rich_help_panel=METHOD)]
Feather = Annotated[
    int,
    typer.Option("--feather", help="Pictures: width of the soft edge, pixels.", rich_help_panel=advanced(INPUT_OUTPUT)),
]


def sampling_arguments(how: dict[str, Any], purity: bool) -> dict[str, Any]:
    """The arguments of the library that SamplingFlags and Purity stand for.

    Raises:
        VqtoolError: they name two samplers.
    """
    if purity and how.setdefault("sampler", "purity") != "purity":
        raise VqtoolError(
            f"--purity is short for --sampler purity, but --sampler {how['sampler']} is given too: leave one out"
        )
    return how


def load_named_prior(named: Path | None) -> "Prior":
    """The prior that a command names: a file, 'builtin', zoo:NAME, or none for the usual one."""
    from vqtool.cli.console import echo
    from vqtool.priors import find_prior, load_prior

    if named is not None and str(named).startswith("zoo:"):
        from vqtool.interop import zoo

        return load_prior(zoo.find_file(str(named), echo))
    return load_prior(find_prior(named, notify=echo))


def text_arguments(
    prior: "Prior", labels: list[str] | None, captions: list[str] | None, file: Path | None
) -> dict[str, list[str] | None]:
    """The labels and captions that flags name; those of a file are whichever of the two the prior takes.

    Raises:
        VqtoolError: they are named in two ways, the prior takes others, or the file cannot be read.
    """
    from vqtool.samplers import check_kind

    given = [flag for flag, value in (("--label", labels), ("--caption", captions), ("--captions", file)) if value]
    if len(given) > 1:
        raise VqtoolError(f"{' and '.join(given)} are given: one of them says what to draw")
    if file is None:
        named = {name for name, texts in (("labels", labels), ("captions", captions)) if texts}
        check_kind(prior, named, {"class": "--label", "caption": "--caption"})
        return {"labels": labels, "captions": captions}
    return {"labels" if prior.conditioner.kind == "class" else "captions": _read_lines(file)}


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
