"""Files behind URLs, by fsspec: a copy on this machine that calls itself by its URL, and files that are sent.

Whatever reads a file reads the copy, so that nothing else has to know of URLs. It is fetched in the background, from
where it broke off if it does, and lies in a temporary folder (TMPDIR) as long as somebody holds it. Credentials are
found by the library of each scheme, as its own documents say.
"""

import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from posixpath import basename
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from vqtool.errors import VqtoolError
from vqtool.extras import install_command

T = TypeVar("T")

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a file that broke off is asked for again; then it is given up
BLOCK = 1 << 20  # bytes
KEPT = 4  # copies that are kept though nobody holds them: what is read, what is fetched meanwhile, and those before
_URL = re.compile(r"([a-z][a-z0-9+.-]+):(/{1,3})(?=[^/])")  # with one slash, as a Path has it
_NO_HOST = ("file", "local")  # schemes whose URLs begin with a path
_OF_EXTRA = ("http", "https", "s3", "s3a")
_MARKS = ("ETag", "etag", "Content-MD5", "Last-Modified", "LastModified", "last_modified", "mtime", "created", "size")
_TEMPORARY = (408, 425, 429)  # of the answers 400 to 499 of a server


def url_of(source: str | Path) -> str | None:
    """The URL that a source is; None for a path."""
    text = source.url if isinstance(source, Fetched) else str(source)
    match = _URL.match(text)
    if match is None:
        return None
    slashes = "///" if match[1] in _NO_HOST or len(match[2]) == 3 else "//"
    return f"{match[1]}:{slashes}{text[match.end() :]}"


class Fetched(type(Path())):  # type: ignore[misc]
    """The path of a copy of a file behind a URL. What opens it, waits for it; its text is the URL, for messages.

    Made by `fetched`. Opening it raises VqtoolError where the file cannot be had.
    """

    url: str
    _started: "threading.Lock"
    _copy: "Future[None] | None"

    def prefetch(self) -> None:
        """Begin to fetch it, if nobody has."""
        with self._started:
            if self._copy is None:
                self._copy = Future()
                threading.Thread(target=self._fetch, args=(self._copy,), daemon=True).start()

    def _fetch(self, copy: "Future[None]") -> None:
        try:
            _copy(self.url, Path(self.here))
            copy.set_result(None)
        except BaseException as error:
            copy.set_exception(error)

    @property
    def here(self) -> str:
        """Where the copy is, or will be."""
        return str(super().__str__())

    def __fspath__(self) -> str:
        if "url" not in self.__dict__:  # a path that was made of one that has been fetched
            return self.here
        self.prefetch()
        copy = self._copy
        try:
            if copy is not None:
                copy.result()
        except BaseException:
            self._copy = None  # whoever asks again may have more luck
            raise
        return self.here

    def __str__(self) -> str:
        return str(self.__dict__.get("url") or super().__str__())  # its parents are ordinary paths


@lru_cache(maxsize=KEPT)
def fetched(url: str) -> Fetched:
    """The file behind a URL; nothing is fetched before it is opened, nor again as long as a copy is kept."""
    folder = tempfile.mkdtemp(prefix="vqtool-")
    path = Fetched(folder, basename(urlsplit(url).path.rstrip("/")) or "file")
    path.url, path._started, path._copy = url, threading.Lock(), None
    weakref.finalize(path, shutil.rmtree, folder, ignore_errors=True)
    return path


def find_urls(pattern: str) -> list[str]:
    """The URLs that fit one with * in it; itself, if none does, or it has no *.

    Raises:
        VqtoolError: the server does not say, or its scheme is not known.
    """
    if "*" not in pattern:
        return [pattern]
    system, path = _open_system(pattern)
    found = sorted(_ask(pattern, lambda: system.glob(path)) or ())
    scheme = pattern.partition("://")[0]
    paths = (each.partition("://")[2] if "://" in each else each for each in found)  # HTTP's are URLs
    return [url_of(f"{scheme}://{each.lstrip('/')}") or pattern for each in paths] or [pattern]


def stamp(url: str) -> str | None:
    """What changes when the file behind a URL does, by what its server says; None where that says nothing."""
    system, path = _open_system(url)
    try:
        info: Mapping[str, Any] | None = _ask(url, lambda: system.info(path))
    except VqtoolError:  # fetching says why
        return None
    said = _marks(info or {})
    return ", ".join(said) if len(said) > 1 else None  # a size alone says too little


def exists(url: str) -> bool:
    """Whether there is a file behind a URL.

    Raises:
        VqtoolError: the server does not say, though it was asked again.
    """
    system, path = _open_system(url)
    return _ask(url, lambda: system.info(path)) is not None


