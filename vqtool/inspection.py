"""What a file is, and whether it is whole: token grids and artifacts alike, without loading torch."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vqtool import artifacts
from vqtool.captions import split_captions
from vqtool.errors import FormatError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, GridReader, open_grids
from vqtool.grids.index import is_index, read_index
from vqtool.grids.listing import Listing
from vqtool.grids.stream import SIGNATURE, SUPERBLOCK_BYTES
from vqtool.inputs import describe_bytes, is_file, locate, open_input

GRIDS, INDEX = "token grids", "index of token grids"
BUILTIN_KINDS = ("tokenizer", "prior", "dual-encoder")  # what is inside the package, if it is


def describe(source: str | Path) -> dict[str, Any]:
    """What a file says about itself; JSON-able. A stream is read to its end to count its grids.

    Args:
        source: token grids or an artifact; "-" is token grids on standard input; "builtin" is what the package holds.

    Returns:
        "kind" is "token grids", "index of token grids" or the artifact's kind; the other keys are in docs/formats.md.
        Of "builtin" there is a description of each kind of artifact, by kind, with a "card": what it was made of and
        for.

    Raises:
        FormatError: it is neither, or damaged.
    """
    if str(source) == artifacts.BUILTIN:
        paths = filter(Path.is_file, map(artifacts.builtin_path, BUILTIN_KINDS))
        return {path.stem: {**_describe_artifact(path), "card": _read_card(path)} for path in paths}
    if is_index(source):
        return _describe_index(read_index(locate(source)))
    if _is_artifact(source):
        return _describe_artifact(Path(source))
    with open_grids(source, masked=True) as reader:
        return _describe_grids(reader)


def verify(source: str | Path) -> dict[str, Any]:
    """Read a file whole and check everything it says about itself.

    Args:
        source: token grids or an artifact; "-" is token grids on standard input. Of an index no file is read.

    Returns:
        "kind", and "num_grids" or "fingerprint".

    Raises:
        FormatError: truncated, a digest or fingerprint does not match, a token is out of range, a tokenizer has not the
            encoder and codes that it says to have, or neither of the two.
        MismatchError: a stream changes its tokenizer or grid size on the way.
    """
    if is_index(source):
        return {"kind": INDEX, "num_grids": read_index(locate(source)).num_grids}
    if not _is_artifact(source):
        with open_grids(source, masked=True) as reader:
            return {"kind": GRIDS, "num_grids": sum(len(batch) for batch in reader.batches())}
    header = artifacts.verify(source)
    if artifacts.CODES in header.parents:
        _check_codes(Path(source), header.parents[artifacts.CODES])
    return {"kind": header.kind, "fingerprint": header.fingerprint}


def _check_codes(path: Path, fingerprint: str) -> None:
    """Compare a tokenizer with the one whose encoder and codes it says to have, if that is in the package or beside it.

    Raises:
        FormatError: they are others.
    """
    from safetensors.numpy import load_file

    places = [artifacts.builtin_path("tokenizer"), *sorted(path.parent.glob("*.safetensors"))]
    parent = next((place for place in places if _fingerprint_of(place) == fingerprint), None)
    if parent is None:
        return
    mine, theirs = load_file(path), load_file(parent)
    for name, tensor in theirs.items():
        if not name.startswith(artifacts.DECODER) and not np.array_equal(mine.get(name, ()), tensor):
            raise FormatError(
                f"{path}: it says to have encoder and codes of {fingerprint}, but its {name} is not that of {parent}"
            )


def _fingerprint_of(path: Path) -> str | None:
    try:
        return artifacts.read_header(path).fingerprint
    except VqtoolError:
        return None


def _describe_artifact(path: Path) -> dict[str, Any]:
    header, shapes = artifacts.read_header(path), artifacts.tensor_shapes(path)
    return {
        "kind": header.kind,
        "format_version": header.format_version,
        "fingerprint": header.fingerprint,
        "identity": header.identity,
        "num_tensors": len(shapes),
        "num_parameters": sum(prod(shape) for shape in shapes.values()),
        "bytes": path.stat().st_size,
        "config": header.config,
        "parents": header.parents,
        "summary": header.summary,
        "history": list(header.history),
    }


def _read_card(path: Path) -> str:
    """The model card beside an artifact."""
    return path.with_suffix(".md").read_text(encoding="utf-8").strip()


def _describe_header(header: GridHeader) -> dict[str, Any]:
    return {
        "grid_size": list(header.grid_size),
        "dtype": str(header.dtype),
        "codebook_size": header.codebook_size,
        "masked": header.masked,
        "image_size": list(header.image_size),
        "tokenizer": {"fingerprint": header.tokenizer_fingerprint, "location": header.tokenizer_location},
        "preprocessing": header.preprocessing,
    }


def _describe_index(listing: Listing) -> dict[str, Any]:
    return {
        "kind": INDEX,
        "num_files": len(listing.files),
        "num_grids": listing.num_grids,
        **_describe_header(listing.header),
        "columns": sorted({column for file in listing.files for column in file.columns}),
        "digest": listing.digest,
        "history": list(listing.header.history),
    }


def _describe_grids(reader: GridReader) -> dict[str, Any]:
    header = reader.header
    num_grids, known = reader.num_grids, set(reader.columns)
    labels, captions = list[str](), list[str]()
    if num_grids is None:
        num_grids = 0
        for batch in reader.batches():
            num_grids += len(batch)
            known |= _known(batch)
            labels += filter(None, batch.labels or ())
            captions += filter(None, batch.captions or ())
    else:
        labels, captions = (list(filter(None, reader.read_column(name))) for name in ("label", "caption"))
    return {
        "kind": GRIDS,
        "num_grids": num_grids,
        **_describe_header(header),
        "columns": sorted(known),
        "words": {
            "num_captioned": len(captions),
            "num_captions": sum(len(split_captions(caption)) for caption in captions),
            "num_labelled": len(labels),
            "num_classes": len(set(labels)),
        },
        "num_skipped": _num_skipped(reader.history, num_grids),
        "num_sequences": len(reader.headers),
        "digest": reader.digest,
        "history": list(reader.history),
    }


def _num_skipped(history: Sequence[Mapping[str, Any]], num_grids: int) -> int:
    """How many images the command that made grids of them could not read, if nothing was done to these since."""
    record = history[0] if len(history) == 1 else {}
    given = record.get("num" if record.get("step") == "encode" else "num_images")
    variants = 1 if record.get("step") == "encode" else record.get("num")
    if not isinstance(given, int) or not isinstance(variants, int) or variants < 1:
        return 0
    return max(0, given - num_grids // variants)


def _known(batch: GridBatch) -> set[str]:
    return {name for name, column in batch.texts.items() if column is not None}


def _is_artifact(source: str | Path) -> bool:
    """Whether a file is an artifact rather than token grids, as far as its first bytes tell; never for a pipe.

    Raises:
        FormatError: it is a file of another kind.
    """
    with open_input(source) as (stream, name):
        if not is_file(stream):
            return False
        start = stream.read(SUPERBLOCK_BYTES)
    if start.startswith(SIGNATURE) or not start:
        return False
    if start[8:10] != b'{"':
        found = describe_bytes(start)
        raise FormatError(f"{name}: token grids (HDF5) or an artifact (safetensors) were expected, found {found}")
    return True
