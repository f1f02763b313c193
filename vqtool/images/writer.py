"""Where pictures go: a folder of PNG files, a tar of them, or one PNG (of several a preview).

Names are made from ids and made safe, so that nothing in a file of grids can leave the output folder. Labels, captions
and ids that a name does not show go to `metadata.jsonl` beside the pictures, or into the tar: `find_images` reads them.
"""

import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqtool.captions import split_captions
from vqtool.distributed import is_main_process
from vqtool.errors import VqtoolError, count_text
from vqtool.grids.batch import clean_text
from vqtool.images.naming import UniqueNames
from vqtool.images.pixels import Own, check_images, fit_pixels, put_on_white
from vqtool.images.preview import png_bytes, preview_grid, save_image
from vqtool.images.sources.tables import ID_COLUMN
from vqtool.images.sources.tars import PAX_ID
from vqtool.locks import claim
from vqtool.outputs import (
    FILES,
    atomic_path,
    explained,
    is_stream,
    open_output,
    refuse_existing,
    refuse_terminal,
    remove_stale,
)
from vqtool.progress import Progress, silent

METADATA = "metadata.jsonl"
PREVIEW_IMAGES = 400  # most pictures on one preview
_PREVIEWED = 256  # pixels a side at most, of images of several sizes on one preview
_BATCH = 64  # images that `save_images` writes between two steps of its progress

Texts = Sequence[str]


