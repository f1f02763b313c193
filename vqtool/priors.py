"""A prior: schedule and kernel + denoiser + condition, in one file. It models token grids of one tokenizer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtool import adapters, artifacts, conditions, denoisers
from vqtool.artifacts import BUILTIN
from vqtool.checks import check_times, check_tokens
from vqtool.conditions import Conditioner
from vqtool.conditions.text_encoders import TextEncoder, find_named_text_encoder
from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.diffusion.kernels import KERNELS, Kernel
from vqtool.diffusion.parameterisations import PARAMETERISATIONS, log_probabilities
from vqtool.diffusion.parts import join_parts, split_tokens
from vqtool.diffusion.posterior import RULES
from vqtool.distributed import to_device
from vqtool.errors import FormatError, MismatchError, VqtoolError, size_text
from vqtool.grids import GridHeader
from vqtool.grids.batch import check_sizes
from vqtool.progress import Notify, ignore
from vqtool.registry import check_known
from vqtool.trust import build_network, parse_record

KIND = "prior"
DEFAULT = "prior.safetensors"  # what `train-prior` writes


@dataclass(frozen=True)
class GridSpec:
    """The grids that a prior was trained on: what its samples are decoded with."""

    tokenizer_fingerprint: str
    tokenizer_location: str  # "builtin" or a path, as in the grid file
    grid_size: tuple[int, int]  # (H, W) cells
    image_size: tuple[int, int]  # (height, width) pixels
    preprocessing: str

    @classmethod
    def of(cls, header: GridHeader) -> "GridSpec":
        """Those under a header of a grid file."""
        return cls(**{field.name: getattr(header, field.name) for field in fields(cls)})


@dataclass(frozen=True, eq=False)
class Prior:
    """A trained model of token grids."""

    kernel: Kernel
    denoiser: Denoiser
    denoiser_name: str  # one of denoisers.NAMES
    conditioner: Conditioner
    grid_spec: GridSpec
    parameterisation: str = "evidence"
    rule: str = "mixture"  # one of posterior.RULES: the average over x_0 that it was trained with
    text_encoder: TextEncoder | None = None  # turns the tokens of captions into what the denoiser attends to
    fingerprint: str = ""  # of the file; empty before it is saved
    location: str = ""  # of the file it was loaded from
    parent: str = ""  # fingerprint of the prior that it was made of, if any
    history: tuple[dict[str, Any], ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)  # arguments of `sample` that its makers published

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    @property
    def num_parts(self) -> int:
        """G, of a token; kernel, denoiser and samplers see each as a cell: see `diffusion.parts`."""
        return int(getattr(getattr(self.denoiser, "config", None), "num_parts", 1))

    @property
    def codebook_size(self) -> int:
        """K, of its tokens; the kernel's is that of their parts."""
        return int(self.kernel.codebook_size**self.num_parts)

    @property
    def cells(self) -> tuple[int, int]:
        """(H, G * W) of what the denoiser sees."""
        return self.grid_spec.grid_size[0], self.grid_spec.grid_size[1] * self.num_parts

    def split(self, tokens: Tensor) -> Tensor:
        """Tokens (..., H, W) in [0, K], K where masked, as the denoiser sees them, (..., H, G * W)."""
        return split_tokens(tokens, self.kernel.codebook_size, self.num_parts)

    def join(self, parts: Tensor) -> Tensor:
        """The other way round; a token is masked where one of its parts is."""
        return join_parts(parts, self.kernel.codebook_size, self.num_parts)

    def to(self, device: torch.device | str) -> "Prior":
        """The same prior with its networks on that device."""
        encoder = self.text_encoder.to(device) if self.text_encoder is not None else None
        return replace(self, denoiser=self.denoiser.to(device), text_encoder=encoder)

    def encode_condition(self, condition: Tensor | None, num: int) -> EncodedCondition:
        """Conditions as the denoiser uses them: the text encoder and all that does not depend on x_t run here, once.

        Args:
            condition: (num, ...) int64 from `conditioner.encode`, or (num, L, D) features of captions; a row of zeros
                is the denoiser's learned null condition, if it has one. None: the null condition for all.
            num: how many samples.

        Raises:
            VqtoolError: there is no text encoder to read captions with.
            ValueError: it is not one condition a grid.
        """
        if condition is None:
            condition = self.conditioner.null(num)
        if not isinstance(condition, Tensor) or condition.ndim < 1 or len(condition) != num:
            given = tuple(condition.shape) if isinstance(condition, Tensor) else repr(condition)[:60]
            raise ValueError(f"{num} conditions from `conditioner.encode` are needed, not {given}")
        return self.denoiser.encode_condition(self.read_texts(condition).to(self.device))

    def read_texts(self, condition: Tensor, *, together: bool = False) -> Tensor:
        """Conditions as the denoiser takes them: captions by the features that the text encoder makes of them, if any.

        Args:
            condition: (B, ...) int64 from `conditioner.encode`, or features.
            together: read all in one call, as training does; else one by one, so that the batch does not matter.

        Returns:
            The same, or (B, L, D) features; zeros for a learned null.

        Raises:
            VqtoolError: there is no text encoder to read captions with.
        """
        if condition.is_floating_point() or not self.conditioner.needs_text_encoder:
            return condition
        rows, places = torch.unique(condition.cpu(), dim=0, return_inverse=True)
        is_null = (rows == self.conditioner.null(1)).all(1)
        if self.text_encoder is None and self.denoiser.has_learned_null and bool(is_null.all()):
            return torch.zeros(len(condition), self.denoiser.config.text_length, self.denoiser.config.text_width)
        if self.text_encoder is None:
            raise VqtoolError(
                "the prior reads captions by a text encoder, but was imported without one: import it again with "
                "its `text_encoder`"
            )
        device = torch.device("cpu") if self.text_encoder.has_read else self.device
        parts = to_device(rows, device).chunk(1 if together else len(rows))
        features = torch.cat([self.text_encoder.to(device)(part) for part in parts])
        if self.denoiser.has_learned_null:
            features = features.masked_fill(to_device(is_null, device)[:, None, None], 0.0)
        return to_device(features[to_device(places, device)], self.device)

    def log_x0(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | EncodedCondition | None = None,
        cells: Tensor | None = None,
        *,
        raw: bool = False,
    ) -> Tensor:
        """Log p(x_0 | x_t, condition).

        Args:
            x_t: (B, H, W) int64 tokens or mask_id, on the prior's device.
            t: (B,) int64 in [0, T].
            condition: as for `encode_condition`, or its result.
            cells: (B, n) int64 in [0, H * W): the cells to predict; None for all.
            raw: return the logits, whose exp sums to anything.

        Returns:
            (B, H, W, K) float32 log-probabilities, nats, or (B, n, K) with `cells`; exp sums to 1 over the last axis.

        Raises:
            ValueError: x_t, t or the condition is of another shape or type, or (on the CPU) out of range.
        """
        kernel = self.kernel
        check_tokens(x_t, kernel.codebook_size + kernel.has_mask, "x_t")
        check_times(t, len(x_t), kernel.num_steps)
        if not isinstance(condition, EncodedCondition):
            condition = self.encode_condition(condition, len(x_t))
        logits = self.denoiser(x_t, t, condition, cells)
        if cells is None:
            return log_probabilities(logits, x_t, t, self.kernel, self.parameterisation, raw=raw)
        seen = x_t.flatten(1).gather(1, cells)[:, None]  # (B, 1, n): a grid of one row
        return log_probabilities(logits[:, None], seen, t, self.kernel, self.parameterisation, raw=raw)[:, 0]

    def check_grids(self, header: GridHeader, name: str) -> None:
        """Raise unless these grids are of the kind that the prior was trained on; an unnamed tokenizer fits any.

        Raises:
            MismatchError: another tokenizer, codebook size or grid size.
        """
        mine = self.grid_spec
        for what, own, theirs, remedy in (
            (
                "tokenizer",
                mine.tokenizer_fingerprint or header.tokenizer_fingerprint,
                header.tokenizer_fingerprint,
                f"encode the images with {mine.tokenizer_location}, or train a prior on these grids; if that is their "
                f"tokenizer with other codes, `vqtool codebook remap {name} -t {mine.tokenizer_location}` does it",
            ),
            ("codebook size", self.codebook_size, header.codebook_size, "train a prior on these grids"),
            ("grid size", size_text(mine.grid_size), size_text(header.grid_size), "encode at the same size"),
        ):
            if own != theirs:
                raise MismatchError(f"{name} has {what} {theirs}, but the prior has {what} {own}: {remedy}")

    def check_tokenizer(self, fingerprint: str, location: str) -> None:
        """Raise unless a tokenizer is the one whose tokens the prior models.

        Raises:
            MismatchError: it is another one.
        """
        if fingerprint != self.grid_spec.tokenizer_fingerprint:
            raise MismatchError(
                f"{location} has fingerprint {fingerprint}, but the prior was trained on tokens of the tokenizer "
                f"{self.grid_spec.tokenizer_fingerprint} ({self.grid_spec.tokenizer_location}): use that one, or "
                "encode the images with this one and train a prior on them"
            )

    def save(self, path: str | Path, *, force: bool = False) -> "Prior":
        """Write the prior to a file; returns it with its fingerprint.

        Raises:
            VqtoolError: the file exists and `force` is off, or it cannot be written.
            ValueError: its text encoder has not been saved.
        """
        parents, encoder = {"tokenizer": self.grid_spec.tokenizer_fingerprint}, self.text_encoder
        if self.parent:
            parents["prior"] = self.parent
        tensors = {f"denoiser.{name}": tensor for name, tensor in self.denoiser.state_dict().items()}
        tensors |= {f"condition.{name}": tensor for name, tensor in self.conditioner.tensors().items()}
        tensors |= {"kernel.alpha_bar": self.kernel.alpha_bar, "kernel.gamma_bar": self.kernel.gamma_bar}
        config = {
            "kernel": self.kernel.config,
            "denoiser": {"name": self.denoiser_name, **asdict(self.denoiser.config)},
            "condition": self.conditioner.config(),
            "parameterisation": self.parameterisation,
            "rule": self.rule,
            "origin": asdict(self.grid_spec),
            **({"sampling": dict(self.sampling)} if self.sampling else {}),
        }
        if encoder is not None:
            if not encoder.fingerprint:
                raise ValueError("the text encoder has no fingerprint: save it first, then the prior")
            config["text_encoder"] = {"fingerprint": encoder.fingerprint, "location": encoder.location}
            parents["text_encoder"] = encoder.fingerprint
        header = artifacts.save(
            path, kind=KIND, config=config, tensors=tensors, parents=parents,
            history=self.history, summary=self.summary, force=force,
        )  # fmt: skip
        return replace(self, fingerprint=header.fingerprint)


