"""Saved statistics and features, .npz: what `vqtool eval stats` writes, and what `--ref` and `vqtool eval merge` read.

| array | shape | what |
|---|---|---|
| `mu`, `sigma` | (D,), (D, D) float64 | mean and covariance (divisor N - 1) of features, as pytorch-fid and ADM do |
| `mu_s`, `sigma_s` | (S,), (S, S) float64 | the same of spatial features, if the network has any: as ADM writes them |
| `features`, `spatial`, `probabilities` | (N, ...) float32 | with `keep_features`: every metric can be computed |
| `ids`, `labels` | (N,) text | of the pictures, with `keep_features` |
| `digests` | (N,) uint64 | of their pixels |
| `about` | JSON | network, weights, resize policy, N, size: what the card says; which part of a whole it is |

An .npz of another program with one array (N, D) of floats, whatever its name, is features, as an .npy is.

pytorch-fid and ADM read such files; files of theirs have the first two lines alone, so that what they are of is taken
on trust, and only Fréchet distances can be computed. ADM's reference batches hold the images too and count as images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.images.sources import holds_grids
from vqtool.images.sources.numpy_arrays import read_header, read_member
from vqtool.metrics.features import Features, concatenate
from vqtool.metrics.frechet import Statistics, merge_statistics
from vqtool.metrics.sides import NAMED, UNNAMED, About, FeatureSet, StatisticsSet
from vqtool.outputs import atomic_path
from vqtool.trust import check_file, parse_object, parse_record
from vqtool.version import __version__

_STATISTICS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
_ROWS = {"pooled": "features", "spatial": "spatial", "probabilities": "probabilities"}
_KNOWN = ("mu", "sigma", "mu_s", "sigma_s", *_ROWS.values(), "ids", "labels", "digests", "about")


def is_saved(path: str | Path) -> bool:
    """Whether an input is saved statistics or features; an ADM batch that has its images is pictures."""
    path = Path(path)
    if path.suffix.lower() not in (".npz", ".npy") or not path.is_file():
        return False
    try:
        if path.suffix.lower() == ".npy":
            return len(np.load(path, mmap_mode="r", allow_pickle=False).shape) < 3
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            headers = {name: read_header(archive, path, name) for name in archive.files}
    except Exception:  # NumPy raises nearly anything; reading it as images says what is wrong
        return False
    images = any(len(shape) == 4 for shape, _ in headers.values())
    return not images and bool({"mu", "features"} & headers.keys() or _tables(headers))


def _tables(headers: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> list[str]:
    """The arrays (N, D) of floats that have no name of ours: features of another program."""
    return [
        name for name, (shape, dtype) in headers.items() if len(shape) == 2 and dtype.kind == "f" and name not in _KNOWN
    ]


def kind_of(path: str | Path) -> str:
    """What an input holds: "grids", "images" or "saved" features."""
    if is_saved(path):
        return "saved"
    return "grids" if holds_grids(path) else "images"


def save(found: FeatureSet | StatisticsSet, path: str | Path, *, force: bool = False) -> None:
    """Write statistics, and features where they were kept.

    Args:
        found: what is written.
        path: the file, .npz.
        force: overwrite what is there.

    Raises:
        VqtoolError: the file exists and `force` is off, or it cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    if isinstance(found, FeatureSet):
        named = {name: getattr(found.features, name) for name in NAMED}
        arrays |= {_ROWS[kind]: rows for kind, rows in found.features.arrays().items()}
        texts = {"ids": found.ids, "labels": found.labels}
        arrays |= {name: np.array(its, dtype=np.str_) for name, its in texts.items() if its}
        statistics = found.statistics() if len(found) > 1 else None
    else:
        named, statistics = {name: getattr(found, name) for name in NAMED}, found
    for kind, its in {} if statistics is None else statistics.statistics.items():
        mean, covariance = _STATISTICS[kind]
        arrays |= {mean: its.mean, covariance: its.covariance}
    about = {"vqtool": __version__, "num": len(found), "features": named, **asdict(found.about)}
    arrays |= {"digests": found.digests, "about": np.array(json.dumps(about))}
    with atomic_path(path, force=force) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load(path: str | Path) -> FeatureSet | StatisticsSet:
    """Saved features, or else statistics, of vqtool, pytorch-fid or ADM; or an array of features (N, D), .npy or .npz.

    Raises:
        FormatError: the file is damaged, or holds neither.
    """
    path = Path(path)
    check_file(path)
    if path.suffix.lower() == ".npy":
        return FeatureSet(Features("", _load_rows(path)), About(), source=str(path))
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: read_member(archive, path, name) for name in _KNOWN if name in archive.files}
            if not {"mu", "features"} & arrays.keys():
                tables = _tables({name: read_header(archive, path, name) for name in archive.files})
                if len(tables) > 1:
                    raise FormatError(f"{path}: several arrays of numbers, {', '.join(tables)}: call one 'features'")
                if tables:
                    arrays["features"] = read_member(archive, path, tables[0])
    except VqtoolError:
        raise
    except Exception as error:  # NumPy raises nearly anything on damaged headers
        raise FormatError(f"{path}: not a whole file of statistics ({error})") from error
    named, num, about = _read_about(arrays, str(path))
    digests = arrays.get("digests", np.empty(0, np.uint64)).astype(np.uint64)
    if "features" in arrays:
        rows = {kind: _checked(arrays[name], 2, f"{path}: {name!r}") for kind, name in _ROWS.items() if name in arrays}
        ids, labels = (arrays.get(name, np.array([])).astype(str).tolist() for name in ("ids", "labels"))
        try:
            features = Features(**{**named, **rows})  # type: ignore[arg-type]
        except ValueError as error:
            raise FormatError(f"{path}: {error}") from error
        if any(len(each) not in (0, len(features)) for each in (ids, labels, digests)):
            raise FormatError(f"{path}: not as many ids, labels and digests as the {len(features)} pictures")
        return FeatureSet(features, about, digests, ids, labels, source=str(path))
    found = {kind: _statistics(arrays, pair, num, path) for kind, pair in _STATISTICS.items() if pair[0] in arrays}
    if "pooled" not in found:
        raise FormatError(f"{path}: neither features nor statistics (mu, sigma) are in it")
    return StatisticsSet(found, replace(about, held="statistics"), **named, digests=digests, source=str(path))