def _ask(url: str, call: Callable[[], T]) -> T | None:
    """What a server answers to a question that it is asked again where it fails; None if there is no such file."""
    for pause in (*PAUSES, None):
        try:
            return call()
        except Exception as failure:
            error = _cause(failure)
            if isinstance(error, FileNotFoundError):
                return None
            if pause is None or _is_final(error):
                raise VqtoolError(f"{url}: cannot be read: {_describe(error)}") from error
            time.sleep(pause)
    return None


@contextmanager
def sent(url: str) -> Iterator[Path]:
    """A temporary path, whose file is sent to a URL when the block ends well.

    Raises:
        VqtoolError: it cannot be sent.
    """
    system, target = _open_system(url)
    with tempfile.TemporaryDirectory(prefix="vqtool-") as folder:
        path = Path(folder) / (basename(urlsplit(url).path) or "file")
        yield path
        for pause in (*PAUSES, None):
            try:
                system.put_file(str(path), target)
                fetched(url)._copy = None  # of what was there before
                return
            except Exception as error:
                if pause is None or _is_final(error):
                    raise VqtoolError(f"{url}: cannot be written: {_describe(error)}") from error
                time.sleep(pause)


def _open_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the file's path in it."""
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        help = install_command("url") if scheme in _OF_EXTRA else f"install what it asks for: {error}"
        raise VqtoolError(f"{url}: {scheme}:// needs more than is installed: {help}") from error
    except ValueError as error:
        raise VqtoolError(f"{url}: the scheme {scheme}:// is not known ({error})") from error
    except Exception as error:
        raise VqtoolError(f"{url}: cannot be opened: {_describe(error)}") from error
    return system, str(path)


def _copy(url: str, target: Path) -> None:
    """Fetch a file, and go on where it breaks off; begin anew if it is another one by then.

    Raises:
        VqtoolError: it is not there, may not be read, or breaks off again and again without a byte in between.
    """
    system, path = _open_system(url)
    pauses, mark = iter(PAUSES), None
    with target.open("wb") as file:
        while True:
            before = file.tell()
            try:
                with _opened(system, path, before) as (stream, size, now):
                    if mark not in (None, now):
                        mark, before = None, _restart(file)
                        raise EOFError("another file was put there meanwhile")
                    mark = now
                    _write_all(stream, file, url)
                if size is None or file.tell() == size:
                    return
                raise EOFError(f"{file.tell():,} of {size:,} bytes came")
            except VqtoolError:
                raise
            except Exception as failure:
                error = _cause(failure)
                if isinstance(error, FileNotFoundError):
                    http = " (404)" if url.startswith("http") else ""
                    raise VqtoolError(f"{url}: no such file there{http}") from error
                if file.tell() > before:
                    pauses = iter(PAUSES)
                pause = next(pauses, None)
                if pause is None or _is_final(error):
                    raise VqtoolError(f"{url}: cannot be read: {_describe(error)}") from error
                time.sleep(pause)


def _restart(file: IO[bytes]) -> int:
    file.seek(0)
    file.truncate()
    return 0


@contextmanager
def _opened(system: Any, path: str, start: int) -> Iterator[tuple[Any, int | None, str | None]]:
    """A stream of a file from a byte on, the length of the whole file, and what tells it from another."""
    if "http" in system.protocol:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with system.open(path, "rb", block_size=0, headers=headers) as stream:
            answer = stream.r.headers
            length = answer.get("Content-Length")
            size = None if length is None else int(length)
            if start and stream.r.status != 206:
                _skip(stream, start)
            elif start and size is not None:
                size += start
            yield stream, size, answer.get("ETag") or answer.get("Last-Modified")
        return
    info = system.info(path)
    with system.open(path, "rb") as stream:
        stream.seek(start)
        yield stream, info.get("size"), ", ".join(_marks(info))


def _marks(info: Mapping[str, Any]) -> list[str]:
    """All that tells a file from another, of what is said of it."""
    return [f"{name} {info[name]}" for name in _MARKS if info.get(name) is not None]


def _skip(stream: Any, num: int) -> None:
    """Read past bytes that are there already: the server gives the whole file or nothing."""
    while num:
        block = stream.read(min(num, BLOCK))
        if not block:
            raise EOFError("the file ends before the place where it broke off")
        num -= len(block)


def _write_all(stream: Any, file: IO[bytes], url: str) -> None:
    while block := stream.read(BLOCK):
        try:
            file.write(block)
        except OSError as error:
            raise VqtoolError(f"{url}: its copy cannot be written to {file.name}: {error.strerror}") from error


def _cause(error: Exception) -> Exception:
    """What happened: fsspec says of any answer but a file's, and of none, that there is no such file."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and getattr(cause, "status", 0) != 404:
        return _cause(cause)
    return error


def _is_final(error: Exception) -> bool:
    """Whether it is no use to ask again."""
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and (400 <= status < 500 or status == 501) and status not in _TEMPORARY
    missing = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotImplementedError)
    return refused or missing or "Credential" in type(error).__name__


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {text}' if text else ''}"