def find_prior(named: str | Path | None, *, notify: Notify = ignore) -> str:
    """The prior to use, for `load_prior`: the one that is named, else the one that `train-prior` left here, else ours.

    Args:
        named: a file or "builtin"; None if nobody names one.
        notify: is told where the built-in prior stands in for one that is not there.
    """
    if named is not None:
        return str(named)
    if Path(DEFAULT).exists() or not artifacts.builtin_path(KIND).is_file():
        return DEFAULT
    notify(f"no {DEFAULT} here: the built-in prior is used (`vqtool info builtin` says what it knows)")
    return BUILTIN


def fits_builtin(header: GridHeader, *, size: bool = False) -> bool:
    """Whether there is a built-in prior, and grids of these are of its tokenizer; with `size`, of its size too."""
    path = artifacts.builtin_path(KIND)
    if not path.is_file():
        return False
    found = artifacts.read_header(path)
    is_its_size = tuple(found.config["origin"]["grid_size"]) == header.grid_size
    return found.parents.get("tokenizer") == header.tokenizer_fingerprint and (is_its_size or not size)


def load_prior(path_or_name: str | Path = BUILTIN) -> Prior:
    """The prior in a file, or "builtin" for the one inside the package; on the CPU, ready to be sampled.

    Of an adapter, the prior that it is for with the adapter in its weights.

    Raises:
        FormatError: not a prior, or damaged: the missing tensors are named.
        MismatchError: its text encoder is not the one it was trained with.
        VqtoolError: it cannot be read, or its text encoder is not there.
    """
    path = artifacts.find(path_or_name, KIND)
    if not path.is_file():
        raise VqtoolError(f"{path}: no such file: train a prior with `vqtool train-prior`, or name another one")
    if artifacts.read_header(path).kind == adapters.KIND:
        return _load_adapted(path)
    header, tensors = artifacts.load(path, KIND)
    config = parse_record(_Config, header.config, f"{path}: its config is damaged, or of another version of vqtool")
    options = dict(config.denoiser)
    name = options.pop("name", None)
    try:
        prior = Prior(
            kernel=Kernel(
                **asdict(config.kernel), alpha_bar=_table(tensors, "alpha_bar"), gamma_bar=_table(tensors, "gamma_bar")
            ),
            denoiser=build_network(lambda: denoisers.build(name, options), _part(tensors, "denoiser."), "denoiser"),
            denoiser_name=name,
            conditioner=conditions.load(config.condition, _part(tensors, "condition.")),
            grid_spec=config.origin,
            parameterisation=config.parameterisation,
            rule=config.rule,
            fingerprint=header.fingerprint,
            location=str(path_or_name),
            parent=header.parents.get(KIND, ""),
            history=header.history,
            summary=header.summary,
            sampling=config.sampling,
        )
        _check_parts(prior)
    except (VqtoolError, ValueError) as error:
        raise FormatError(f"{path}: {error}") from error
    prior.denoiser.eval().requires_grad_(False)
    if config.text_encoder is None:
        return prior
    return replace(prior, text_encoder=find_named_text_encoder(**asdict(config.text_encoder), near=path.parent))


