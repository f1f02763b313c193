"""Where results go, and what messages call it: files, standard output, pipes and devices."""

import errno
import io
import os
import re
import secrets
import select
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vqtool import urls
from vqtool.errors import VqtoolError
from vqtool.locks import claim, locked
from vqtool.urls import url_of

SUFFIXES = (".h5", ".hdf5", ".index", ".safetensors")  # of ours, that the names of side files do without
KINDS = {  # of files that are written -> their suffixes
    "token grids": (".h5", ".hdf5"), "an index": (".index",), "an artifact": (".safetensors",), "JSON": (".json",),
    "a PNG image": (".png",),
    "a page": (".html", ".htm"), "saved statistics": (".npz",),
}  # fmt: skip
FILES = (  # suffixes that say what a file is: none of another kind goes there, and no folder
    *(suffix for own in KINDS.values() for suffix in own),
    *(".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pdf", ".mp4"),
    *(".txt", ".csv", ".tsv", ".md", ".log", ".xml", ".yaml", ".yml", ".py", ".onnx"),
    *(".tar", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".npy", ".npz", ".parquet"),
)
_NUMBER = re.compile(r"\{shard(?::(0?[1-9]?\d?)d?)?\}")  # {shard}, {shard:05d}
STANDARD_OUTPUT = ("-", "/dev/stdout")  # the second would otherwise be replaced by a file

_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})  # what only a write can meet
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})  # file systems without hard links


def is_stream(output: str | Path) -> bool:
    """Whether an output is standard output, a pipe or a device rather than a file on disk."""
    if str(output) in STANDARD_OUTPUT:
        return True
    path = Path(output)
    return path.exists() and not path.is_dir() and not path.is_file()


def is_there(output: str | Path) -> bool:
    """Whether there is something at an output, a path or a URL."""
    url = url_of(output)
    return os.path.exists(output) if url is None else urls.exists(url)


@contextmanager
def delivered(output: str | Path, *, force: bool) -> Iterator[Path]:
    """The path to write what goes to an output: itself, or, of a URL, one here, sent when the block ends well.

    Raises:
        VqtoolError: there is a file behind the URL and `force` is off, or it cannot be sent.
    """
    url = url_of(output)
    if url is None:
        yield Path(output)
        return
    if not force and urls.exists(url):
        raise VqtoolError(f"{url}: exists; use `force` to overwrite it or write elsewhere")
    with urls.sent(url) as path:
        yield path


def check_pattern(output: str | Path) -> None:
    """Refuse names that are not one for each shard.

    Raises:
        VqtoolError: there is no {shard} in them, or other braces are.
    """
    rest, num = _NUMBER.subn("", str(output))
    if not num or set("{}") & set(rest):
        raise VqtoolError(
            f"`output` {output}: one name for each shard is expected, with {{shard}} for its number, such as "
            "tok-{shard:05d}.h5"
        )


def is_pattern(output: str | Path) -> bool:
    """Whether an output names a file for each shard."""
    return "{" in str(output) and not os.path.exists(output)


def shard_path(output: str | Path, number: int) -> str:
    """The file of a shard, or its URL."""
    return _NUMBER.sub(lambda match: f"{number:{match[1] or ''}d}", url_of(output) or str(output))


def cache_folder(what: str) -> Path:
    """Where files are kept that can be made anew: ~/.cache/vqtool/WHAT, or below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqtool" / what


def output_name(output: str | Path) -> str:
    """What messages call an output."""
    return "standard output" if str(output) in STANDARD_OUTPUT else str(output)


@contextmanager
def explained(output: str | Path) -> Iterator[None]:
    """Say which output could not be written; a closed pipe is nobody's fault and passes.

    Raises:
        VqtoolError: in place of an OSError.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise VqtoolError(f"{output_name(output)}: cannot be written: {error.strerror or error}") from error


@contextmanager
def open_output(output: str | Path) -> Iterator[BinaryIO]:
    """Open standard output, a named pipe or a device for writing bytes.

    Raises:
        VqtoolError: it is a terminal.
    """
    refuse_terminal(output)
    if str(output) in STANDARD_OUTPUT:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    pipe = Path(output).open("wb")  # noqa: SIM115 (closed below: what it still holds may fail to go a second time)
    try:
        yield pipe
    except BaseException:
        with suppress(OSError):
            pipe.close()
        raise
    pipe.close()


def check_reader(output: str | Path) -> None:
    """Raise if nobody reads standard output any more: called while work is done, which would be for nothing.

    Raises:
        BrokenPipeError: it is a pipe whose reader has ended.
    """
    if str(output) not in STANDARD_OUTPUT:
        return
    poll = select.poll()
    with suppress(io.UnsupportedOperation):  # an object in memory stands in for standard output
        poll.register(sys.stdout.fileno(), 0)
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        raise BrokenPipeError(errno.EPIPE, "nobody reads standard output")