def _load_rows(path: Path) -> NDArray[Any]:
    """Features (N, D) from an .npy, such as `numpy.save` writes."""
    try:  # mapped first: what the header claims is compared with the file before memory is taken
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises nearly anything on damaged headers
        raise FormatError(f"{path}: not a .npy file of numbers: {error}") from error
    if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or rows.ndim != 2 or len(rows) < 2:
        raise FormatError(f"{path}: features (N, D) of at least 2 images were expected")
    return _checked(rows, 2, str(path))


def _read_about(arrays: dict[str, NDArray[Any]], where: str) -> tuple[dict[str, str], int, About]:
    """Of what features they are, of how many pictures (0: that is not known), and how these were read."""
    if "about" not in arrays:
        return {**UNNAMED, "name": ""}, 0, About()
    record = parse_object(str(arrays["about"]), f"{where}: about")
    record.pop("vqtool", None)
    named, num = record.pop("features", None), record.pop("num", None)
    named = {"precision": "fp32", **named} if isinstance(named, dict) else {}  # earlier versions knew no other
    known = all(isinstance(named.get(name), str) for name in NAMED)
    if not known or not isinstance(num, int) or num < 0:
        raise FormatError(f"{where}: about: does not say of which features and how many pictures they are")
    return {name: named[name] for name in NAMED}, num, parse_record(About, record, f"{where}: about")


def _statistics(arrays: dict[str, NDArray[Any]], pair: tuple[str, str], num: int, path: Path) -> Statistics:
    mean = _checked(arrays[pair[0]], 1, f"{path}: {pair[0]!r}").astype(np.float64)
    if pair[1] not in arrays:
        raise FormatError(f"{path}: {pair[1]!r} is missing beside {pair[0]!r}")
    covariance = _checked(arrays[pair[1]], 2, f"{path}: {pair[1]!r}").astype(np.float64)
    if covariance.shape != (len(mean), len(mean)):
        raise FormatError(f"{path}: {pair[1]!r} of shape {covariance.shape} beside a mean of {len(mean)} numbers")
    return Statistics(mean, covariance, num)


def _checked(array: NDArray[Any], axes: int, where: str) -> NDArray[Any]:
    if array.ndim != axes or array.dtype.kind != "f" or not array.size:
        raise FormatError(f"{where}: {array.dtype} of shape {array.shape}: numbers with {axes} axes are expected")
    if not np.isfinite(array).all():
        raise FormatError(f"{where}: holds nan or infinity")
    return array


def merge(parts: Sequence[FeatureSet | StatisticsSet], names: Sequence[str]) -> FeatureSet | StatisticsSet:
    """Several saved sets as one: of features where all have them, in order; else of statistics.

    Args:
        parts: at least one.
        names: what messages call them.

    Raises:
        MismatchError: they are of different features, or their pictures were read in different sizes.
        VqtoolError: a part does not say how many pictures it is of, or two are of the same pictures.
    """
    about = parts[0].about
    for part, name in zip(parts[1:], names[1:], strict=True):
        try:
            about = about.merged(part.about)
        except MismatchError as error:
            raise MismatchError(f"{names[0]} and {name}: {error}") from error
    digests = np.concatenate([part.digests for part in parts])
    if sum(map(len, parts)) != len(digests):
        digests = np.empty(0, np.uint64)
    sets = [part for part in parts if isinstance(part, FeatureSet)]
    if len(sets) == len(parts):
        features = concatenate([part.features for part in sets])
        _check_apart(parts, names)
        ids = _joined([part.ids for part in sets])
        return FeatureSet(features, about, digests, ids, _joined([part.labels for part in sets]))
    found = [part.statistics() if isinstance(part, FeatureSet) else part for part in parts]
    first = found[0]
    merged = first.statistics
    for part, name in zip(found, names, strict=True):
        if not len(part):
            raise VqtoolError(f"{name}: does not say how many pictures it is of, so that it cannot be merged")
        for what in NAMED:
            ours, theirs = getattr(first, what), getattr(part, what)
            if ours != theirs:
                raise MismatchError(f"{names[0]} and {name}: features of {what} {ours!r} and {theirs!r}")
    _check_apart(parts, names)
    for part in found[1:]:
        both = merged.keys() & part.statistics.keys()
        merged = {kind: merge_statistics([merged[kind], part.statistics[kind]]) for kind in both}
    return StatisticsSet(merged, replace(about, held="statistics"), **first.named, digests=digests)


def _check_apart(parts: Sequence[FeatureSet | StatisticsSet], names: Sequence[str]) -> None:
    """Raise VqtoolError if two sets are of the same pictures, as far as they say which."""
    contents = [np.sort(part.digests).tobytes() for part in parts]
    for i, content in enumerate(contents):
        if content and content in contents[:i]:
            other = names[contents.index(content)]
            raise VqtoolError(f"{other} and {names[i]} are of the same pictures, which would count twice")


def _joined(parts: Sequence[list[str]]) -> list[str]:
    """All texts, in order; none where a part has none."""
    return [text for part in parts for text in part] if all(parts) else []
