"""Break files in every way and give them to every command: each is refused in one line, or nothing changes.

    python scripts/fuzz.py --seconds 60               # the cases of seed 0, as many as the time allows
    python scripts/fuzz.py --case 1234 --keep         # one of them again, with its files

Case i depends on (seed, i) only: a target (a file and the commands that read it), a mutator and its random numbers. The
commands run in a forked process with limits on time and memory. What is wrong is told by its class:

    run         code of the file was run: a canary file appeared
    read        a file that was not named came out of a command
    hang        not done after --limit seconds of a processor, or ten times as long on a clock
    memory      more than --memory MB beyond what the program itself takes
    silent      exit 0, with another result than that of the whole file, though the format checks itself
    unforeseen  a traceback, a signal, or "this is unexpected"
    mute        an exit code other than 0 without one line that begins with "error:"

Exit code 1 if there was a finding; each is printed as the command that reproduces it.
"""

import argparse
import collections
import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import random
import resource
import shlex
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
GOLDEN = ROOT / "tests" / "golden"
OLD = GOLDEN / "v0.2"
SECRET = "only the owner of secret.txt knows this"

NUMBERS = (
    -1, 0, 1, 2, 7, 255, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"),
)  # fmt: skip
VALUES = (
    *NUMBERS, None, True, False, "", "x", "\0", "\x1b[31m", "é" * 1000, "../../secret.txt", "/etc/passwd", "none", [],
    [[]], {}, {"a": 1}, [1, 2, 3], ["a"], [None], [2**40] * 3, "9" * 400,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A file that is broken, those beside it, and the commands that read it."""

    name: str
    files: dict[str, Path]  # where it lies in the folder of a case -> where it comes from; the first one is broken
    commands: tuple[str, ...]
    checked: bool = False  # whether the format notices any change of a byte
    kind: str = "bytes"  # of the format: which mutators there are beside those of bytes


def targets(made: Path) -> list[Target]:
    """All targets; files that are not in the repository are made in a folder."""
    tokenizer, prior = OLD / "tokenizer.safetensors", OLD / "prior.safetensors"
    beside = {"tokenizer.safetensors": tokenizer}
    sample = "sample x -n 2 --steps 2 --seed 1 -o out.h5"
    encode = "encode {} --size 16x24 -t tokenizer.safetensors -o out.h5"
    pictures, gumbel = encode.format("imgs"), GOLDEN / "taming-vqgan"
    both = {"x": prior, **beside}
    grids, masked = {"x": OLD / "tok.h5", **beside}, {"x": OLD / "masked.h5", "p": prior, **beside}
    resumed = "--resume -o out.safetensors"
    train = f"train-prior x --size tiny --steps 3 -b 2 --preview-every 0 {resumed}"
    tune = f"train-tokenizer imgs --size 16 -K 16 -b 2 --steps 3 --preview-every 0 {resumed}"
    trials = "compare p --sampler fewer --sampler halton --steps 2,3 -n 2 --seeds 0 --resume -o out.json"
    journal = {"out.partial.h5": made / "sampled" / "out.partial.h5", "p": prior, **beside}
    same = {f"imgs/{path.name}": path for path in sorted((made / "imgs").iterdir())}
    encoded = {"out.partial.h5": made / "encoded" / "out.partial.h5", **same}
    words = {"x": made / "words.h5", **beside}
    asked = "sample x -n 2 --caption red --steps 2 --seed 1 -o out.h5"
    with_map = {"map.pt": made / "map.pt", "x.ckpt": gumbel / "last.ckpt", "x.yaml": gumbel / "config.yaml"}
    read = ("check x", "info x")
    found = [
        Target("tokenizer", {"x": tokenizer}, (*read, "encode imgs -t x --size 16x24 -o out.h5"), True, "safetensors"),
        Target("prior", both, (*read, sample), True, "safetensors"),
        Target(
            "grids", grids, (*read, "head x -n 2 -o out.h5", "decode x -t tokenizer.safetensors -o out"), True, "hdf5"
        ),
        Target("masked", masked, ("check x", "complete x -p p -o out.h5 --steps 2"), True, "hdf5"),
        Target(
            "index",
            {"x.index": made / "tok.index", "words.h5": made / "words.h5", "few.h5": made / "few.h5"},
            ("check x.index", "info x.index", "cat x.index -o out.h5", "codebook usage x.index"),
            True,
            "hdf5",
        ),
        Target("train", grids, ("train-prior x --size tiny --steps 1 -b 2 -o out.safetensors",), False, "hdf5"),
        Target("picture", {"imgs/0.png": made / "0.png"}, (pictures,)),
        Target("jpeg", {"imgs/0.jpg": made / "0.jpg"}, (pictures,)),
        Target("tar", {"x.tar": made / "x.tar"}, (encode.format("x.tar"),), False, "tar"),
        Target("zip", {"x.zip": made / "x.zip"}, (encode.format("x.zip"),), False, "zip"),
        Target("npy", {"x.npy": made / "x.npy"}, (encode.format("x.npy"),)),
        Target("metadata", {"imgs/metadata.jsonl": made / "metadata.jsonl"}, (pictures,), False, "json"),
        Target("code-map", with_map, ("import x.ckpt --code-map map.pt -o out.safetensors",), False, "zip"),
        *(
            Target(
                f"{name} {file}",
                {file: made / name / file, **_others(made / name, file), **files},
                commands,
                False,
                kind,
            )
            for name, files, line in (("trained", words, train), ("tuned", same, tune))
            for file, kind, commands in (
                (
                    "out.state.safetensors",
                    "safetensors",
                    (line, "check out.state.safetensors", "info out.state.safetensors"),
                ),
                ("out.log.jsonl", "json", (line,)),
            )
        ),
        Target(
            "comparison", {"out.json": made / "compared" / "out.json", "p": prior, **beside}, (trials,), False, "json"
        ),
        Target("journal of samples", journal, ("sample p -n 4 -b 2 --steps 2 --seed 1 --resume -o out.h5",), True),
        Target("journal of pictures", encoded, (f"{pictures} -b 2 --resume",), True),
        Target(
            "shard",
            {"out-0.h5": made / "shard" / "out-0.h5", "x.tar": made / "x.tar", **beside},
            (f"{encode.replace('out', 'out-{{shard}}').format('x.tar')} --resume",),
        ),
        Target(
            "shard of samples",
            {"out-0.h5": made / "shard" / "drawn-0.h5", "p": prior, **beside},
            ("sample p -n 4 --shards 2 --steps 2 --seed 1 --resume -o out-{shard}.h5",),
        ),
        Target(
            "stream",
            {"x": made / "stream", **beside},
            ("head - -n 2 -o out.h5 < x", "cat - -o out.h5 < x", "check - < x"),
            True,
        ),
        Target("tar stream", {"x.tar": made / "x.tar"}, (f"{encode.format('-')} < x.tar",), False, "tar"),
        Target("tar.gz", {"x.tar.gz": made / "x.tar.gz"}, (encode.format("x.tar.gz"),)),
        Target("npz", {"x.npz": made / "x.npz"}, (encode.format("x.npz"),), False, "zip"),
        Target(
            "statistics",
            {"x.npz": made / "statistics.npz", "y.npz": made / "other.npz"},
            ("eval merge x.npz y.npz -o out.npz", "eval x.npz --ref y.npz -o out.json"),
            False,
            "zip",
        ),
        Target("parquet", {"x.parquet": made / "x.parquet"}, (encode.format("x.parquet"),)),
        Target(
            "images of HDF5", {"x.h5": made / "x.h5"}, (encode.format("x.h5"), "show x.h5 -o out.png"), False, "hdf5"
        ),
        Target(
            "mask",
            {"m.png": made / "mask.png", "x": OLD / "tok.h5", "p": prior, **beside},
            ("inpaint x -p p --mask m.png --steps 2 -o out.h5",),
        ),
        *(
            Target(
                f"words in {name}",
                {name: made / "words" / Path(name).name},
                (f"{pictures} {flags}".strip(),),
                False,
                kind,
            )
            for name, flags, kind in (
                ("imgs/0.txt", "", "text"),
                ("imgs/0.json", "", "json"),
                ("imgs/0.cls", "", "text"),
                ("imgs/metadata.csv", "", "text"),
                ("rows.tsv", "--captions rows.tsv", "text"),
                ("coco.json", "--captions coco.json", "json"),
                ("rows.parquet", "--captions rows.parquet", "bytes"),
                ("flickr.txt", "--captions flickr.txt --labels none", "text"),
            )
        ),
        Target(
            "words of grids",
            words,
            (
                "train-prior x --condition caption --size tiny --steps 1 -b 2 -o out.safetensors",
                "show x -t tokenizer.safetensors -o out.png",
            ),
            False,
            "hdf5",
        ),
        Target("bpe prior", {"x": made / "bpe.safetensors", **beside}, (*read, asked), True, "safetensors"),
        Target(
            "sentencepiece prior",
            {"x": made / "sentencepiece.safetensors", **beside},
            (*read, asked),
            True,
            "safetensors",
        ),
        Target(
            "text prior",
            {"x": made / "text.safetensors", "encoder.safetensors": made / "encoder.safetensors"},
            (*read, asked),
            True,
            "safetensors",
        ),
        Target(
            "map",
            {"x": made / "pruned.map.safetensors", "few.h5": made / "few.h5"},
            ("codebook apply-map few.h5 --map x -o out.h5",),
            True,
            "safetensors",
        ),
        Target(
            "grids elsewhere",
            grids,
            ("cat x x -o out.h5", "show x -o out.png", "eval x -o out.json", "codebook usage x"),
            False,
            "hdf5",
        ),
        Target("older pickle", {"x.th": made / "older.th"}, ("import x.th --heads 2 -o out.safetensors",)),
    ]
    for folder, file, flags in (
        ("ut-absorbing", "*.th", "--heads 2"), ("ut-vqgan", "*.th", ""), ("taming-vqgan", "*.ckpt", ""),
        ("taming-gumbel", "*.ckpt", ""), ("vqddm-unet", "*.ckpt", ""), ("llamagen-vq", "*.pt", ""),
        ("ms-prior-class", "*.pth", ""), ("ms-prior-text", "*.pth", ""), ("om-maskgit-vqgan", "*.bin", ""),
    ):  # fmt: skip
        paths = sorted((GOLDEN / folder).glob(file))
        settings = {f"x{path.suffix}": path for path in sorted((GOLDEN / folder).glob("*.y*ml"))[:1]}
        if paths:
            name = f"x{paths[0].suffix}"
            commands = (f"import {name} {flags} -o out.safetensors".replace("  ", " "),)
            found.append(Target(folder, {name: paths[0], **settings}, commands, True, "zip"))
            for setting, path in settings.items():
                found.append(Target(f"{folder} settings", {setting: path, name: paths[0]}, commands, False, "text"))
    for pipeline in ("df-pipeline", "df-vqmodel"):
        paths = [path for path in sorted((GOLDEN / pipeline).rglob("*")) if path.is_file() and path.stem != "io"]
        for path in paths:
            if path.suffix in (".json", ".safetensors", ".txt"):
                own = path.relative_to(GOLDEN / pipeline).as_posix()
                files = {f"x/{own}": path}
                files |= {f"x/{other.relative_to(GOLDEN / pipeline).as_posix()}": other for other in paths}
                kind = {".json": "json", ".safetensors": "safetensors"}.get(path.suffix, "text")
                folder = "x" if pipeline == "df-pipeline" else "x/vqvae"
                command = f"import {folder} -o out.safetensors"
                found.append(Target(f"{pipeline} {own}", files, (command,), False, kind))
    return [target for target in found if all(path.exists() for path in target.files.values())]


def _others(folder: Path, file: str) -> dict[str, Path]:
    """What lies beside a file of an interrupted run."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.name != file} if folder.is_dir() else {}


def prepare(folder: Path) -> None:
    """Pictures, archives, pickles and what vqtool makes that are not in the repository."""
    import h5py
    import numpy as np
    import torch
    from PIL import Image

    from vqtool.metrics.features import Features
    from vqtool.metrics.saved import save
    from vqtool.metrics.sides import About, FeatureSet

    numbers = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), dtype=np.uint8)
    for suffix in ("png", "jpg"):
        Image.fromarray(numbers[0]).save(folder / f"0.{suffix}")
    half = np.zeros((16, 24), np.uint8)
    half[:, :12] = 255
    Image.fromarray(half).save(folder / "mask.png")
    with tarfile.open(folder / "x.tar", "w") as tar, zipfile.ZipFile(folder / "x.zip", "w") as archive:
        for number, pixels in enumerate(numbers):
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "PNG")
            entry = tarfile.TarInfo(f"{number}.png")
            entry.size = len(data.getvalue())
            tar.addfile(entry, io.BytesIO(data.getvalue()))
            archive.writestr(f"{number}.png", data.getvalue(), zipfile.ZIP_DEFLATED)
    np.save(folder / "x.npy", numbers)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a red cat", "label": "cat"}\n')
    torch.save(torch.arange(64) % 60, folder / "map.pt")
    state = torch.load(next((GOLDEN / "ut-absorbing").glob("*.th")), map_location="cpu", weights_only=True)
    torch.save(state, folder / "older.th", _use_new_zipfile_serialization=False)
    with tarfile.open(folder / "x.tar.gz", "w:gz") as tar:
        tar.add(folder / "0.png", "0.png")
    np.savez(folder / "x.npz", images=numbers, labels=np.array(["cat", "dog", "cat", "dog"]))
    features = Features("F", np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), "d", "clean")
    for name, start in (("statistics", 0), ("other", 9)):  # the same pictures are not merged
        save(
            FeatureSet(features, About(size=(8, 8)), np.arange(start, start + 9, dtype=np.uint64)),
            folder / f"{name}.npz",
        )
    with h5py.File(folder / "x.h5", "w") as file:
        file.attrs["made_by"] = "fuzz.py"
        file.create_dataset("images", data=numbers, chunks=(2, *numbers.shape[1:]), compression="gzip")
        file["caption"] = ["a red cat", "a dog", "a cat", "two dogs"]
    prepare_words(folder / "words")
    prepare_made(folder)