def refuse_terminal(output: str | Path) -> None:
    """Raise if bytes written to this output would end up on a terminal.

    Raises:
        VqtoolError: they would.
    """
    if str(output) in STANDARD_OUTPUT and sys.stdout.isatty():
        raise VqtoolError("binary data does not go to a terminal: name a file with -o, or pipe or redirect the output")


def refuse_existing(path: str | Path, *, force: bool, kind: str = "") -> None:
    """Raise unless a file may be written at `path`: called early, before any work is done.

    In a command it is locked from here on, and what killed runs have left of it is removed.

    Args:
        path: of the output.
        force: overwrite a file.
        kind: what is written, one of `KINDS`: the suffix may not say another one.

    Raises:
        VqtoolError: it is there and `force` is off, is no ordinary file, or its folder is not there; another process is
            writing it; or its name is that of a file of another kind.
    """
    if url := url_of(path):
        raise VqtoolError(f"{url}: this goes to a file on this machine; `encode` and shards of `sample` go to URLs")
    path = Path(path)
    if kind and path.suffix.lower() in FILES and path.suffix.lower() not in KINDS[kind]:
        raise VqtoolError(f"{path}: {kind} would be written there; name it {path.stem}{KINDS[kind][0]}")
    if str(path) == "-":
        raise VqtoolError("-: this does not go to standard output; name a file")
    if path.is_dir():
        raise VqtoolError(f"{path}: is a folder, but a file is to be written")
    if path.exists() and not path.is_file():
        raise VqtoolError(f"{path}: is a pipe or a device, but this goes to an ordinary file; name one")
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        folder = target.parent if path.is_symlink() else path.parent
        raise VqtoolError(f"{path}: the folder {folder} does not exist")
    if claim(path):
        remove_stale(path)
    if path.exists() and not force:
        raise VqtoolError(f"{path}: exists; use `force` to overwrite it or write elsewhere")


@contextmanager
def atomic_path(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`: renamed to it when the block ends well, removed when it fails.

    Nobody else can write `path` meanwhile, and a file that appears there all the same is not replaced. A symbolic link
    is followed: what it leads to is written.

    Raises:
        VqtoolError: `path` exists and `force` is off, is a folder, or its folder cannot be written.
    """
    path = Path(path)
    refuse_existing(path, force=force)
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    with locked(path):
        try:  # from before it is there: Ctrl-C may come at any time
            _create(temporary, path)
            yield temporary
            _publish(temporary, target, str(path), force=force)
        except OSError as error:
            if error.errno not in _WRITE_ERRORS:
                raise
            raise VqtoolError(f"{path}: cannot be written: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)


def _create(temporary: Path, path: Path) -> None:
    try:
        temporary.open("xb").close()
    except OSError as error:
        raise VqtoolError(f"{path}: cannot be written: {error.strerror}") from error


def _publish(temporary: Path, target: Path, name: str, *, force: bool) -> None:
    """Give a file its final name, in one step; one that is there is replaced only by force."""
    if not force:
        try:
            os.link(temporary, target)  # unlike a renaming it fails where there is a file
            return
        except FileExistsError as error:
            raise VqtoolError(
                f"{name}: appeared while it was being made, and is kept; use `force` to overwrite it or write elsewhere"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    temporary.replace(target)


def remove_stale(path: str | Path, *, inside: bool = False) -> None:
    """Remove the temporary files that killed runs have left of an output, which has to be locked.

    Args:
        path: of the output.
        inside: whether it is a folder whose files the runs were writing.
    """
    target = Path(os.path.realpath(path))
    pattern = re.compile(rf"\.{'.+' if inside else re.escape(target.name)}\.[0-9a-f]{{8}}\.tmp")
    for entry in os.scandir(target if inside else target.parent):
        if pattern.fullmatch(entry.name):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def side_file(output: str | Path, ending: str) -> Path:
    """The file of an output that stands beside it: x.partial.h5 of x.h5, x.log.jsonl of x.safetensors.

    The suffix is cut only if it is one of ours, so that lr0.01 and lr0.001 share nothing. Where there is a file of the
    name that earlier versions gave, which cut any suffix, that is it.

    Args:
        output: a file.
        ending: such as ".partial.h5".
    """
    output = Path(output)
    stem = output.stem if output.suffix.lower() in SUFFIXES else output.name
    path, old = output.with_name(stem + ending), output.with_name(output.stem + ending)
    return old if old.exists() and not path.exists() else path