class ImageWriter(AbstractContextManager["ImageWriter"], ABC):
    """Takes pictures as they come; what it leaves is whole when the block ends well."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.num_images = 0
        self._stack = ExitStack()
        self._ids: set[str] = set()

    def _hidden_id(self, id: str, name: str) -> str:
        """The id where a picture's name does not show it, "" where it does or another picture has the same id."""
        is_new = id not in self._ids
        self._ids.add(id)
        return id if is_new and id != name else ""

    @abstractmethod
    def write(self, images: Own, ids: Texts, labels: Texts | None = None, captions: Texts | None = None) -> None:
        """Add pictures.

        Args:
            images: (B, C, h, w): RGB, or of channels as `pixels.read_own_pixels` gives them.
            ids: one a picture; names are made from them.
            labels: one a picture, "" where unknown.
            captions: one a picture, "" where unknown; several of them as `captions.join_captions` joins them.
        """

    @abstractmethod
    def finish(self) -> None:
        """Write what comes last."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with explained(self.output):
            try:
                if kind is None:
                    self.finish()
            except BaseException as failure:
                self._stack.__exit__(type(failure), failure, failure.__traceback__)
                raise
            self._stack.__exit__(kind, error, traceback)


def _record(name: str, id: str, label: str, caption: str) -> dict[str, Any]:
    """What metadata.jsonl says of a picture."""
    known = {"text": _one_or_list(caption), "label": label, ID_COLUMN: id}
    return {"file_name": name, **{key: value for key, value in known.items() if value}}


def _one_or_list(caption: str) -> str | list[str]:
    captions = split_captions(caption)
    return list(captions) if len(captions) > 1 else caption


class FolderWriter(ImageWriter):
    """One PNG file a picture."""

    def __init__(self, folder: Path, *, force: bool = False) -> None:
        super().__init__(folder)
        if folder.exists() and not folder.is_dir():
            raise VqtoolError(f"{folder}: exists and is not a folder; use -o to write elsewhere")
        with explained(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        if claim(folder) and folder.is_dir():
            remove_stale(folder, inside=True)
        if folder.is_dir() and any(folder.iterdir()) and not force:
            raise VqtoolError(
                f"{folder}: exists and is not empty; use --force to write into it or -o to write elsewhere"
            )
        self._names = UniqueNames()
        self._records: list[dict[str, Any]] = []
        self._before = {entry.name for entry in folder.iterdir()} - {METADATA} if folder.is_dir() else set()

    @property
    def num_others(self) -> int:
        """How many files were in the folder before and have not been overwritten."""
        return len(self._before)

    def write(self, images: Own, ids: Texts, labels: Texts | None = None, captions: Texts | None = None) -> None:
        """Write each picture to its file."""
        names = self.pass_over(ids, labels, captions)
        self.output.mkdir(parents=True, exist_ok=True)
        for name, image in zip(names, images, strict=True):
            save_image(image, self.output / name, force=True)

    def pass_over(self, ids: Texts, labels: Texts | None = None, captions: Texts | None = None) -> list[str]:
        """Give pictures their names without writing them: another process does. The names stay apart all the same."""
        stems = [self._names(id) for id in ids]
        names, hidden = [f"{stem}.png" for stem in stems], map(self._hidden_id, ids, stems)
        texts = (column or [""] * len(names) for column in (labels, captions))
        self._records += [_record(*words) for words in zip(names, hidden, *texts, strict=True)]
        self.num_images += len(names)
        self._before.difference_update(names)
        return names

    def finish(self) -> None:
        """Write labels and captions, in place of those of pictures that were there before."""
        if not is_main_process():
            return
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / METADATA).unlink(missing_ok=True)
        if any(len(record) > 1 for record in self._records):  # then every picture has a row
            with atomic_path(self.output / METADATA) as path:
                lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in self._records)
                path.write_text("".join(lines), encoding="utf-8", errors="replace")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and self.num_images:
            self.finish()  # the pictures that arrived are kept, with what is known of them
        super().__exit__(kind, error, traceback)


class TarWriter(ImageWriter):
    """A tar of PNG files, to a file or as a stream; captions lie beside the pictures, webdataset style."""

    def __init__(self, output: Path, *, force: bool = False) -> None:
        super().__init__(output)
        refuse_terminal(output)
        self._file: BinaryIO
        if is_stream(output):
            self._file = self._stack.enter_context(open_output(output))
        else:
            path = self._stack.enter_context(atomic_path(output, force=force))
            self._file = self._stack.enter_context(path.open("wb"))
        self._names = UniqueNames()

    def _write(self, data: bytes) -> None:
        with explained(self.output):
            self._file.write(data)
            self._file.flush()

    def _add(self, name: str, data: bytes, id: str = "") -> None:
        """Write one member. `tarfile.open` would hold back bytes, and write them when they are not wanted any more."""
        entry = tarfile.TarInfo(name)
        if id:
            entry.pax_headers = {PAX_ID: clean_text(id)}
        entry.size = len(data)
        header = entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        self._write(header + data + bytes(-len(data) % tarfile.BLOCKSIZE))

    def write(self, images: Own, ids: Texts, labels: Texts | None = None, captions: Texts | None = None) -> None:
        """Add each picture, then its label and caption."""
        for i, image in enumerate(images):
            # webdataset takes all that follows the first dot for the extension
            name = self._names(ids[i].replace(".", "_"))
            self._add(f"{name}.png", png_bytes(image), self._hidden_id(ids[i], name))
            caption = captions[i] if captions else ""
            if len(split_captions(caption)) > 1 or len(caption.splitlines()) > 1:
                self._add(f"{name}.json", json.dumps({"caption": _one_or_list(caption)}, ensure_ascii=False).encode())
            elif caption:
                self._add(f"{name}.txt", caption.encode())
            if labels and labels[i]:
                self._add(f"{name}.cls", labels[i].encode())
        self.num_images += len(images)

    def finish(self) -> None:
        """Write the end marker: without it a stream that ended early does not look whole."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))


