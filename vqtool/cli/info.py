"""`vqtool info`: what a file is and where it came from."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from vqtool.cli.main import command
from vqtool.cli.options import JsonOutput
from vqtool.errors import printable
from vqtool.tally import describe_words


@command
def info(
    file: Annotated[
        str, typer.Argument(help="Token grids, an artifact, or 'builtin'; - is token grids on stdin.")
    ] = "-",
    json: JsonOutput = False,
) -> None:
    """Show what a file is, be it token grids, tokenizer or prior, and its history.

    Of the built-in tokenizer and prior it shows the model cards: pictures, licences, training, scores and limits.

    Examples:

        vqtool info tok.h5

        vqtool info prior.safetensors --json

        vqtool info builtin
    """
    from json import dumps

    from vqtool.inspection import describe

    description = {"file": file, **describe(file)}
    if json:
        print(dumps(description, indent=2))
    else:
        print("\n".join(map(printable, _lines(description))))


def _lines(description: Mapping[str, Any]) -> Iterator[str]:
    file, *parts = description.values()
    if "kind" not in description:  # of the package, one part an artifact
        for part in parts:
            yield from _lines({"file": f"{file} {part['kind']}", **part, "history": []})
            yield from ("", *part["card"].splitlines(), "")
        return
    yield f"{file}: {description['kind']}"
    rows = _grid_rows(description) if "num_grids" in description else _artifact_rows(description)
    yield from (f"  {name:<14}{value}" for name, value in rows if value)
    if description["history"]:
        yield "  history"
        yield from (f"    {_record(record)}" for record in description["history"])


def _grid_rows(description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    height, width = description["image_size"]
    rows, columns = description["grid_size"]
    tokenizer = description["tokenizer"]
    yield "files", str(description.get("num_files", ""))
    yield "grids", f"{description['num_grids']} of {rows}x{columns}, {description['dtype']} in [0, K)"
    yield "masked", "a token K marks a masked cell" if description["masked"] else ""
    yield "codebook", f"K = {description['codebook_size']}"
    yield "images", f"{height}x{width} (height x width), {description['preprocessing']}"
    yield "tokenizer", f"{tokenizer['fingerprint']} from {tokenizer['location']}"
    yield "known", ", ".join(description["columns"])
    num = description.get("num_skipped")
    skipped = f"; {num:,} {'file' if num == 1 else 'files'} skipped" if num else ""
    yield "words", describe_words(**description["words"]) + skipped if "words" in description else ""
    yield "digest", description["digest"] or f"none: a stream of {description['num_sequences']} sequence(s)"


def _artifact_rows(description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "fingerprint", description["fingerprint"]
    kept = description["identity"] != description["fingerprint"]
    yield "known as", f"{description['identity']}, whose encoder and codes it kept" if kept else ""
    yield "parameters", f"{description['num_parameters']:,} in {description['num_tensors']} tensors"
    yield "size", f"{description['bytes'] / 1e6:.2f} MB"
    for name in ("config", "parents", "summary"):
        yield name, ", ".join(f"{key} {_short(value)}" for key, value in description[name].items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _record(record: Mapping[str, Any]) -> str:
    seed = f", seed {record['seed']}" if "seed" in record else ""
    made = f"{record.get('time', 'at an unknown time')}, vqtool {record.get('version', '?')}{seed}"
    return f"{record.get('step', '?')} ({made}): {record.get('command', '?')}"
