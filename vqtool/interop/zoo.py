"""Published models by short names: what each is, under which licence, what its makers say it scores, what to type.

`zoo:NAME` stands for a model wherever a prior or a source of `vqtool import` is named: it is downloaded and imported
when it is first used, into the user's cache, after its licence and size have been said. None of the downloads could be
tried where vqtool is built; docs/zoo.md says what the importers were checked against.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqtool.errors import VqtoolError
from vqtool.outputs import cache_folder
from vqtool.progress import Notify
from vqtool.registry import find

PREFIX = "zoo:"


@dataclass(frozen=True)
class Model:
    """A published model."""

    what: str
    kind: str  # "prior" or "tokenizer"
    source: str  # hub:REPOSITORY[/FILE]
    licence: str
    parameters: float  # millions, of all parts; a float32 file has four times as many megabytes
    score: str  # as its makers state it; "-" where none was found
    protocol: str  # how they measured it
    tokenizer: str = ""  # NAME of the one that its tokens are of, where that is a source of its own
    format: str = ""  # where names of tensors alone do not tell


def _halton(size: int, name: str, parameters: float, fid: str, inception: int, w: float) -> Model:
    cells = size // 16
    return Model(
        f"classes of ImageNet, {size} px, {cells}x{cells} tokens",
        "prior",
        f"hub:llvictorll/Halton-MaskGIT/ImageNet_{size}_{name}.pth",
        "MIT",
        parameters,
        f"FID {fid}, IS {inception}",
        f"50,000 samples, 32 Halton steps, w {w}",
        "llamagen-f16",
    )


def _ibq(codes: int, rfid: str) -> Model:
    return Model(
        f"tokenizer of K = {codes}, factor 16",
        "tokenizer",
        f"hub:TencentARC/IBQ-Tokenizer-{codes}/imagenet256_{codes}.ckpt",
        "Apache-2.0",
        106.7 + 256 * codes / 1e6,
        f"rFID {rfid}",
        "ImageNet, 256 px, averaged weights",
        format="ibq",
    )


def _maskbit(bits: int, rfid: str) -> Model:
    return Model(
        f"tokenizer of {bits} bits, factor 16",
        "tokenizer",
        f"hub:markweber/maskbit_tokenizer_{bits}bit/maskbit_tokenizer_{bits}bit.bin",
        "for research only (code Apache-2.0)",
        54.4,
        f"rFID {rfid}",
        "ImageNet, 256 px",
    )


def _maskbit_generator(bits: int, fid: str, how: str) -> Model:
    return Model(
        f"classes of ImageNet, 256 px, 16x16 tokens of {bits} bits in 2 parts",
        "prior",
        f"hub:markweber/maskbit_generator_{bits}bit/maskbit_generator_{bits}bit.bin",
        "for research only (code Apache-2.0)",
        305,
        f"FID {fid}",
        f"50,000 samples, {how}",
        f"maskbit-{bits}",
    )


def _magvit2(size: int, factor: int, rfid: str) -> Model:
    return Model(
        f"tokenizer of 18 bits, factor {factor}",
        "tokenizer",
        f"hub:TencentARC/Open-MAGVIT2-Tokenizer-{size}-resolution/imagenet_{size}_L.ckpt",
        "Apache-2.0",
        115.2,
        f"rFID {rfid}",
        f"ImageNet, {size} px, averaged weights",
    )


def _titok(name: str, tokens: int, parameters: float, rfid: str, *, old: bool) -> Model:
    return Model(
        f"tokenizer of K = {4096 if old else 8192}, {tokens} tokens an image of 256 px",
        "tokenizer",
        f"hub:yucornetto/tokenizer_titok_{name}",
        "for research only (Apache-2.0)",
        parameters,
        f"rFID {rfid}",
        "ImageNet, 256 px",
    )


def _titok_generator(name: str, tokens: int, parameters: float, fid: str, how: str) -> Model:
    return Model(
        f"classes of ImageNet, 256 px, {tokens} tokens",
        "prior",
        f"hub:yucornetto/generator_titok_{name}_imagenet",
        "for research only (Apache-2.0)",
        parameters,
        f"FID {fid}",
        f"50,000 samples, {how}",
        f"titok-{name}-tokenizer",
    )


def _amused(size: int, parameters: float) -> Model:
    what = f"captions, {size} px; with tokenizer and text encoder"
    return Model(
        what, "prior", f"hub:amused/amused-{size}", "openrail++ (weights)", parameters, "-", "arXiv:2401.01808"
    )


def _meissonic(repository: str, size: int, how: str) -> Model:
    what = f"captions, {size} px; with tokenizer and text encoder"
    return Model(what, "prior", f"hub:{repository}", "Apache-2.0", 1440, "-", f"arXiv:2410.08261; {how}")


MODELS: dict[str, Model] = {
    "halton-tiny": _halton(256, "tiny", 23.0, "10.2", 185, 1.5),
    "halton-small": _halton(256, "small", 69.3, "6.40", 255, 1.0),
    "halton-base": _halton(256, "base", 142.2, "4.17", 263, 0.7),
    "halton-small-384": _halton(384, "small", 69.4, "6.11", 241, 1.0),
    "halton-base-384": _halton(384, "base", 142.4, "4.15", 257, 0.7),
    "halton-large-384": _halton(384, "large", 480.0, "2.59", 281, 0.5),
    "amused-256": _amused(256, 803),
    "amused-512": _amused(512, 808),
    "meissonic": _meissonic("MeissonFlow/Meissonic", 1024, "64 steps, guidance 9"),
    "monetico": _meissonic("Collov-Labs/Monetico", 512, "48 steps, guidance 9"),
    "titok-l32": _titok_generator("l32", 32, 177, "2.77", "8 steps, linear guidance 4.5"),
    "titok-b64": _titok_generator("b64", 64, 177, "2.48", "8 steps, linear guidance 3"),
    "titok-s128": _titok_generator("s128", 128, 295, "1.97", "64 steps, power-cosine guidance 6.9"),
    "titok-l32-tokenizer": _titok("l32_imagenet", 32, 641, "2.21", old=True),
    "titok-b64-tokenizer": _titok("b64_imagenet", 64, 205, "1.70", old=True),
    "titok-s128-tokenizer": _titok("s128_imagenet", 128, 84, "1.71", old=True),
    "titok-bl64": _titok("bl64_vq8k_imagenet", 64, 390, "2.06", old=False),
    "titok-bl128": _titok("bl128_vq8k_imagenet", 128, 390, "1.49", old=False),
    "titok-sl256": _titok("sl256_vq8k_imagenet", 256, 330, "1.03", old=False),
    "muse-imagenet": Model(
        "classes of ImageNet, 256 px, 16x16 tokens; with tokenizer",
        "prior",
        "hub:openMUSE/maskgit-large-imagenet",
        "not stated (code Apache-2.0)",
        283,
        "-",
        "18 steps of `generate2`, no guidance",
    ),
    "llamagen-f16": Model(
        "tokenizer of K = 16384, factor 16",
        "tokenizer",
        "hub:FoundationVision/LlamaGen/vq_ds16_c2i.pt",
        "MIT",
        72,
        "rFID 2.19",
        "ImageNet, 256 px",
    ),
    "ibq-1024": _ibq(1024, "2.24"),
    "ibq-8192": _ibq(8192, "1.87"),
    "ibq-16384": _ibq(16384, "1.37"),
    "ibq-262144": _ibq(262144, "1.00"),
    "magvit2-f16": _magvit2(256, 16, "1.17"),
    "magvit2-f8": _magvit2(128, 8, "1.18"),
    "maskbit-10": _maskbit(10, "1.76"),
    "maskbit-12": _maskbit(12, "1.52"),
    "maskbit-14": _maskbit(14, "1.37"),
    "maskbit-16": _maskbit(16, "1.29"),
    "maskbit-18": _maskbit(18, "1.16"),
    "maskbit-generator-10": _maskbit_generator(10, "1.68", "64 steps, guidance 6.4"),
    "maskbit-generator-12": _maskbit_generator(12, "1.65", "64 steps, guidance 7.1"),
    "maskbit-generator-14": _maskbit_generator(14, "1.52", "256 steps, guidance 5.8"),
    "maskbit-generator-16": _maskbit_generator(16, "1.64", "64 steps, guidance 6.5"),
    "maskbit-generator-18": _maskbit_generator(18, "1.67", "64 steps, guidance 5.7"),
    "showo-magvit2": Model(
        "tokenizer of 13 bits, factor 16",
        "tokenizer",
        "hub:showlab/magvitv2",
        "Apache-2.0",
        95.3,
        "rFID 3.50",
        "ImageNet, as measured by SEED-Voken",
    ),
}


def find_model(name: str) -> Model:
    """The model of a name, with or without `zoo:`.

    Raises:
        VqtoolError: an unknown name; lists the known.
    """
    return find("model", name.removeprefix(PREFIX), MODELS)


def rows() -> list[dict[str, Any]]:
    """The table: name, all fields of `Model`, and what to type."""
    return [{"name": name, **asdict(model), "command": _command(name, model)} for name, model in MODELS.items()]


def _command(name: str, model: Model) -> str:
    if model.kind == "tokenizer":
        return f"vqtool import {PREFIX}{name} -o {name}.safetensors"
    text = '--caption "a fox in the snow"' if model.what.startswith("captions") else "--label goldfish"
    return f"vqtool sample {PREFIX}{name} {text} | vqtool decode"


def convert(name: str, output: Path | None, *, force: bool = False, **options: Any) -> Iterator[str]:
    """Import a model, and the tokenizer of its tokens beside it, as `vqtool import zoo:NAME` does.

    Yields:
        Its licence and size, before anything is downloaded, then the lines of `interop.convert`.

    Raises:
        VqtoolError: as for `interop.convert`, or an unknown name.
    """
    from vqtool import interop

    model = find_model(name)
    output = output or Path(f"{name.removeprefix(PREFIX)}.safetensors")
    yield f"{name}: {model.what}; licence {model.licence}; {_size(model)}"
    if model.tokenizer and options.get("tokenizer") is None:
        beside = output.with_suffix(".tokenizer.safetensors")
        tokenizer = find_model(model.tokenizer)
        yield f"its tokenizer {model.tokenizer}: licence {tokenizer.licence}; {_size(tokenizer)}"
        yield from interop.convert(tokenizer.source, beside, force=force)
        options["tokenizer"] = beside
    options["format"] = options.get("format") or model.format or None
    yield from interop.convert(model.source, output, force=force, **options)


def _size(model: Model) -> str:
    return f"{model.parameters:,.0f} M weights, about {4 * model.parameters:,.0f} MB as float32 (files may hold more)"


def find_file(name: str, notify: Notify) -> Path:
    """The artifact of a model in the user's cache; it is downloaded and imported first, if it is not there.

    Args:
        name: zoo:NAME.
        notify: is told of all that is done.

    Raises:
        VqtoolError: an unknown name, or it cannot be downloaded.
    """
    find_model(name)
    folder = cache_folder("zoo")
    path = folder / f"{name.removeprefix(PREFIX)}.safetensors"
    if path.is_file():  # the last of its parts that is written
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VqtoolError(f"{folder}: the cache cannot be written: {error.strerror}") from error
    for line in convert(name, path, force=True):
        notify(line)
    return path
