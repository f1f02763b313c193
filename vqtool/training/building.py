"""A fresh prior: forward process, condition and network, with what suits data and machine where nobody says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool import conditions, denoisers
from vqtool.conditions import Conditioner
from vqtool.conditions.text_encoders import TextEncoder, load_text_encoder
from vqtool.diffusion import kernels
from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.parameterisations import PARAMETERISATIONS
from vqtool.diffusion.parts import split_tokens
from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch, GridHeader
from vqtool.options import Checked, option
from vqtool.priors import GridSpec, Prior
from vqtool.training.data import FEW, GridData, build_data, sample_texts, warn_of_texts
from vqtool.training.presets import NO_PRESET, Preset, choose_denoiser

SIZES_IN_ORDER = ("tiny", "small", "base", "large")  # what is chosen from where nobody says
CONDITION_TABLES = ("num_classes", "vocabulary_size", "max_length")  # what a network has to know of its condition
DROPOUT_OF_FEW = 0.2  # of a new prior of few grids: docs/own-pictures.md
DEFAULT_RATE = 1e-3  # of denoisers that name none for a size


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(Checked):
    """The forward process, and how it is reversed."""

    kernel: str = option("mask-replace", "Forward process.", choices="diffusion/kernels/__init__.py:KERNELS")
    schedule: str | None = option(
        None,
        "How fast tokens are lost.",
        shown="the kernel's own",
        choices="diffusion/schedules.py:SCHEDULES",
        advanced=True,
    )
    diffusion_steps: int = option(100, "T, of the kernel.", minimum=1, flag="-T", advanced=True)
    rule: str = option(
        "mixture",
        "How x_0 is averaged in the bound; plug-in as in VQ-DDM.",
        choices="diffusion/posterior.py:RULES",
        advanced=True,
    )

    def build(self, codebook_size: int) -> Kernel:
        """The kernel over K tokens."""
        return kernels.build(
            self.kernel, schedule=self.schedule, codebook_size=codebook_size, num_steps=self.diffusion_steps
        )


@dataclass(frozen=True, kw_only=True)
class ConditionOptions(Checked):
    """What a prior is told about a grid."""

    condition: str = option("auto", "What samples can be asked for by.", choices=("auto", "none", "class", "caption"))
    text_encoder: str | None = option(
        None, "Frozen one that captions are read with: an artifact of `vqtool import`.", advanced=True
    )
    vocabulary: str = option("bpe", "Of captions.", choices="conditions/__init__.py:VOCABULARIES", advanced=True)
    vocabulary_size: int | None = option(
        None,
        "Most tokens of the vocabulary; each is a row of the network.",
        shown="suits the captions",
        minimum=300,
        advanced=True,
    )

    def build(self, batch: GridBatch, denoiser: str, encoder: TextEncoder | None = None) -> Conditioner:
        """The conditioner of grids; logs what has no text and what is cut.

        Raises:
            VqtoolError: the grids or the denoiser do not have such a condition.
        """
        if encoder is not None:
            conditioner = self._read_by(encoder, batch, denoiser)
        else:
            kind = self.condition
            if kind == "auto":
                captions = batch.captions if "caption" in denoisers.module(denoiser).CONDITIONS else None
                kind = conditions.choose_kind(batch.labels, captions)
            check_condition(denoiser, kind)
            conditioner = conditions.build(
                kind, batch.labels, batch.captions, vocabulary=self.vocabulary, vocabulary_size=self.vocabulary_size
            )
        warn_of_texts(conditioner, batch)
        return conditioner

    def load_encoder(self) -> TextEncoder | None:
        """The text encoder that captions are read with, if there is one."""
        return None if self.text_encoder is None else load_text_encoder(self.text_encoder)

    def _read_by(self, encoder: TextEncoder, batch: GridBatch, denoiser: str) -> Conditioner:
        """The vocabulary of a text encoder.

        Raises:
            VqtoolError: encoder, denoiser and grids do not go together.
        """
        takes = [name for name in denoisers.NAMES if getattr(denoisers.module(name), "TAKES_FEATURES", False)]
        for met, reason in (
            (denoiser in takes, f"goes with `denoiser` {' or '.join(takes)}, not with {denoiser}"),
            (self.condition in ("auto", "caption"), f"is for captions: leave `condition` {self.condition} out"),
            (any(batch.captions or ()), "is for captions, and the grids have none"),
            (encoder.config.features == "unit", "makes features of a kind that no new network takes"),
        ):
            if not met:
                raise VqtoolError(f"`text_encoder` {reason}")
        if encoder.captions is None:
            raise VqtoolError(
                f"`text_encoder` {self.text_encoder} came with a prior, which has its vocabulary: import one on its own"
            )
        return encoder.captions


@dataclass(frozen=True, kw_only=True)
class DenoiserOptions(Checked):
    """The network."""

    denoiser: str | None = option(
        None,
        "Kind of network.",
        shown="transformer; vq-diffusion for a text encoder",
        choices="denoisers/__init__.py:NAMES",
        advanced=True,
    )
    size: str | None = option(
        None,
        "tiny, small, base, large, huge or light.",
        shown="suits data and machine",
        choices="denoisers/*.py:SIZES",
        listed=False,
    )
    num_parts: int | None = option(
        None, "Parts of a token, each with a head of its own, as 2 of 128 codes for 16,384; for large codebooks.",
        shown="1, 2 for maskbit", minimum=1, flag="--parts", advanced=True,
    )  # fmt: skip
    dropout: float | None = option(
        None,
        "Share of each block's output left out in training.",
        shown="0.2 for a new prior of fewer than 2,000 grids, else 0",
        minimum=0,
        maximum=0.9,
        advanced=True,
    )
    parameterisation: str | None = option(
        None,
        "What logits stand for: evidence of the other cells, all (direct), or VQ-DDM's x_0 = mu + x_t (residual).",
        shown="suits denoiser and rule",
        choices="diffusion/parameterisations.py:PARAMETERISATIONS",
        advanced=True,
    )

    def as_begun(self, begun: Mapping[str, Any] | None) -> "DenoiserOptions":
        """The same for a run that goes on: where no dropout is asked for, that which it began with."""
        if begun is None or self.dropout is not None:
            return self
        return replace(self, dropout=dict(begun.get("size", {})).get("dropout", 0.0))

    def choose_dropout(self, denoiser: str, num_grids: int) -> float:
        """The dropout that is asked for; else one that keeps a prior of few grids from learning them by heart."""
        if self.dropout is not None:
            return self.dropout
        return DROPOUT_OF_FEW if num_grids < FEW and has_dropout(denoiser) else 0.0

    def choose_size(self, denoiser: str, num_grids: int, num_cells: int) -> str:
        """The size of a denoiser that is asked for, else one that suits.

        Raises:
            VqtoolError: the denoiser has no such size.
        """
        known: dict[str, Any] = denoisers.module(denoiser).SIZES
        chosen = self.size or choose_size(denoiser, num_grids, num_cells)
        if chosen not in known:
            raise VqtoolError(f"`size` {chosen}: unknown to {denoiser}, which has {', '.join(known)}")
        return chosen


@dataclass(frozen=True)
class Beginning:
    """What is trained on what."""

    prior: Prior
    data: GridData
    held_out: GridData | None
    learning_rate: float  # that suits it
    name: str  # what the network is called: its size, or the prior that it was
    location: str = ""  # of that prior
    notes: Sequence[str] = ()  # what people are told of it
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the run is made from beside the prior's own


def begin(
    header: GridHeader,
    batch: GridBatch,
    diffusion: DiffusionOptions,
    network: DenoiserOptions,
    condition: ConditionOptions,
    *,
    seed: int,
    preset: Preset = NO_PRESET,
    device: str = "cpu",
) -> Beginning:
    """A fresh prior for grids; the preset says what else is set of its network, "meta" that it needs no weights.

    Raises:
        VqtoolError: the options do not go together or with the grids.
    """
    encoder = condition.load_encoder()
    denoiser = choose_denoiser({"denoiser": network.denoiser, "text_encoder": encoder})
    conditioner = condition.build(sample_texts(batch), denoiser, encoder)
    num_codes, parts = choose_parts(denoiser, network.num_parts, header.codebook_size)
    split = partial(split_tokens, num_codes=num_codes, num_parts=parts.get("num_parts", 1))
    data, held_out = build_data(batch, conditioner, GridSpec.of(header), split).split(seed)
    size = network.choose_size(denoiser, len(data), math.prod(data.tokens.shape[1:]))
    dropout = network.choose_dropout(denoiser, len(batch)) if not preset.name else network.dropout or 0.0
    prior = build_prior(
        diffusion.build(num_codes), conditioner, data.grid_spec, size, seed=seed, tokens=data.tokens_to_count(),
        denoiser=denoiser, rule=diffusion.rule, parameterisation=network.parameterisation,
        dropout=dropout, text_encoder=encoder, network=preset.network, device=device, **parts,
    )  # fmt: skip
    settings = {} if encoder is None else {"text_encoder": encoder.fingerprint}
    settings |= {"preset": preset.name} if preset.name else {}
    has_none = (condition.condition, conditioner.kind) == ("auto", "none")
    notes = [conditions.explain_none(batch.labels) if has_none else ""]
    if dropout != (network.dropout or 0.0):
        notes.append(
            f"dropout {dropout:g}, since fewer than {FEW:,} grids are learned by heart soon (`dropout` 0: none)"
        )
    rate = choose_learning_rate(denoiser, size)
    return Beginning(prior, data, held_out, rate, size, notes=list(filter(None, notes)), settings=settings)


def choose_size(denoiser: str, num_grids: int, num_cells: int) -> str:
    """The name of a size that suits data and machine; where the denoiser lacks it, the next smaller one it has.

    On a CPU the steps that a network can take in ten minutes matter most: 380 grids of 8x8 a second pass the tiny
    transformer in training, 150 the small one (two cores). On a GPU, how much there is to learn.
    """
    if torch.cuda.is_available():
        num_tokens = num_grids * num_cells
        wanted = "small" if num_tokens < 200_000 else "base" if num_tokens < 5_000_000 else "large"
    else:
        wanted = "tiny" if num_cells > 64 or num_grids < 1000 else "small"
    sizes: dict[str, Any] = denoisers.module(denoiser).SIZES
    smaller = SIZES_IN_ORDER[: SIZES_IN_ORDER.index(wanted) + 1]
    return [next(iter(sizes)), *(name for name in smaller if name in sizes)][-1]


def choose_learning_rate(denoiser: str, size: str) -> float:
    """The highest learning rate that suits a denoiser of a size."""
    return float(getattr(denoisers.module(denoiser), "LEARNING_RATES", {}).get(size, DEFAULT_RATE))


def check_condition(denoiser: str, kind: str) -> None:
    """Raise unless a denoiser takes a kind of condition.

    Raises:
        VqtoolError: it does not; names those that do.
    """
    taken = denoisers.module(denoiser).CONDITIONS
    if kind not in taken:
        others = ", ".join(name for name in denoisers.NAMES if kind in denoisers.module(name).CONDITIONS)
        raise VqtoolError(
            f"`denoiser` {denoiser} is not trained with `condition` {kind}, only with {', '.join(taken)}; "
            f"denoisers that take {kind}: {others}"
        )


def choose_parts(denoiser: str, num_parts: int | None, codebook_size: int) -> tuple[int, dict[str, int]]:
    """How many codes a part of a token has, K for the whole, and what the denoiser is told of parts.

    Raises:
        VqtoolError: the denoiser has none, or the codebook is not made of so many.
    """
    usual = getattr(denoisers.module(denoiser).Config, "num_parts", None)
    if usual is None and num_parts not in (None, 1):
        raise VqtoolError(
            f"`num_parts` {num_parts}: the denoiser {denoiser} has no parts, transformer and maskbit have"
        )
    count: int = num_parts or usual or 1
    if count == 1 and usual in (None, 1):
        return codebook_size, {}
    bits = (codebook_size - 1).bit_length()
    if codebook_size != 1 << bits or bits % count:
        raise VqtoolError(
            f"`num_parts` {count}: a codebook of {codebook_size} codes is not made of so many parts of whole bits"
        )
    return 1 << bits // count, {"num_parts": count}


def has_dropout(denoiser: str) -> bool:
    """Whether a kind of denoiser has dropout."""
    return "dropout" in {each.name for each in fields(denoisers.module(denoiser).Config)}


def check_dropout(dropout: float, denoiser: str) -> float:
    """The dropout that is asked for.

    Raises:
        VqtoolError: the denoiser has none.
    """
    if not has_dropout(denoiser):
        raise VqtoolError(f"`dropout` {dropout:g}: the denoiser {denoiser} has none; leave it out")
    return dropout


def build_prior(
    kernel: Kernel,
    conditioner: Conditioner,
    grid_spec: GridSpec,
    size: str,
    *,
    seed: int,
    tokens: NDArray[Any],
    denoiser: str = "transformer",
    rule: str = "mixture",
    parameterisation: str | None = None,
    dropout: float = 0.0,
    text_encoder: TextEncoder | None = None,
    num_parts: int | None = None,
    network: Mapping[str, Any] = MappingProxyType({}),
    device: str = "cpu",
) -> Prior:
    """A prior with fresh weights that predicts each token as often as it is found in the grids.

    Args:
        kernel: the forward process.
        conditioner: of the grids.
        grid_spec: of the grids.
        size: one of the denoiser's SIZES.
        seed: of the weights.
        tokens: (N, H, W) as the denoiser sees them, for the frequencies.
        denoiser: one of denoisers.NAMES.
        rule: one of posterior.RULES, the average that the bound is of.
        parameterisation: one of PARAMETERISATIONS; None for one that suits denoiser and rule.
        dropout: of the denoiser, in training.
        text_encoder: whose features the denoiser is told; the null text is learned.
        num_parts: of a token, for a denoiser that sees them apart; the kernel is that of a part.
        network: fields of the denoiser's config beside those of its size.
        device: of the weights; "meta" for none.

    Raises:
        VqtoolError: the denoiser does not take such conditions or has no dropout, or the parameterisation does not go
            with the rule.
    """
    file = denoisers.module(denoiser)
    if text_encoder is None:
        check_condition(denoiser, conditioner.kind)
        told = {name: getattr(conditioner, name) for name in CONDITION_TABLES if hasattr(conditioner, name)}
    else:
        length = len(conditioner.null(1)[0])
        told = {"text_width": text_encoder.config.width, "text_length": length, "learned_null": True}
    if parameterisation == "evidence" and rule == "plug-in":
        raise VqtoolError(
            "`parameterisation` evidence does not go with `rule` plug-in, which adds what x_t says itself"
        )
    if parameterisation is None:
        # The plug-in's own product tells what x_t says: evidence of it in p(x_0) would count twice.
        parameterisation = "direct" if rule == "plug-in" else file.PARAMETERISATION
    if parameterisation not in PARAMETERISATIONS:
        raise ValueError(f"parameterisation is {parameterisation!r}, known are {PARAMETERISATIONS}")
    config = {
        "codebook_size": kernel.codebook_size,
        "grid_size": (grid_spec.grid_size[0], grid_spec.grid_size[1] * (num_parts or 1)),
        "num_steps": kernel.num_steps,
        **told,
        **file.SIZES[size],
        **network,
    }
    if num_parts is not None:
        config["num_parts"] = num_parts
    if dropout:
        config["dropout"] = check_dropout(dropout, denoiser)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        fresh = denoisers.build(denoiser, config)
    counts = np.bincount(tokens.reshape(-1).astype(np.int64), minlength=kernel.codebook_size) + 0.5
    fresh.set_frequencies(torch.from_numpy(counts / counts.sum()))
    return Prior(kernel, fresh, denoiser, conditioner, grid_spec, parameterisation, rule, text_encoder)
