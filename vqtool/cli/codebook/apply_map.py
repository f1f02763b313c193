"""`vqtool codebook apply-map`: token grids in the codes that a map says."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtool.cli.help import METHOD
from vqtool.cli.main import command
from vqtool.cli.options import Force
from vqtool.errors import MismatchError, VqtoolError

if TYPE_CHECKING:
    from vqtool.codebooks.maps import CodeMap


@command
def apply_map(
    code_map: Annotated[
        Path, typer.Option("--map", help="Map of `prune`, or one of VQ-Diffusion (.pt).", show_default=False)
    ],
    grids: Annotated[str, typer.Argument(help="Token grids; - is stdin.")] = "-",
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="Tokenizer of the converted grids. Default: the one the map names."),
    ] = None,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Go back, from reduced to full codes.", rich_help_panel=METHOD)
    ] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is stdout.")] = "-",
    force: Force = False,
) -> None:
    """Convert token grids by a map between codes, from the full codebook to the reduced one or back.

    A map of VQ-Diffusion (taming_vqvae_2887.pt) does not say whose codes it maps: name the tokenizer of the result. In
    it all codes out of use become 0, and each reduced code goes back to the first that becomes it.

    Examples:

        vqtool codebook apply-map tok.h5 --map pruned.map.safetensors -o reduced.h5

        vqtool codebook apply-map full.h5 --map taming_vqvae_2887.pt -t coco-tokenizer.safetensors -o reduced.h5

        vqtool codebook apply-map reduced.h5 --map pruned.map.safetensors --inverse -o full.h5
    """
    from vqtool.artifacts import history_record
    from vqtool.cli.console import echo
    from vqtool.codebooks.maps import check_fits, convert, converted_header
    from vqtool.grids import GridWriter, check_output, open_grids

    check_output(output, force=force)
    found = _read_map(code_map)
    found = found.inverse() if inverse else found
    fingerprint, location = _target(found, tokenizer, code_map)
    with open_grids(grids) as reader:
        check_fits(found, reader.header, reader.name, str(code_map))
        header = converted_header(
            reader.header,
            codebook_size=len(found.backward),
            fingerprint=fingerprint,
            location=location,
            record=history_record("codebook apply-map", inputs={"tokenizer": fingerprint}, inverse=inverse),
        )
        with GridWriter(output, header, force=force) as writer:
            for batch in convert(reader.batches(), found.forward):
                writer.write(batch)
    echo(f"wrote {writer.num_grids} grids of {len(found.backward)} codes to {writer.name}")


def _read_map(path: Path) -> "CodeMap":
    """A map of ours, or one of VQ-Diffusion, by the content."""
    from vqtool.codebooks.maps import from_vector, load_map
    from vqtool.interop import read_code_map

    try:
        with path.open("rb") as file:
            start = file.read(10)
    except OSError as error:
        raise VqtoolError(f"{path}: cannot be read: {error.strerror}") from error
    if start[8:] == b'{"':
        return load_map(path)
    return from_vector(read_code_map(path).numpy(), str(path))


def _target(code_map: "CodeMap", given: str | None, map_path: Path) -> tuple[str, str]:
    """Fingerprint and location of the tokenizer that converted grids are of.

    Raises:
        MismatchError: the tokenizer given is not the one that the map is for.
        VqtoolError: nobody says which it is.
    """
    from vqtool.tokenizers import load_tokenizer

    if given is None:
        if not code_map.target:
            raise VqtoolError(f"{map_path} does not say whose codes it makes: name the tokenizer with --tokenizer")
        return code_map.target, code_map.target_location
    model = load_tokenizer(given)
    if code_map.target not in ("", model.fingerprint):
        raise MismatchError(
            f"{map_path} makes tokens of tokenizer {code_map.target}, but {given} is {model.fingerprint}"
        )
    if model.codebook_size != len(code_map.backward):
        raise MismatchError(f"{map_path} makes {len(code_map.backward)} codes, but {given} has {model.codebook_size}")
    own = None if model.num_full_codes is None else model.code_map.numpy()
    if not code_map.target and own is not None and own.tolist() != code_map.forward.tolist():
        raise MismatchError(f"{map_path} is not the map that is part of {given}")
    return model.fingerprint, given
