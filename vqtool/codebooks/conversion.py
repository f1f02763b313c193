"""Token grids in the codes of another tokenizer: `remap` by the nearest code, `apply_map` by a map in a file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqtool.artifacts import history_record
from vqtool.codebooks.maps import CodeMap, Row
from vqtool.codebooks.rebuilt import same_latents
from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import GridHeader, GridWriter, check_output, open_grids
from vqtool.grids.reader import GridReader
from vqtool.progress import Progress, silent
from vqtool.tokenizers import Tokenizer, load_tokenizer, tokenizer_of
from vqtool.tokenizers.quantizers import nearest


@dataclass(frozen=True)
class Target:
    """The tokenizer that converted grids are of, and how tokens become its tokens."""

    forward: Row  # (K_old,) the new token of each old one
    codebook_size: int
    fingerprint: str  # that it is known by
    location: str
    record: dict[str, Any]  # for the history


@dataclass(frozen=True)
class Conversion:
    """What was written."""

    output: str  # its name
    num_grids: int
    target: Target


def remap(
    grids: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path,
    old: str | Path | None = None,
    unrelated: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Conversion:
    """Convert token grids to a tokenizer whose codebook was rebuilt: each token becomes the nearest new code.

    Args:
        grids: file of token grids; "-" is standard input.
        output: file to write; "-" is standard output.
        tokenizer: the new one.
        old: the tokenizer of the grids; None: the one that they name.
        unrelated: take a tokenizer whose encoder is another.
        force: overwrite what is there.
        progress: shows how far it is.

    Raises:
        MismatchError: the encoders differ, so that distances between codes mean nothing.
        VqtoolError: the grids are of the new tokenizer already, theirs is not there, or the output exists.
    """
    check_output(output, force=force)
    new = load_tokenizer(tokenizer)

    def choose(reader: GridReader) -> Target:
        if reader.header.tokenizer_fingerprint == new.identity:
            raise VqtoolError(f"{reader.name}: its tokens are those of {tokenizer} already")
        before = tokenizer_of(reader.header, grids, given=old, parameter="from")
        inputs = {"tokenizer": new.fingerprint, "from": before.fingerprint}
        forward = nearest_codes(before, new, unrelated=unrelated)
        record = history_record("codebook remap", inputs=inputs)
        return Target(forward, new.codebook_size, new.identity, new.location, record)

    return _convert(grids, output, choose, force=force, progress=progress)


def apply_map(
    grids: str | Path,
    output: str | Path,
    code_map: CodeMap,
    *,
    tokenizer: str | Path | None = None,
    inverse: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Conversion:
    """Convert token grids by a map between codes.

    Args:
        grids: file of token grids; "-" is standard input.
        output: file to write; "-" is standard output.
        code_map: from `maps.load_map`, `prune`, or `interop.code_maps.load_code_map`.
        tokenizer: of the converted grids; None: the one that the map names.
        inverse: go back, from reduced to full codes.
        force: overwrite what is there.
        progress: shows how far it is.

    Raises:
        MismatchError: the map is of other tokens, or for another tokenizer.
        VqtoolError: nobody says which tokenizer it is for, or the output exists.
    """
    check_output(output, force=force)
    used = code_map.inverse() if inverse else code_map
    fingerprint, location = _find_target(used, tokenizer)

    def choose(reader: GridReader) -> Target:
        check_fits(used, reader.header, reader.name)
        record = history_record("codebook apply-map", inputs={"tokenizer": fingerprint}, inverse=inverse)
        return Target(used.forward, len(used.backward), fingerprint, location, record)

    return _convert(grids, output, choose, force=force, progress=progress)


def nearest_codes(old: Tokenizer, new: Tokenizer, *, unrelated: bool = False) -> Row:
    """The nearest new code of each old one.

    Args:
        old: K codes.
        new: K' codes in the same space.
        unrelated: take encoders that differ.

    Returns:
        (K,) tokens in [0, K').

    Raises:
        MismatchError: the encoders differ, so that distances between their codes mean nothing.
    """
    if old.codebook.shape[1] != new.codebook.shape[1] or old.factor != new.factor:
        raise MismatchError(
            f"{new.location} has codes of {new.codebook.shape[1]} numbers and factor {new.factor}, {old.location} "
            f"codes of {old.codebook.shape[1]} and factor {old.factor}: encode the images again with "
            f"`vqtool encode -t {new.location}`"
        )
    if not unrelated and not same_latents(old, new):
        raise MismatchError(
            f"{new.location} ({new.fingerprint}) is not {old.location} ({old.fingerprint}) with other codes: their "
            "encoders differ, so that distances between their codes mean nothing; encode the images again with "
            f"`vqtool encode -t {new.location}`, or insist with `unrelated`"
        )
    return nearest(old.codebook, new.codebook).cpu().numpy()


def check_fits(code_map: CodeMap, header: GridHeader, name: str) -> None:
    """Raise unless a map is of the tokens that grids hold.

    Raises:
        MismatchError: another codebook size or tokenizer.
    """
    if code_map.source and code_map.source != header.tokenizer_fingerprint:
        back = " (`inverse` goes the other way)" if code_map.target == header.tokenizer_fingerprint else ""
        raise MismatchError(
            f"{code_map.name} maps tokens of tokenizer {code_map.source}, but {name} has tokens of "
            f"{header.tokenizer_fingerprint}{back}"
        )
    if len(code_map.forward) != header.codebook_size:
        raise MismatchError(
            f"{code_map.name} maps {len(code_map.forward)} codes, but {name} has tokens of a codebook of "
            f"{header.codebook_size}"
        )


def _convert(
    grids: str | Path,
    output: str | Path,
    choose: Callable[[GridReader], Target],
    *,
    force: bool,
    progress: Progress,
) -> Conversion:
    with open_grids(grids) as reader:
        target = choose(reader)
        header = replace(
            reader.header,
            codebook_size=target.codebook_size,
            tokenizer_fingerprint=target.fingerprint,
            tokenizer_location=target.location,
            history=(*reader.header.history, target.record),
        )
        with (
            GridWriter(output, header, force=force) as writer,
            progress("convert", reader.num_grids, "grids") as advance,
        ):
            for batch in reader.batches():
                writer.write(replace(batch, tokens=target.forward[batch.tokens]))
                advance(len(batch))
    return Conversion(writer.name, writer.num_grids, target)


def _find_target(code_map: CodeMap, given: str | Path | None) -> tuple[str, str]:
    """Identity and location of the tokenizer that converted grids are of."""
    if given is None:
        if not code_map.target:
            raise VqtoolError(f"{code_map.name} does not say whose codes it makes: name the tokenizer with `tokenizer`")
        return code_map.target, code_map.target_location
    model = load_tokenizer(given)
    if code_map.target not in ("", model.identity):
        raise MismatchError(
            f"{code_map.name} makes tokens of tokenizer {code_map.target}, but {given} is {model.identity}"
        )
    if model.codebook_size != len(code_map.backward):
        raise MismatchError(
            f"{code_map.name} makes {len(code_map.backward)} codes, but {given} has {model.codebook_size}"
        )
    own = None if model.num_full_codes is None else model.code_map.numpy()
    if not code_map.target and own is not None and own.tolist() != code_map.forward.tolist():
        raise MismatchError(f"{code_map.name} is not the map that is part of {given}")
    return model.identity, str(given)