class PreviewWriter(ImageWriter):
    """All pictures on one PNG, captions (else labels, else ids) under them."""

    def __init__(self, output: Path, *, columns: int | None = None, force: bool = False) -> None:
        super().__init__(output)
        if is_stream(output):
            refuse_terminal(output)
        else:
            refuse_existing(output, force=force, kind="a PNG image")
        self.columns, self.force = columns, force
        self.num_dropped = 0  # pictures beyond `PREVIEW_IMAGES`
        self._images: list[Own] = []
        self._captions: list[str] = []

    def write(self, images: Own, ids: Texts, labels: Texts | None = None, captions: Texts | None = None) -> None:
        """Keep pictures until the preview is full."""
        room = PREVIEW_IMAGES - self.num_images
        self.num_dropped += max(0, len(images) - room)
        images = images[:room]
        self._images.extend(images)
        for i in range(len(images)):
            texts = (column[i] for column in (captions, labels, ids) if column)
            self._captions.append(split_captions(next((text for text in texts if text), ""))[0])
        self.num_images += len(images)

    def finish(self) -> None:
        """Draw the preview."""
        images = np.stack(_alike(self._images)) if self._images else np.empty((0, 3, 1, 1), np.uint8)
        self._save(preview_grid(images, self._captions, columns=self.columns))

    def _save(self, image: Own | Image.Image) -> None:
        if not is_stream(self.output):
            save_image(image, self.output, force=self.force)
            return
        with open_output(self.output) as file:
            file.write(png_bytes(image))
            file.flush()


def _alike(images: Sequence[Own]) -> Sequence[NDArray[np.uint8]]:
    """Images of one size, RGB: those of several are put whole on white squares."""
    on_white = [put_on_white(image) for image in images]
    if len({image.shape for image in on_white}) == 1:
        return on_white
    side = min(_PREVIEWED, max(max(image.shape) for image in on_white))
    return [fit_pixels(image.transpose(1, 2, 0), (side, side), "pad") for image in on_white]


class PngWriter(PreviewWriter):
    """What x.png asks for: one picture as it is, or a preview of several."""

    def finish(self) -> None:
        """Write the picture, or draw the preview."""
        if len(self._images) == 1:
            self._save(self._images[0])
        else:
            super().finish()


def writer_type(output: Path) -> type[FolderWriter] | type[TarWriter] | type[PngWriter]:
    """The writer that an output's name asks for: *.png a picture or a preview, *.tar or "-" a tar, else a folder.

    Raises:
        VqtoolError: the name is that of a file of another kind.
    """
    suffix = output.suffix.lower()
    if is_stream(output) or suffix == ".tar":
        return TarWriter
    if (
        suffix in FILES and suffix != ".png" and not output.exists()
    ):  # of one that is there the writer says what is wrong
        raise VqtoolError(f"{output}: pictures are written to a folder, to x.tar, or to x.png (several as one preview)")
    return PngWriter if suffix == ".png" else FolderWriter


def save_images(
    images: NDArray[np.uint8],
    output: str | Path,
    *,
    ids: Texts | None = None,
    labels: Texts | None = None,
    captions: Texts | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> None:
    """Write images as the commands do: to a folder of PNG files, a tar of them, or one preview.

    Args:
        images: (N, 3, height, width) uint8, an array or a tensor.
        output: a folder, x.tar, x.png (one image as it is, several as a preview), or "-" (a tar to standard output).
        ids: one an image, names are made from them; None: their numbers.
        labels: one an image, "" where unknown.
        captions: one an image, "" where unknown.
        force: overwrite what is there.
        progress: shows how far it is; see `vqtool.progress`.

    Raises:
        VqtoolError: images of another type or shape, texts of another number, an output that exists or cannot be
            written.
    """
    pixels, path = check_images(images), Path(output)
    width = len(str(max(len(pixels) - 1, 0)))
    ids = [f"{number:0{width}d}" for number in range(len(pixels))] if ids is None else ids
    for name, texts in (("ids", ids), ("labels", labels), ("captions", captions)):
        if texts is not None and (isinstance(texts, str) or len(texts) != len(pixels)):
            given = "one string" if isinstance(texts, str) else str(len(texts))
            raise VqtoolError(
                f"{name}: a list with one text an image is expected: {given} for {count_text(len(pixels), 'image')}"
            )
    with writer_type(path)(path, force=force) as writer, progress("write", len(pixels)) as advance:
        for start in range(0, len(pixels), _BATCH):
            part = slice(start, start + _BATCH)
            writer.write(pixels[part], ids[part], labels and labels[part], captions and captions[part])
            advance(len(pixels[part]))
