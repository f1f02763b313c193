"""Imported parts as artifacts, each naming those it needs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqtool.conditions.text_encoders import save_text_encoder
from vqtool.errors import MismatchError
from vqtool.interop._contract import Imported, Options
from vqtool.outputs import refuse_existing, side_file
from vqtool.priors import Prior
from vqtool.tokenizers import Tokenizer, save_tokenizer

Written = tuple[str, Path, str]  # what, where, its fingerprint


def attach_tokenizer(imported: Imported, options: Options) -> Imported:
    """The prior with the tokenizer that the user named, where the source holds none.

    Raises:
        MismatchError: it has another number of codes.
    """
    tokenizer = imported.tokenizer or options.tokenizer
    if imported.prior is None or tokenizer is None:
        return imported
    codes = imported.prior.codebook_size
    if tokenizer.codebook_size != codes:
        raise MismatchError(
            f"the prior has {codes} tokens, but the tokenizer {tokenizer.codebook_size} codes: "
            "a prior of reduced codes needs its map, `code_map`"
        )
    return replace(imported, prior=_decoded_by(imported.prior, tokenizer))


def save(imported: Imported, output: Path | None, *, record: dict[str, Any], force: bool = False) -> Iterator[Written]:
    """Write what was imported.

    Args:
        imported: from `load`.
        output: of the prior, or else of the tokenizer or text encoder; other parts go beside it under its name.
        record: of the import, for the history of all parts.
        force: overwrite.

    Yields:
        What was written, part by part.

    Raises:
        VqtoolError: a file exists and `force` is off; nothing has been written then.
    """
    kinds = {"prior": imported.prior, "tokenizer": imported.tokenizer, "text-encoder": imported.text_encoder}
    main = next(kind for kind, part in kinds.items() if part is not None)
    output = output or Path(f"{main}.safetensors")
    tokenizer_path, text_path = (
        output if kind == main else side_file(output, f".{kind}.safetensors") for kind in ("tokenizer", "text-encoder")
    )
    parts = [(imported.tokenizer, tokenizer_path), (imported.text_encoder, text_path), (imported.prior, output)]
    for part, path in parts:
        if part is not None:
            refuse_existing(path, force=force, kind="an artifact")
    prior = imported.prior
    if imported.text_encoder is not None:
        header = save_text_encoder(text_path, imported.text_encoder, history=[record], force=force)
        yield "text encoder", text_path, header.fingerprint
    if imported.tokenizer is not None:
        header = save_tokenizer(tokenizer_path, imported.tokenizer, history=[record], force=force)
        imported.tokenizer.take_name(header, str(tokenizer_path))
        yield "tokenizer", tokenizer_path, header.fingerprint
        prior = _decoded_by(prior, imported.tokenizer) if prior else None
    if prior is not None:
        prior = replace(prior, history=(record,)).save(output, force=force)
        yield "prior", output, prior.fingerprint


def _decoded_by(prior: Prior, tokenizer: Tokenizer) -> Prior:
    grid_spec = replace(
        prior.grid_spec,
        tokenizer_fingerprint=tokenizer.identity,
        tokenizer_location=tokenizer.location,
        image_size=tokenizer.image_size(prior.grid_spec.grid_size),
    )
    return replace(prior, grid_spec=grid_spec)