def _load_adapted(path: Path) -> Prior:
    adapter, header, tensors = adapters.Adapter.load(path)
    place: str | Path | None = adapter.location
    if place != BUILTIN:
        place = artifacts.find_named(adapter.prior, adapter.location, near=path.parent)
    if place is None:
        raise VqtoolError(f"{path} is an adapter for the prior {adapter.prior}, which is not at {adapter.location}")
    prior = load_prior(place)
    if prior.fingerprint != adapter.prior:
        raise MismatchError(f"{path} is an adapter for the prior {adapter.prior}, but {place} is {prior.fingerprint}")
    adapter.merge(prior.denoiser, tensors, str(path))
    return replace(
        prior, fingerprint=header.fingerprint, location=str(path), parent=adapter.prior, history=header.history
    )


@dataclass(frozen=True)
class _KernelConfig:
    name: str
    schedule: str
    codebook_size: int
    num_steps: int


@dataclass(frozen=True)
class _Named:
    fingerprint: str
    location: str


@dataclass(frozen=True)
class _Config:
    """The config in a prior's header."""

    kernel: _KernelConfig
    denoiser: dict[str, Any]
    condition: dict[str, Any]
    parameterisation: str
    origin: GridSpec
    rule: str = "mixture"  # files of version 0.1 do not say it
    text_encoder: _Named | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