def prepare_words(folder: Path) -> None:
    """Files of captions and labels."""
    folder.mkdir()
    coco = {
        "images": [{"id": 7, "file_name": "0.png"}],
        "annotations": [{"image_id": 7, "id": 1, "caption": "a red cat"}, {"image_id": 7, "id": 2, "caption": "a cat"}],
    }
    for name, text in {
        "0.txt": "a red cat", "0.json": '{"caption": "a red cat", "label": "cat"}', "0.cls": "cat",
        "metadata.csv": 'file_name,text,label\n0.png,"a red, red cat",cat\n',
        "rows.tsv": "file_name\tcaption\n0.png\ta red cat\n",
        "coco.json": json.dumps(coco), "flickr.txt": "image,caption\n0.png,a red cat\n0.png,a cat\n",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    with contextlib.suppress(ImportError):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"file_name": ["0.png"], "text": ["a red cat"]}), folder / "rows.parquet")
        picture = {"bytes": (folder.parent / "0.png").read_bytes(), "path": "0.png"}
        pq.write_table(pa.table({"image": [picture, picture], "text": ["a", "b"]}), folder.parent / "x.parquet")


def prepare_made(folder: Path) -> None:
    """Grids, priors, and what runs leave that are interrupted."""
    sys.path.append(str(ROOT / "tests"))
    from support.text_priors import text_prior

    from vqtool.conditions.text_encoders import load_text_encoder, save_text_encoder

    here = Path.cwd()
    os.chdir(folder)
    try:
        prior = text_prior()
        save_text_encoder("encoder.safetensors", prior.text_encoder)
        replace(prior, text_encoder=load_text_encoder("encoder.safetensors")).save("text.safetensors")
        Path("imgs").mkdir()
        rows = []
        for number in range(4):
            shutil.copyfile("0.png", f"imgs/{number}.png")
            rows.append({"file_name": f"{number}.png", "text": f"a red cat {number}", "label": "cat"})
        Path("imgs/metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        for name in ("tokenizer", "prior"):
            shutil.copyfile(OLD / f"{name}.safetensors", f"{name}.safetensors")
        encode = "encode {} --size 16x24 -t tokenizer.safetensors"
        call(f"{encode.format('imgs')} -o words.h5")
        call("sample prior.safetensors -n 2 --steps 2 --seed 1 -o few.h5")
        call("cat --index words.h5 few.h5 -o tok.index")
        call("codebook prune few.h5 --min-uses 3 -t tokenizer.safetensors -o pruned.safetensors")
        call(f"cat {OLD / 'tok.h5'} -o -", stdout="stream")
        train = "train-prior words.h5 --size tiny -b 2 --preview-every 0 --steps"
        for vocabulary in ("bpe", "sentencepiece"):
            call(f"{train} 1 --condition caption --vocabulary {vocabulary} -o {vocabulary}.safetensors")
        for name, line in {
            "trained": f"{train} 3", "tuned": "train-tokenizer imgs --size 16 -K 16 -b 2 --steps 3 --preview-every 0",
            "sampled": "sample prior.safetensors -n 4 -b 2 --steps 2 --seed 1",
            "encoded": f"{encode.format('imgs')} -b 2",
        }.items():  # fmt: skip
            Path(name).mkdir()
            call(f"{line} -o {name}/out.{'safetensors' if line.startswith('train') else 'h5'}", stop=True)
        Path("shard").mkdir()
        call(f"{encode.format('x.tar')} -o shard/out-{{shard}}.h5")
        call("sample prior.safetensors -n 4 --shards 2 --steps 2 --seed 1 -o shard/drawn-{shard}.h5")
        Path("compared").mkdir()
        call(
            "compare prior.safetensors --sampler fewer --sampler halton --steps 2,3 -n 2 --seeds 0 -o compared/out.json"
        )
    finally:
        os.chdir(here)


def call(line: str, *, stop: bool = False, stdout: str = os.devnull) -> None:
    """Run a command in this process, to its end or to its first step."""
    from vqtool.cli.main import main

    @contextlib.contextmanager
    def stopping(description: str, *_: object, **__: object) -> Iterator[Callable[..., None]]:
        done = 0

        def advance(n: int, *, total: int | None = None) -> None:
            nonlocal done
            if description != "read" and not done and n:
                signal.raise_signal(signal.SIGINT)
            done += n

        yield advance

    if stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
    error = io.StringIO()
    with (
        contextlib.redirect_stderr(error), open(stdout, "w", encoding="utf-8") as out, contextlib.redirect_stdout(out),
        mock.patch("sys.argv", ["vqtool", *line.split()]),
        mock.patch("vqtool.cli.console._lines", stopping) if stop else contextlib.nullcontext(),
    ):  # fmt: skip
        try:
            main()
        except SystemExit as end:
            if end.code != (130 if stop else 0):
                raise ValueError(f"{line}: exit code {end.code}: {error.getvalue()}") from end


Mutator = Callable[[bytes, random.Random], bytes]


def break_bytes(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, insert, repeat or clear some bytes."""
    broken = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        if not broken:
            break
        at = draw.randrange(len(broken)) if draw.random() < 0.5 else draw.randrange(min(len(broken), 600))
        length = draw.choice((1, 2, 4, 8, 64, 1024))
        match draw.randrange(7):
            case 0:
                broken[at] ^= 1 << draw.randrange(8)
            case 1:
                del broken[at:]
            case 2:
                del broken[at : at + length]
            case 3:
                broken[at:at] = draw.randbytes(length)
            case 4:
                broken[at:at] = broken[at : at + length]
            case 5:
                broken[at : at + length] = bytes(min(length, len(broken) - at))
            case _:
                broken[at : at + 8] = draw.choice((2**63 - 1, 2**31, 2**64 - 1, 10**7)).to_bytes(8, "little")
    return bytes(broken)


def break_text(data: bytes, draw: random.Random) -> bytes:
    """Replace a word of a text by something that no setting is."""
    words = data.decode("utf-8", "replace").split(" ")
    for _ in range(draw.choice((1, 1, 3))):
        at = draw.randrange(len(words))
        nested = "[" * 5000 if draw.random() < 0.2 else "&a [*a, *a]" if draw.random() < 0.2 else ""
        words[at] = nested or str(draw.choice(VALUES)) + draw.choice(("", "\n", ":", "\n  - "))
    return " ".join(words).encode()


def forge(value: object, draw: random.Random, depth: int = 0) -> object:
    """JSON with one value replaced, dropped or added, somewhere."""
    if isinstance(value, dict) and value and draw.random() < (0.9 if depth < 6 else 0.3):
        changed = dict(value)
        name = draw.choice(list(changed))
        match draw.randrange(8):
            case 0:
                del changed[name]
            case 1:
                changed[draw.choice(("x", "", "__proto__", name + "2"))] = draw.choice(VALUES)
            case _:
                changed[name] = forge(changed[name], draw, depth + 1)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.6:
        changed = list(value)
        at = draw.randrange(len(changed))
        changed[at : at + 1] = draw.choice(([], [forge(changed[at], draw, depth + 1)], [changed[at]] * 3))
        return changed
    if isinstance(value, int) and not isinstance(value, bool) and draw.random() < 0.5:
        return draw.choice((value + 1, value - 1, -value, value * 2, value << 20, value / 2))
    if draw.random() < 0.05:
        deep: object = 0
        for _ in range(draw.choice((70, 900))):
            deep = [deep]
        return deep
    return draw.choice(VALUES)


def break_json(data: bytes, draw: random.Random) -> bytes:
    """Forge a value of a JSON file."""
    if draw.random() < 0.1:
        return b"[" * 100_000
    try:
        return json.dumps(forge(json.loads(data), draw)).encode()
    except json.JSONDecodeError:  # one of several lines
        lines = data.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = json.dumps(forge(json.loads(lines[at]), draw)).encode()
        return b"".join(line + b"\n" for line in lines)


def break_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Forge the header; that of vqtool gets the fingerprint that goes with it."""
    from safetensors import SafetensorError, deserialize

    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    about = json.loads(header.get("__metadata__", {}).get("vqtool", "null"))
    if about is not None and draw.random() < 0.7:
        about = forge(about, draw) if draw.random() < 0.3 else {**about, "config": forge(about["config"], draw)}
    elif draw.random() < 0.5:
        header = forge(header, draw)
    elif body:  # numbers of a tensor
        at = draw.randrange(len(body))
        body[at : at + 4] = draw.choice((b"\0\0\xc0\x7f", b"\xff\xff\xff\xff", b"\0\0\x80\x7f", b"x" * 4))

    def whole(metadata: object) -> bytes:
        shown = {**header, "__metadata__": {"vqtool": json.dumps(metadata)}} if metadata else header
        raw = json.dumps(shown).encode()
        return len(raw).to_bytes(8, "little") + raw + bytes(body)

    if isinstance(about, dict) and isinstance(header, dict) and isinstance(about.get("config"), dict):
        from vqtool.artifacts import fingerprint

        # What cannot be read any more keeps its old fingerprint.
        with contextlib.suppress(SafetensorError, ValueError, TypeError, RecursionError):
            tensors = deserialize(whole(about))
            about["fingerprint"] = fingerprint(str(about.get("kind")), about["config"], tensors)
    return whole(about)


def break_zip(data: bytes, draw: random.Random) -> bytes:
    """Change, drop, repeat or pack a record; the CRC is that of the new content."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(result, "w") as target:
        infos = source.infolist()
        chosen = (
            draw.choice(infos) if draw.random() < 0.5 else min(infos, key=lambda info: "data.pkl" not in info.filename)
        )
        how = draw.randrange(8)
        for info in infos:
            content, name, method = source.read(info), info.filename, info.compress_type
            if info is chosen:
                match how:
                    case 0:
                        continue
                    case 1:
                        name = draw.choice(
                            ("../secret.txt", "/etc/x", "x/constants.pkl", "x/code/a.py", "\x1b[31m", name + "x")
                        )
                    case 2:
                        content, method = bytes(1 << 28), zipfile.ZIP_DEFLATED
                    case 3:
                        target.writestr(name, b"twice")
                    case 4:
                        content = break_pickle(content, draw)
                    case 5:
                        method = zipfile.ZIP_DEFLATED
                    case _:
                        content = break_bytes(content, draw)
            target.writestr(name, content, method)
    return result.getvalue()


class _Canary:
    """Would write a file if it were unpickled by pickle itself."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch CANARY",)


def break_pickle(data: bytes, draw: random.Random) -> bytes:
    """A pickle that calls, nests or numbers what none of a checkpoint does, or one of changed bytes."""
    match draw.randrange(6):
        case 0:
            return pickle.dumps({"state_dict": _Canary()})
        case 1:
            return b"\x80\x02" + b")" + b"\x85" * 200_000 + b"."
        case 2:
            return b"\x80\x02}r\xff\xff\xff\x0f."
        case 3:
            return b"\x80\x02]q\x00" + b"(h\x00h\x00l0" * 50 + b"."
        case 4:
            return b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"."
        case _:
            return break_bytes(data, draw)


def break_tar(data: bytes, draw: random.Random) -> bytes:
    """Members that are links, devices or of other names and sizes."""
    result = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as source, tarfile.open(fileobj=result, mode="w") as target:
        for entry in source.getmembers():
            content = source.extractfile(entry).read()  # type: ignore[union-attr]
            if draw.random() < 0.4:
                entry.name = draw.choice(
                    ("../x.png", "/etc/passwd", "a/b.png", "\x1b[31m.png", "é.png", "x" * 300 + ".png")
                )
            if draw.random() < 0.3:
                entry.type, entry.linkname = draw.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), "../secret.txt"
                content, entry.size = b"", 0
            target.addfile(entry, io.BytesIO(content))
    return result.getvalue()


