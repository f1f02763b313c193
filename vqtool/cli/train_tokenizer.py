"""`vqtool train-tokenizer`: learn a tokenizer from images."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli import tokenizer_training as shared
from vqtool.cli.console import say
from vqtool.cli.main import command
from vqtool.cli.options import Force, Images, Seed, Strict, one_of
from vqtool.cli.training import Minutes, Resume, RunFiles, SheetEvery, Steps
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.tokenizers import NetworkConfig, Tokenizer

_CODES = "Codes"  # a group of flags in --help
COSINE_DIM = 8  # the fewer the better codes stay in use
LEVELS = (8, 5, 5, 5)  # 1,000 codes
K_MEANS_STEPS = 10
NETWORK, QUANTIZER = "vqvae-f8", "ema"

Network = Annotated[
    str | None,
    typer.Option(
        "--network",
        show_default=False,
        help="vqvae-f4, -f8 or -f16 (pixels a token); vqgan-f4, -f8, -f16 as published, or with -small for CPUs. "
        "Default: vqvae-f8.",
    ),
]
Start = Annotated[
    str | None,
    typer.Option("--from", help="Begin with the networks and codes of a tokenizer: a file, or 'builtin'."),
]
QuantizerName = Annotated[
    str | None,
    typer.Option(
        "--quantizer",
        rich_help_panel=_CODES,
        show_default=False,
        help="ema, vq (learned by gradients), cosine (of length 1), simvq (moved together); fsq, lfq (fixed). "
        "Default: ema.",
    ),
]
CodebookSize = Annotated[
    int | None,
    typer.Option("--codebook-size", "-K", min=2, rich_help_panel=_CODES, help="How many. Default: the network's."),
]
CodeDim = Annotated[
    int | None,
    typer.Option("--code-dim", min=1, rich_help_panel=_CODES, help="Numbers in a code. Default: suits the quantizer."),
]
Levels = Annotated[
    str | None, typer.Option("--levels", rich_help_panel=_CODES, help="fsq: of each number. Default: 8x5x5x5.")
]
Gradient = Annotated[
    str | None,
    typer.Option("--gradient", rich_help_panel=_CODES, help="straight-through or rotation. Default: straight-through."),
]
KMeans = Annotated[
    int | None,
    typer.Option("--k-means", min=0, rich_help_panel=_CODES, help="Steps of it that codes start with. Default: 10."),
]
Revive = Annotated[
    bool | None,
    typer.Option(
        "--revive/--no-revive",
        rich_help_panel=_CODES,
        show_default=False,
        help="Move codes that nobody chooses. Default: yes.",
    ),
]
Commitment = Annotated[
    float | None,
    typer.Option(
        "--commitment", min=0, rich_help_panel=_CODES, help="Weight of the pull of latents to codes. Default: 0.25."
    ),
]
CodebookWeight = Annotated[
    float | None,
    typer.Option(
        "--codebook-weight", min=0, rich_help_panel=_CODES, help="Weight of the pull of codes to latents. Default: 1."
    ),
]
Entropy = Annotated[
    float | None,
    typer.Option("--entropy", min=0, rich_help_panel=_CODES, help="lfq: weight of its entropy term. Default: 0.1."),
]


@command
def train_tokenizer(
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("tokenizer.safetensors"),
    size: shared.Size = "64",
    network: Network = None,
    from_: Start = None,
    quantizer: QuantizerName = None,
    codebook_size: CodebookSize = None,
    code_dim: CodeDim = None,
    levels: Levels = None,
    gradient: Gradient = None,
    k_means: KMeans = None,
    revive: Revive = None,
    commitment: Commitment = None,
    codebook_weight: CodebookWeight = None,
    entropy: Entropy = None,
    loss: shared.LossName = "l1",
    edges: shared.Edges = 0.5,
    perceptual: shared.PerceptualName = None,
    perceptual_weight: shared.PerceptualWeight = None,
    adversarial: shared.Adversarial = None,
    adversarial_start: shared.AdversarialStart = None,
    adversarial_max: shared.AdversarialMax = None,
    adversarial_layers: shared.AdversarialLayers = None,
    adversarial_width: shared.AdversarialWidth = None,
    flip: shared.Flip = True,
    crop: shared.Crop = 1.0,
    jitter: shared.Jitter = 0.0,
    steps: Steps = None,
    minutes: Minutes = None,
    batch_size: shared.BatchSize = 32,
    learning_rate: shared.LearningRate = None,
    half: shared.Half = False,
    sheet_every: SheetEvery = 500,
    seed: Seed = 0,
    resume: Resume = False,
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Train a VQ-VAE or VQGAN tokenizer on images.

    Writes the tokenizer, and beside it a log (.log.jsonl), the state for --resume (.state.safetensors) and a sheet of
    originals over reconstructions (.sheet.png).

    Examples:

        vqtool train-tokenizer imgs/

        vqtool train-tokenizer imgs/ --quantizer cosine -K 4096 --size 128 --minutes 60 -o mine.safetensors

        vqtool train-tokenizer imgs/ --network vqgan-f8-small --perceptual efficientnet-lite0 --adversarial 0.8

        vqtool train-tokenizer imgs/ --from builtin --minutes 30 -o mine.safetensors
    """
    from vqtool.tokenizers import SIZES
    from vqtool.tokenizers.quantizers import QUANTIZERS
    from vqtool.tokenizers.vqvae import num_parameters
    from vqtool.training.tokenizer import build_model

    start = _load_start(
        from_, {"--network": network, "-K": codebook_size, "--code-dim": code_dim, "--k-means": k_means}
    )
    network = network or NETWORK
    quantizer = quantizer or ("cosine" if start is not None and start.lookup == "cosine" else QUANTIZER)
    one_of("--network", network, SIZES)
    one_of("--quantizer", quantizer, QUANTIZERS)
    judges = shared.LossFlags(
        loss, edges, perceptual, perceptual_weight, adversarial, adversarial_start, adversarial_max,
        adversarial_layers, adversarial_width,
    )  # fmt: skip
    judges.check()
    _check_terms(quantizer, {"commitment": commitment, "codebook": codebook_weight, "entropy": entropy})
    options = _choose_options(quantizer, gradient, k_means, levels, revive)
    base, dim = (SIZES[network], code_dim) if start is None else (start.config, start.config.code_dim)
    config = _choose_codes(base, quantizer, codebook_size, dim, options, fixed=start is not None)
    RunFiles(output).check(resume=resume, force=force)
    model = build_model(
        config, seed, quantizer=quantizer, options=options, discriminator=judges.discriminator(), start=start
    )
    say(
        f"{network if start is None else start.location}: {num_parameters(model.tokenizer) / 1e6:.2f} M parameters, "
        f"factor {config.factor}; {quantizer}: {config.codebook_size} codes of {config.code_dim} numbers"
    )
    rate = learning_rate or (1e-3 if model.tokenizer.network == "vqvae" else 2e-4)
    shared.train(
        "train-tokenizer",
        model,
        judges.build(
            commitment=commitment,
            codebook=codebook_weight,
            entropy=entropy,
            revive_until=0.0 if revive is False else None,
        ),
        judges,
        shared.PictureFlags(images, size, flip, crop, jitter, strict),
        shared.RunFlags(output, steps, minutes, batch_size, rate, sheet_every, half, seed, resume),
        parent=start,
    )


