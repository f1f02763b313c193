"""Training of a new tokenizer, or of one that is there, on images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqtool.errors import VqtoolError
from vqtool.locks import claims
from vqtool.options import Checked, distribute, option
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.rng import check_seed
from vqtool.tokenizers import SIZES, NetworkConfig, Tokenizer, load_tokenizer, quantizers
from vqtool.tokenizers.vqvae import num_parameters
from vqtool.training._autoencoder import build_model
from vqtool.training.fitting import Lesson, OnError, Report, learn, sides, split_options
from vqtool.training.runs import RunFiles

DEFAULT_NETWORK = "vqvae-f8"
DEFAULT_RATES = {"vqvae": 1e-3}  # by network; of others the published one
PUBLISHED_RATE = 2e-4


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Checked):
    """Which networks a new tokenizer has, and how its codes learn."""

    network: str | None = option(
        None,
        "Such as vqgan-f16-small.",
        shown="vqvae-f8",
        choices=(
            "vqvae-f4", "vqvae-f8", "vqvae-f16",
            "vqgan-f4", "vqgan-f8", "vqgan-f16", "vqgan-f4-small", "vqgan-f8-small", "vqgan-f16-small",
        ),
        listed=False,
    )  # fmt: skip
    quantizer: str | None = option(
        None, "How codes are chosen and learn.", shown="ema", choices="tokenizers/quantizers/__init__.py:NAMES"
    )


@claims()
def train_tokenizer(
    images: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    size: int | str | tuple[int, int] = 64,
    from_: str | Path | None = None,
    half: bool = False,
    seed: int = 0,
    resume: bool | str = False,
    force: bool = False,
    on_error: OnError | None = None,
    notify: Notify = ignore,
    progress: Progress = silent,
    report: Report | None = None,
    **options: Any,
) -> Tokenizer:
    """Train a VQ-VAE or VQGAN tokenizer on images and write it, with log, state and preview beside it.

    Args:
        images: folders, image files, tar shards or HDF5 files.
        output: file to write.
        size: pixels to learn from: 64, (48, 80) or "48x80" (height first).
        from_: a tokenizer, a file or "builtin", whose networks and codes training begins with.
        half: store weights as float16.
        seed: of all noise.
        resume: go on with an interrupted run, exactly; "auto": if there is one, else begin.
        force: overwrite an earlier result or run.
        on_error: told of a bad image, which is left out; None raises.
        notify: is told, line by line, what is done.
        progress: shows images that are read, and steps.
        report: is told (step, metrics) after each step.
        **options: of `NetworkOptions`, `TokenizerLoss`, `DiscriminatorConfig`, `Augmentation`, `TokenizerRunOptions`,
            `MachineOptions`, `CacheOptions`, `SourceOptions` and the quantizer, by name.

    Returns:
        The tokenizer as it was written (in the main process).

    Raises:
        VqtoolError: files are missing or in the way, or options do not go together.
        KeyboardInterrupt: after Ctrl-C, with the state saved; its text says so.
    """
    codes = {name: value for name, value in options.items() if name in quantizers.all_option_names()}
    rest = {name: value for name, value in options.items() if name not in codes}
    (network,) = distribute({n: rest.pop(n) for n in ("network", "quantizer") if n in rest}, NetworkOptions)
    judge, parts = split_options(rest)
    start = _load_start(from_, {"network": network.network, **codes})
    check_seed(seed)
    files = RunFiles.open(output, resume=resume, force=force)
    quantizer = network.quantizer or ("cosine" if start is not None and start.lookup == "cosine" else "ema")
    base = SIZES[network.network or DEFAULT_NETWORK] if start is None else start.config
    config, codes = _choose_codes(base, quantizer, codes, start)
    model = build_model(config, seed, quantizer=quantizer, options=codes, discriminator=judge, start=start)
    name = (network.network or DEFAULT_NETWORK) if start is None else start.location
    notify(
        f"{name}: {num_parameters(model.tokenizer) / 1e6:.2f} M parameters, factor {config.factor}; "
        f"{quantizer}: {config.codebook_size} codes of {config.code_dim} numbers"
    )
    lesson = Lesson(
        **parts, size=sides(size), rate=DEFAULT_RATES.get(model.tokenizer.network, PUBLISHED_RATE), seed=seed
    )
    return learn(
        model, images, files, lesson, step="train-tokenizer", parent=start, half=half,
        on_error=on_error, notify=notify, progress=progress, report=report,
    )  # fmt: skip


def _load_start(name: str | Path | None, new: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer to begin with; raises if an option asks for what that one has."""
    if name is None:
        return None
    for option_name in ("network", "codebook_size", "code_dim", "k_means"):
        if new.get(option_name) is not None:
            raise VqtoolError(
                f"`{option_name}` is for new networks and codes, `from_` begins with those of {name}: leave one out"
            )
    return load_tokenizer(name)


def _choose_codes(
    network: NetworkConfig, quantizer: str, given: Mapping[str, Any], start: Tokenizer | None
) -> tuple[NetworkConfig, dict[str, Any]]:
    """The network with the quantizer's codebook, and the quantizer's options.

    Raises:
        VqtoolError: the quantizer does not have an option, or other codes than the tokenizer to begin with.
    """
    options = dict(given)
    if start is not None:
        own = {"codebook_size": network.codebook_size, "code_dim": network.code_dim}
        options |= {name: own[name] for name in own if name in quantizers.option_names(quantizer)}
    shape = quantizers.choose_options(quantizer, options).shape(network.codebook_size, network.code_dim)
    if start is not None and shape != (network.codebook_size, network.code_dim):
        raise VqtoolError(
            f"`quantizer` {quantizer} has {shape[0]} codes of {shape[1]} numbers here, the tokenizer to begin with "
            f"{network.codebook_size} of {network.code_dim}: take another quantizer"
        )
    return replace(network, codebook_size=shape[0], code_dim=shape[1]), options