def break_hdf5(data: bytes, draw: random.Random) -> bytes:
    """Forge an attribute or a dataset of a file of token grids."""
    import h5py
    import numpy as np

    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        names = list(file)
        match draw.randrange(5):
            case 0 | 1:
                name = draw.choice(list(file.attrs))
                value = draw.choice((*NUMBERS[:14], "x", "[]", "[" * 200, "{}", np.zeros(0), np.arange(5), "\x1b[31m"))
                file.attrs[name] = value
            case 2:
                del file[draw.choice(names)]
            case 3:
                name = draw.choice(names)
                shape, dtype = file[name].shape, file[name].dtype
                del file[name]
                wide = draw.choice(((10**7, *shape[1:]), (0, *shape[1:]), shape[:1], (*shape, 2)))
                file.create_dataset(
                    name, wide, dtype=draw.choice((dtype, "f4", "i8", "S300")), chunks=True, compression="gzip"
                )
            case _:
                name = draw.choice(names)
                del file[name]
                file[name] = draw.choice(
                    (h5py.ExternalLink("secret.txt", "/a"), h5py.SoftLink("/b"), h5py.SoftLink(f"/{name}"))
                )
    return buffer.getvalue()


MUTATORS: dict[str, Mutator] = {
    "text": break_text, "json": break_json, "safetensors": break_safetensors, "zip": break_zip, "tar": break_tar,
    "hdf5": break_hdf5,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int  # -9 and the like for signals; 1000 for a process that was stopped
    error: str
    megabytes: int
    seconds: float
    digest: str  # of what it wrote


def run(arguments: list[str], folder: Path, limit: float) -> Outcome:
    """A command of vqtool in a forked process, in a folder; "< x" behind it gives it a file as standard input."""
    begun = time.monotonic()
    child = os.fork()
    if not child:
        _be_command(arguments, folder, limit)
    stopped = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - begun > 10 * limit:
            os.kill(child, signal.SIGKILL)
            stopped = True
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status)
    code = 1000 if stopped or code == -signal.SIGXCPU else code
    error = (folder / "err").read_text("utf-8", "replace")
    seconds = time.monotonic() - begun
    return Outcome(code, error, usage.ru_maxrss >> 10, seconds, _digest(folder))