def _load_start(name: str | None, others: Mapping[str, Any]) -> "Tokenizer | None":
    """The tokenizer to begin with; raises if a flag (None where it is not given) asks for what that one has."""
    from vqtool.tokenizers import load_tokenizer

    if name is None:
        return None
    for flag, value in others.items():
        if value is not None:
            raise VqtoolError(
                f"{flag} is for new networks and codes, --from begins with those of {name}: leave one out"
            )
    return load_tokenizer(name)


def _check_terms(quantizer: str, weights: Mapping[str, float | None]) -> None:
    """Raise if a weight is given of a term that the quantizer does not have."""
    from vqtool.tokenizers.quantizers import QUANTIZERS

    flags = {"commitment": "--commitment", "codebook": "--codebook-weight", "entropy": "--entropy"}
    for term, weight in weights.items():
        if weight is not None and term not in QUANTIZERS[quantizer].terms:
            raise _misplaced(
                flags[term], quantizer, [name for name, known in QUANTIZERS.items() if term in known.terms]
            )


def _choose_options(
    quantizer: str, gradient: str | None, k_means: int | None, levels: str | None, revive: bool | None
) -> dict[str, Any]:
    """The options of the quantizer.

    Raises:
        VqtoolError: one that it does not have is given, or it is not understood.
    """
    from vqtool.tokenizers.quantizers import GRADIENTS, QUANTIZERS

    given: dict[str, tuple[str, Any]] = {
        "gradient": ("--gradient", gradient),
        "k_means_steps": ("--k-means", k_means),
        "levels": ("--levels", levels),
        "dead_share": ("--revive", revive),
    }
    for option, (flag, value) in given.items():
        if value is not None and option not in QUANTIZERS[quantizer].options:
            raise _misplaced(flag, quantizer, [name for name, known in QUANTIZERS.items() if option in known.options])
    if quantizer == "fsq":
        return {"levels": LEVELS if levels is None else _parse_levels(levels)}
    if quantizer == "lfq":
        return {}
    one_of("--gradient", gradient or GRADIENTS[0], GRADIENTS)
    return {"gradient": gradient or GRADIENTS[0], "k_means_steps": K_MEANS_STEPS if k_means is None else k_means}


