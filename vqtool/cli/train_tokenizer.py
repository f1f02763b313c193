"""`vqtool train-tokenizer`: learn a tokenizer from images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli import tokenizer_training as shared
from vqtool.cli.console import echo
from vqtool.cli.main import command
from vqtool.cli.options import one_of
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


@dataclass(frozen=True, kw_only=True)
class CodeFlags:
    """Which codes there are, and how they learn."""

    quantizer: Annotated[
        str | None,
        typer.Option(
            "--quantizer",
            rich_help_panel=_CODES,
            show_default=False,
            help="ema, vq (learned by gradients), cosine (of length 1), simvq (moved together); fsq, lfq (fixed). "
            "Default: ema.",
        ),
    ] = None
    codebook_size: Annotated[
        int | None,
        typer.Option("--codebook-size", "-K", min=2, rich_help_panel=_CODES, help="How many. Default: the network's."),
    ] = None
    code_dim: Annotated[
        int | None,
        typer.Option(
            "--code-dim", min=1, rich_help_panel=_CODES, help="Numbers in a code. Default: suits the quantizer."
        ),
    ] = None
    levels: Annotated[
        str | None, typer.Option("--levels", rich_help_panel=_CODES, help="fsq: of each number. Default: 8x5x5x5.")
    ] = None
    gradient: Annotated[
        str | None,
        typer.Option(
            "--gradient", rich_help_panel=_CODES, help="straight-through or rotation. Default: straight-through."
        ),
    ] = None
    k_means: Annotated[
        int | None,
        typer.Option(
            "--k-means", min=0, rich_help_panel=_CODES, help="Steps of it that codes start with. Default: 10."
        ),
    ] = None
    revive: Annotated[
        bool | None,
        typer.Option(
            "--revive/--no-revive",
            rich_help_panel=_CODES,
            show_default=False,
            help="Move codes that nobody chooses. Default: yes.",
        ),
    ] = None
    commitment: Annotated[
        float | None,
        typer.Option(
            "--commitment", min=0, rich_help_panel=_CODES, help="Weight of the pull of latents to codes. Default: 0.25."
        ),
    ] = None
    codebook_weight: Annotated[
        float | None,
        typer.Option(
            "--codebook-weight",
            min=0,
            rich_help_panel=_CODES,
            help="Weight of the pull of codes to latents. Default: 1.",
        ),
    ] = None
    entropy: Annotated[
        float | None,
        typer.Option("--entropy", min=0, rich_help_panel=_CODES, help="lfq: weight of its entropy term. Default: 0.1."),
    ] = None

    def choose(self, start: "Tokenizer | None") -> str:
        """The name of the quantizer.

        Args:
            start: the tokenizer to begin with, if there is one.

        Raises:
            VqtoolError: it is unknown, or does not have what a flag is about.
        """
        from vqtool.tokenizers.quantizers import QUANTIZERS

        name = self.quantizer or ("cosine" if start is not None and start.lookup == "cosine" else QUANTIZER)
        chosen = QUANTIZERS[one_of("--quantizer", name, QUANTIZERS)]
        for flag, value, part, kind in (
            ("--commitment", self.commitment, "commitment", "terms"),
            ("--codebook-weight", self.codebook_weight, "codebook", "terms"),
            ("--entropy", self.entropy, "entropy", "terms"),
            ("--gradient", self.gradient, "gradient", "options"),
            ("--k-means", self.k_means, "k_means_steps", "options"),
            ("--levels", self.levels, "levels", "options"),
            ("--revive", self.revive, "dead_share", "options"),
        ):
            if value is not None and part not in getattr(chosen, kind):
                others = " or ".join(name for name, known in QUANTIZERS.items() if part in getattr(known, kind))
                raise VqtoolError(f"{flag} is for --quantizer {others}, not for {name}: leave it out")
        return name

    def options(self, quantizer: str) -> dict[str, Any]:
        """The options of the quantizer.

        Raises:
            VqtoolError: one is not understood.
        """
        from vqtool.tokenizers.quantizers import GRADIENTS

        if quantizer == "fsq":
            return {"levels": LEVELS if self.levels is None else _parse_levels(self.levels)}
        if quantizer == "lfq":
            return {}
        return {
            "gradient": one_of("--gradient", self.gradient or GRADIENTS[0], GRADIENTS),
            "k_means_steps": K_MEANS_STEPS if self.k_means is None else self.k_means,
        }

    def weights(self) -> dict[str, float | None]:
        """Of the terms of the loss, and of the run with revival; None is what stands in --help."""
        return {
            "commitment": self.commitment,
            "codebook": self.codebook_weight,
            "entropy": self.entropy,
            "revive_until": 0.0 if self.revive is False else None,
        }


@command
def train_tokenizer(
    *,
    pictures: shared.PictureFlags,
    network: Network = None,
    from_: Start = None,
    codes: CodeFlags,
    judges: shared.LossFlags,
    run: shared.RunFlags,
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
    from vqtool.tokenizers.vqvae import num_parameters
    from vqtool.training.tokenizer import build_model

    new = {"--network": network, "-K": codes.codebook_size, "--code-dim": codes.code_dim, "--k-means": codes.k_means}
    start = _load_start(from_, new)
    network = one_of("--network", network or NETWORK, SIZES)
    quantizer = codes.choose(start)
    judges.check()
    options = codes.options(quantizer)
    config = _choose_codes(SIZES[network] if start is None else start.config, quantizer, codes, options, start=start)
    run.check()
    model = build_model(
        config, run.seed, quantizer=quantizer, options=options, discriminator=judges.discriminator(), start=start
    )
    echo(
        f"{network if start is None else start.location}: {num_parameters(model.tokenizer) / 1e6:.2f} M parameters, "
        f"factor {config.factor}; {quantizer}: {config.codebook_size} codes of {config.code_dim} numbers"
    )
    flags = run.at_rate(1e-3 if model.tokenizer.network == "vqvae" else 2e-4)
    loss = judges.build(**codes.weights())
    shared.train("train-tokenizer", model, loss, judges, pictures, flags, parent=start)


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


def _parse_levels(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if not all(part.isdecimal() and int(part) >= 2 for part in parts):
        raise VqtoolError(f"--levels {text}: give 2 or more for each number of a code, such as 8x5x5x5")
    return tuple(map(int, parts))


def _choose_codes(
    network: "NetworkConfig",
    quantizer: str,
    flags: CodeFlags,
    options: Mapping[str, Any],
    *,
    start: "Tokenizer | None",
) -> "NetworkConfig":
    """The network with the codebook asked for, which is its own where it is that of a tokenizer to begin with.

    Raises:
        VqtoolError: the quantizer's codes cannot be of that number or size.
    """
    from math import prod

    num, dim = flags.codebook_size or network.codebook_size, flags.code_dim or network.code_dim
    if quantizer == "fsq":
        if flags.codebook_size or flags.code_dim:
            raise VqtoolError("--quantizer fsq has the codes that --levels make: leave out --codebook-size, --code-dim")
        num, dim = prod(options["levels"]), len(options["levels"])
    elif quantizer == "lfq":
        if flags.code_dim:
            raise VqtoolError("--quantizer lfq has a number for each doubling of -K: leave out --code-dim")
        dim = num.bit_length() - 1
        if num != 2**dim:
            raise VqtoolError(f"--codebook-size {num}: --quantizer lfq needs a power of two, such as {2**dim}")
    elif quantizer == "cosine" and start is None and not flags.code_dim:
        dim = COSINE_DIM
    if start is not None and (num, dim) != (network.codebook_size, network.code_dim):
        raise VqtoolError(
            f"--quantizer {quantizer} has {num} codes of {dim} numbers here, the tokenizer to begin with "
            f"{network.codebook_size} of {network.code_dim}: take another quantizer"
        )
    return replace(network, codebook_size=num, code_dim=dim)
