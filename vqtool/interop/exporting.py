"""Artifacts as other projects' files."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqtool.artifacts import BUILTIN, builtin_path, read_header
from vqtool.errors import VqtoolError
from vqtool.extras import install_command
from vqtool.interop import amused, diffusers, diffusers_vqmodel, onnx, taming
from vqtool.locks import claim, locked, unshared
from vqtool.outputs import FILES, explained, remove_stale
from vqtool.priors import load_prior
from vqtool.runtimes import missing_packages
from vqtool.tokenizers import load_tokenizer, tokenizer_of

CHECKPOINTS = (".ckpt", ".pt", ".pth", ".bin", ".yaml")  # suffixes that say that a name is that of a file, as FILES do
EXPORTS = {"prior": ("diffusers", "onnx"), "tokenizer": ("diffusers", "taming", "onnx")}  # kind of artifact -> formats


def export(
    path: str | Path, folder: str | Path, format: str, *, tokenizer: str | Path | None = None, force: bool = False
) -> list[str]:
    """Write an artifact as another project reads it.

    Args:
        path: of a prior or tokenizer.
        folder: made if it is not there; files of the same names are replaced.
        format: one of EXPORTS for this kind of artifact.
        tokenizer: of a prior, where it is not found by the prior's own account.
        force: write into a folder that is not empty.

    Returns:
        What the user should know.

    Raises:
        VqtoolError: the format cannot hold it, says why; the folder is not empty; or it is "builtin", which is two.
    """
    path, folder = Path(path), Path(folder)
    if str(path) == BUILTIN and not path.exists():
        files = " or ".join(str(builtin_path(kind)) for kind in EXPORTS)
        raise VqtoolError(f"{BUILTIN} names a prior and a tokenizer: name the file of one, {files}")
    kind = read_header(path).kind
    if format not in EXPORTS.get(kind, ()):
        known = ", ".join(f"{known} to {' or '.join(names)}" for known, names in EXPORTS.items())
        raise VqtoolError(f"{path}: a {kind} cannot be exported to {format!r}; what can be is {known}")
    if folder.suffix.lower() in (*FILES, *CHECKPOINTS) and not folder.is_dir():
        raise VqtoolError(f"{folder}: a folder of files would be written there; name it {folder.stem}/")
    if folder.parent.is_dir() and claim(folder):
        remove_stale(folder)
    if folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
        raise VqtoolError(f"{folder}: exists and is not an empty folder; `force` replaces files of the same names")
    if format == "onnx" and tokenizer is not None:
        raise VqtoolError(
            "`tokenizer` is for the folder of a pipeline; `format` onnx writes the networks of one artifact"
        )
    if format == "onnx" and (lacking := missing_packages()):
        raise VqtoolError(f"`format` onnx: {' and '.join(lacking)} not installed: {install_command('onnx')}")
    if kind != "prior" and tokenizer is not None:
        raise VqtoolError(f"`tokenizer` goes with a prior, but {path} is a tokenizer itself")
    with _staged(folder) as staged:
        if format == "onnx":
            if kind == "prior":
                return onnx.export_prior(load_prior(path), staged)
            return onnx.export_tokenizer(load_tokenizer(path), staged)
        if kind == "prior":
            prior = load_prior(path)
            write = amused.export if prior.denoiser_name == "amused" else diffusers.export
            return write(prior, tokenizer_of(prior.grid_spec, path, given=tokenizer), staged)
        module = {"diffusers": diffusers_vqmodel, "taming": taming}[format]
        module.export(load_tokenizer(path), staged)
        return []


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A temporary folder beside one, whose files go there when the block ends well: a new folder whole or not at all.

    A symbolic link is followed: the folder that it leads to is written.

    Raises:
        VqtoolError: it cannot be written, or another process has filled the folder meanwhile.
    """
    target = Path(os.path.realpath(folder))
    staged = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    was_filled = target.is_dir() and any(target.iterdir())
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder), unshared(staged), explained(folder):
        try:
            staged.mkdir()
            yield staged
            if not was_filled:
                staged.replace(target)
                return
            for file in sorted(path for path in staged.rglob("*") if path.is_file()):
                place = target / file.relative_to(staged)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
        except VqtoolError as error:
            if isinstance(error.__cause__, OSError):  # of a file in the temporary folder: name the folder
                raise error.__cause__ from None
            raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