def _be_command(arguments: list[str], folder: Path, limit: float) -> None:
    """What the forked process does; never returns."""
    code: object = 70
    try:
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        for descriptor, name in ((1, "out.txt"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        source = arguments[-1] if "<" in arguments else os.devnull
        os.dup2(os.open(source, os.O_RDONLY), 0)
        arguments = arguments[: arguments.index("<")] if "<" in arguments else arguments
        sys.argv = ["vqtool", *arguments]
        from vqtool.cli.main import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)


def _digest(folder: Path) -> str:
    """Of the outputs in a folder; of grids and artifacts what they hold, since their histories differ by the time."""
    from vqtool.artifacts import read_header
    from vqtool.errors import VqtoolError

    digest = hashlib.sha256()
    for path in sorted(folder.rglob("out*")):
        if path.name == "out.state.safetensors":
            continue  # says how long the run took
        if path.is_file() and path.suffix == ".safetensors":
            try:
                digest.update(read_header(path).fingerprint.encode())
            except VqtoolError:
                digest.update(b"none")
        elif path.is_file() and path.suffix == ".h5":
            digest.update(_tokens(path))
        elif path.is_file() and path.name not in ("out.txt", "out.log.jsonl"):
            digest.update(path.read_bytes())
    for path in sorted((folder / "out").rglob("*.png")) if (folder / "out").is_dir() else []:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _tokens(path: Path) -> bytes:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return b"".join(bytes(file[name][()].tobytes()) for name in ("tokens", "label", "caption") if name in file)
    except (OSError, KeyError):
        return b"none"


@dataclass
class Fuzzer:
    """Cases of one seed."""

    seed: int
    limit: float
    memory: int
    made: Path

    def __post_init__(self) -> None:
        self.targets = targets(self.made)
        self.whole: dict[tuple[str, str], Outcome] = {}  # of files that are not broken
        self.base = 0  # MB that a command takes by itself

    def lay_out(self, target: Target, folder: Path) -> Path:
        """Put the files of a target into a folder, with pictures and a tokenizer beside; the path of the first."""
        (folder / "imgs").mkdir(parents=True)
        (folder / "secret.txt").write_text(SECRET)
        for name, path in {
            "imgs/0.png": self.made / "0.png", "tokenizer.safetensors": OLD / "tokenizer.safetensors", **target.files,
        }.items():  # fmt: skip
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        return folder / next(iter(target.files))

    def measure_whole(self, target: Target, command: str) -> Outcome:
        """What a command does with the whole file."""
        if (target.name, command) not in self.whole:
            with tempfile.TemporaryDirectory() as name:
                self.lay_out(target, Path(name) / "work")
                found = run(shlex.split(command), Path(name) / "work", 10 * self.limit)
            if found.code:
                raise SystemExit(f"{target.name}: {command}: the whole file is refused: {found.error}")
            self.whole[target.name, command] = found
        return self.whole[target.name, command]

    def case(self, number: int, folder: Path) -> list[tuple[str, str]]:
        """The findings of one case: class and line."""
        draw = random.Random(f"{self.seed} {number}")
        target = self.targets[draw.randrange(len(self.targets))]
        broken = self.lay_out(target, folder)
        data = broken.read_bytes()
        by_bytes = target.kind == "bytes" or draw.random() < 0.35
        try:
            changed = (break_bytes if by_bytes else MUTATORS[target.kind])(data, draw)
        except (OSError, LookupError, ValueError, TypeError, RuntimeError):  # a structure that cannot be written
            changed = break_bytes(data, draw)
        broken.write_bytes(changed)
        command = draw.choice(target.commands)
        whole = self.measure_whole(target, command)
        found = run(shlex.split(command), folder, self.limit)
        self.last = f"{target.name}: vqtool {command}: exit {found.code}, {found.megabytes} MB, {found.seconds:.1f} s"
        text = (folder / "out.txt").read_text("utf-8", "replace")
        lines = [line for line in (text + found.error).splitlines() if line.strip()]
        last = lines[-1][:200] if lines else ""
        problems = []
        if (folder / "CANARY").exists():
            problems.append("run")
        if SECRET in found.error or SECRET in text:
            problems.append("read")
        if found.code == 1000:
            problems.append("hang")
        elif found.code < 0 or found.code == 70 or "Traceback" in found.error or "this is unexpected" in found.error:
            problems.append("unforeseen")
        elif found.code and not any(line.startswith(("error:", "bad ", "Usage:")) for line in lines):
            problems.append("mute")
        if found.megabytes > whole.megabytes + self.memory:
            problems.append("memory")
        silent = target.checked and by_bytes and changed != data and not command.startswith("info")
        if silent and not found.code and found.digest != whole.digest:
            problems.append("silent")
        return [(problem, f"{self.last}: {last}") for problem in problems]


def main() -> int:
    """Run cases until the time is over."""
    parser = argparse.ArgumentParser(description="Break files in every way and give them to every command.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--limit", type=float, default=20, help="seconds of a processor that a command may take")
    parser.add_argument(
        "--memory", type=int, default=400, help="MB that a command may take beyond those of the whole file"
    )
    parser.add_argument("--keep", action="store_true", help="leave the files of --case where they are, and say where")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of zipfile, about names that a mutator repeats
    os.environ |= {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    _import_all()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        made = Path(name) / "made"
        made.mkdir()
        child = os.fork()
        if not child:  # torch must not have run anything in a process that forks
            code = 1
            try:
                prepare(made)
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1]:
            raise SystemExit("the files to break could not be made")
        fuzzer = Fuzzer(options.seed, options.limit, options.memory, made)
        begun, number = time.monotonic(), options.start if options.case is None else options.case
        while time.monotonic() - begun < options.seconds:
            folder = Path(tempfile.mkdtemp(dir=None if options.keep else name))
            for problem, line in fuzzer.case(number, folder / "case"):
                counts[problem] += 1
                print(f"{problem}: python scripts/fuzz.py --seed {options.seed} --case {number}   # {line}", flush=True)
            counts["cases"] += 1
            if options.keep:
                print(f"{folder / 'case'}: {fuzzer.last}")
            else:
                shutil.rmtree(folder)
            number += 1
            if options.case is not None:
                break
    cases = counts.pop("cases")
    print(f"{cases} cases of seed {options.seed}: {dict(counts) or 'nothing found'}")
    return int(bool(counts))


def _import_all() -> None:
    """Import what commands use, so that forked processes need not."""
    import importlib

    from vqtool.cli.main import COMMANDS

    for command in COMMANDS:
        module = command.replace("-", "_").replace(" ", "_")
        importlib.import_module(f"vqtool.cli.{module}_" if module == "import" else f"vqtool.cli.{module}")
    tokenizing = ("tokenizers.batches", "tokenizers.encoding", "tokenizers.shards")
    for module in (
        "interop",
        "samplers",
        "samplers.shards",
        "priors",
        *tokenizing,
        "grids",
        "images",
        "training.prior",
    ):
        importlib.import_module(f"vqtool.{module}")


if __name__ == "__main__":
    sys.exit(main())