def _misplaced(flag: str, quantizer: str, others: list[str]) -> VqtoolError:
    return VqtoolError(f"{flag} is for --quantizer {' or '.join(others)}, not for {quantizer}: leave it out")


def _parse_levels(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if not all(part.isdecimal() and int(part) >= 2 for part in parts):
        raise VqtoolError(f"--levels {text}: give 2 or more for each number of a code, such as 8x5x5x5")
    return tuple(map(int, parts))


def _choose_codes(
    network: "NetworkConfig",
    quantizer: str,
    codebook_size: int | None,
    code_dim: int | None,
    options: Mapping[str, Any],
    *,
    fixed: bool,
) -> "NetworkConfig":
    """The network with the codebook asked for, which is its own where that is fixed.

    Raises:
        VqtoolError: the quantizer's codes cannot be of that number or size.
    """
    from math import prod

    num, dim = codebook_size or network.codebook_size, code_dim or network.code_dim
    if quantizer == "fsq":
        if codebook_size or (code_dim and not fixed):
            raise VqtoolError("--quantizer fsq has the codes that --levels make: leave out --codebook-size, --code-dim")
        num, dim = prod(options["levels"]), len(options["levels"])
    elif quantizer == "lfq":
        if code_dim and not fixed:
            raise VqtoolError("--quantizer lfq has a number for each doubling of -K: leave out --code-dim")
        dim = num.bit_length() - 1
        if num != 2**dim:
            raise VqtoolError(f"--codebook-size {num}: --quantizer lfq needs a power of two, such as {2**dim}")
    elif quantizer == "cosine" and not code_dim:
        dim = COSINE_DIM
    if fixed and (num, dim) != (network.codebook_size, network.code_dim):
        raise VqtoolError(
            f"--quantizer {quantizer} has {num} codes of {dim} numbers here, the tokenizer to begin with "
            f"{network.codebook_size} of {network.code_dim}: take another quantizer"
        )
    return replace(network, codebook_size=num, code_dim=dim)