def _check_parts(prior: Prior) -> None:
    """Raise VqtoolError unless the parts of a prior are of the same codes, steps, grids and conditions."""
    config, kernel, conditioner = prior.denoiser.config, prior.kernel, prior.conditioner
    check_known("kernel", kernel.name, KERNELS)
    check_known("parameterisation", prior.parameterisation, PARAMETERISATIONS)
    check_known("rule", prior.rule, RULES)
    tables = () if conditioner.needs_text_encoder else ("num_classes", "vocabulary_size", "max_length")
    for what, own, other in (
        ("codes", config.codebook_size, kernel.codebook_size),
        ("steps", config.num_steps, kernel.num_steps),
        ("cells", config.grid_size, prior.cells),
        *((name, getattr(config, name, 0), getattr(conditioner, name, 0)) for name in tables),
    ):
        if own != other:
            raise FormatError(f"its parts do not fit together: {what} are {own} and {other}")
    if min(*prior.cells, *prior.grid_spec.image_size) < 1:
        raise FormatError("its grids have no cells")
    check_sizes(prior.grid_spec.grid_size, prior.grid_spec.image_size)
    if conditioner.needs_text_encoder != bool(getattr(config, "text_width", 0)):
        raise FormatError("its denoiser and its captions do not fit together")


def _table(tensors: Mapping[str, Tensor], rate: str) -> Tensor:
    """(T + 1,) rates of a kernel."""
    name = f"kernel.{rate}"
    if name not in tensors:
        raise FormatError(f"damaged: the tensor {name} is missing")
    return tensors[name]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
