"""Image tokenizers: images <-> token grids.

The contract of a tokenizer: `latents` (B, 3, h, w) -> (B, H, W, D), a `codebook` (K, D), `encode` to the token that
its lookup finds, `decode` back to images. One artifact holds network, lookup and codebook.

A network is a file here with Config, Encoder and Decoder, and a row in NETWORKS. The lookup is one of LOOKUPS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqtool import artifacts
from vqtool.artifacts import BUILTIN, Header
from vqtool.checks import check_images, check_tokens
from vqtool.errors import FormatError, MismatchError, VqtoolError, warn
from vqtool.grids import GridHeader
from vqtool.inputs import input_name
from vqtool.products import computing
from vqtool.tokenizers import magvit2, maskgit, titok, vqgan, vqvae
from vqtool.tokenizers._checks import check_grids, makes_same_tokens
from vqtool.tokenizers._sizes import NetworkConfig, find_grid_size, find_image_size
from vqtool.tokenizers.quantizers import highest, nearest
from vqtool.tokenizers.titok import TitokConfig
from vqtool.tokenizers.vqvae import channels_last
from vqtool.trust import build_network, parse_record

__all__ = [
    "BUILTIN",
    "LOOKUPS",
    "NETWORKS",
    "SIZES",
    "NetworkConfig",
    "Tokenizer",
    "load_tokenizer",
    "save_tokenizer",
    "tokenizer_of",
]

KIND = "tokenizer"
DEFAULT_SIZE = (64, 64)  # pixels
_LATER = ("decoder_channels", "strided")  # fields that older files lack: left out where off, so that fingerprints stay
NETWORKS = {"vqvae": vqvae, "vqgan": vqgan, "maskgit": maskgit, "magvit2": magvit2, "titok": titok}
LOOKUPS = (
    "nearest",  # the code at the smallest Euclidean distance
    "cosine",  # the same on the unit sphere: latents and codes have length 1
    "bounded",  # the same in a cube: tanh of the latents
    "dot",  # the code of the largest dot product
    "projection",  # the highest value of a learned linear map of the latent
)
SIZES: dict[str, NetworkConfig] = {  # that new tokenizers are made in: "vqvae-f8", "vqgan-f16-small", ...
    **{f"vqvae-{size}": config for size, config in vqvae.SIZES.items()},
    **{f"vqgan-{size}": config for size, config in vqgan.SIZES.items()},
}


class NamesTokenizer(Protocol):
    """What says which tokenizer its tokens are of: a header of grids, a prior's `grid_spec`."""

    @property
    def tokenizer_fingerprint(self) -> str:
        """That it is known by; empty if unknown."""

    @property
    def tokenizer_location(self) -> str:
        """ "builtin" or a path, where it was."""


class Tokenizer(nn.Module):
    """Turns images into grids of codebook indices and back."""

    codebook: Tensor  # (K, D): what tokens decode to
    code_map: Tensor  # (K_full,) int64: full code -> token; only with num_full_codes
    full_codebook: Tensor  # (K_full, D): what is looked up in; only with num_full_codes, not with "projection"
    projection: Tensor  # (K or K_full, D), only with "projection"
    projection_bias: Tensor  # (K or K_full,), only with "projection"

    def __init__(self, config: NetworkConfig, *, lookup: str = "nearest", num_full_codes: int | None = None) -> None:
        """A tokenizer without content.

        Args:
            config: of the network.
            lookup: one of LOOKUPS.
            num_full_codes: of the codebook that a code map brings down to K; None if there is no map.
        """
        super().__init__()
        if lookup not in LOOKUPS:
            raise ValueError(f"lookup is {lookup!r}, known are {LOOKUPS}")
        self.config = config
        self.lookup = lookup
        self.num_full_codes = num_full_codes
        network = NETWORKS[self.network]
        self.encoder = channels_last(network.Encoder(config))
        self.decoder = channels_last(network.Decoder(config))
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.code_dim))
        looked_up = num_full_codes or config.codebook_size
        if num_full_codes is not None:
            self.register_buffer("code_map", torch.zeros(num_full_codes, dtype=torch.int64))
        if lookup == "projection":
            self.register_buffer("projection", torch.zeros(looked_up, config.code_dim))
            self.register_buffer("projection_bias", torch.zeros(looked_up))
        elif num_full_codes is not None:
            self.register_buffer("full_codebook", torch.zeros(num_full_codes, config.code_dim))
        self.fingerprint = ""  # of the artifact it was loaded from
        self.codes_of = ""  # identity of the tokenizer whose encoder and codes it kept; empty if they are its own
        self.location = ""  # where that is: a path, or "builtin"
        self.history: tuple[dict[str, Any], ...] = ()  # of that artifact
        self.half_precision = False  # whether its weights are stored as float16
        self.most_at_once: int | None = None  # images, where memory ran out

    @property
    def network(self) -> str:
        """One of NETWORKS."""
        return next(name for name, network in NETWORKS.items() if isinstance(self.config, network.Config))

    @property
    def identity(self) -> str:
        """What grids and priors know it by: a fingerprint, which stays where the decoder alone learns."""
        return self.codes_of or self.fingerprint

    def take_name(self, header: Header, location: str) -> None:
        """Be what the file with this header is, at this location."""
        self.fingerprint, self.codes_of = header.fingerprint, header.parents.get(artifacts.CODES, "")
        self.location, self.history = location, header.history

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.config.codebook_size

    @property
    def factor(self) -> int:
        """Pixels a side that one token stands for; 0 where tokens have no place in the image."""
        return self.config.factor

    @property
    def only_size(self) -> tuple[int, int] | None:
        """(h, w) pixels of all images, where there is only one size."""
        return self.config.only_size if isinstance(self.config, TitokConfig) else None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.codebook.device

    @property
    def usual_size(self) -> tuple[int, int]:
        """(h, w) pixels that images are brought to where nobody says."""
        return self.only_size or DEFAULT_SIZE

    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the grid for images of (h, w) pixels.

        Raises:
            VqtoolError: a side is no multiple of the factor, or there is only one size, and it is another one.
        """
        return find_grid_size(self.config, image_size)

    def image_size(self, grid_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) pixels of the images of grids of (H, W) cells.

        Raises:
            MismatchError: there is only one size of grids, and it is another one.
        """
        return find_image_size(self.config, grid_size)

    def latents(self, images: Tensor) -> Tensor:
        """What the encoder makes of images, before the lookup.

        Args:
            images: (B, 3, h, w) float in [-1, 1], of a size that `grid_size` takes.

        Returns:
            (B, H, W, D) float32; of length 1 with the lookup "cosine", in (-1, 1) with "bounded".

        Raises:
            ValueError: of another shape or type, or far outside of [-1, 1].
            VqtoolError: a side is no multiple of the factor.
        """
        check_images(images)
        self.grid_size((images.shape[-2], images.shape[-1]))
        latents: Tensor = self.encoder(images.to(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        if self.lookup == "cosine":
            return functional.normalize(latents, dim=-1)
        return latents.tanh() if self.lookup == "bounded" else latents

    def look_up(self, vectors: Tensor) -> Tensor:
        """Latents (N, D) to tokens (N,) int64; of equals the first code."""
        if self.lookup == "projection":
            found = highest(vectors, self.projection, self.projection_bias)
        else:
            codebook = self.codebook if self.num_full_codes is None else self.full_codebook
            dot = self.lookup == "dot"
            found = highest(vectors, codebook, codebook.new_zeros(len(codebook))) if dot else nearest(vectors, codebook)
        return found if self.num_full_codes is None else self.code_map[found]

    @torch.no_grad()  # not inference_mode: others may put what comes out of here into a graph of their own
    def encode(self, images: Tensor, *, precision: str = "auto") -> Tensor:
        """Images to tokens.

        Args:
            images: (B, 3, h, w) float in [-1, 1], of a size that `grid_size` takes.
            precision: of the encoder, one of `products.PRECISIONS`; the lookup is in float32.

        Returns:
            (B, H, W) int64 in [0, K).

        Raises:
            ValueError, VqtoolError: as `latents`.
        """
        with computing(images.device, precision):
            latents = self.latents(images)
        return self.look_up(latents.float().reshape(-1, latents.shape[-1])).view(latents.shape[:-1])

    @torch.no_grad()  # not inference_mode: others may put what comes out of here into a graph of their own
    def decode(self, grid: Tensor, *, precision: str = "auto") -> Tensor:
        """Tokens to images.

        Args:
            grid: (B, H, W) integers in [0, K).
            precision: of the decoder, one of `products.PRECISIONS`.

        Returns:
            (B, 3, h, w) float32, about [-1, 1], not clamped.

        Raises:
            ValueError: of another shape or type, or a token is outside the codebook.
        """
        check_tokens(grid, self.codebook_size, wait=True)  # on a GPU a wrong token ends the process
        with computing(grid.device, precision):
            return self.decode_codes(self.codebook[grid.long()]).float()

    def decode_codes(self, codes: Tensor) -> Tensor:
        """(B, H, W, D) vectors to (B, 3, h, w) images."""
        images: Tensor = self.decoder(codes.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last))
        return images


def save_tokenizer(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    parent: Tokenizer | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Header:
    """Write a tokenizer to one file.

    Args:
        path: of the file.
        tokenizer: what to save; as float16, at half the size, if `half_precision` is on.
        parent: what it was made from; where all but the decoder stayed as it was, the file is known by the same name.
        history: of the steps that made it.
        summary: steps, seconds, scores.
        force: overwrite.
    """
    tensors = {
        name: (tensor.half() if tokenizer.half_precision and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in tokenizer.state_dict().items()
    }
    fields = {name: value for name, value in asdict(tokenizer.config).items() if name not in _LATER or value}
    config = {"network": tokenizer.network, **fields}
    if tokenizer.lookup != "nearest":
        config["lookup"] = tokenizer.lookup
    if tokenizer.num_full_codes is not None:
        config["num_full_codes"] = tokenizer.num_full_codes
    parents = {} if parent is None else {KIND: parent.fingerprint}
    if parent is not None and parent.identity and makes_same_tokens(tokenizer, tensors, parent):
        parents[artifacts.CODES] = parent.identity
    return artifacts.save(
        path, kind=KIND, config=config, tensors=tensors, parents=parents, history=history, summary=summary, force=force
    )


@dataclass(frozen=True)
class _Lookup:
    """What stands in the config beside the network's own fields."""

    lookup: str = "nearest"
    num_full_codes: int | None = None


_LOOKUP_FIELDS = ("lookup", "num_full_codes")
MAX_TOKENS = 1 << 32  # of a grid file


def load_tokenizer(path_or_name: str | Path = BUILTIN, *, fingerprint: str | None = None) -> Tokenizer:
    """Load a tokenizer, in eval mode on the CPU.

    Args:
        path_or_name: a file, or "builtin" for the one inside the package.
        fingerprint: that it has to be known by; None takes any.

    Raises:
        FormatError: not a tokenizer, or damaged.
        MismatchError: it is known by another fingerprint.
    """
    name = str(path_or_name)
    header, tensors = artifacts.load(artifacts.find(name, KIND), KIND)
    if fingerprint not in (None, header.identity, header.fingerprint):
        raise MismatchError(
            f"{name}: tokenizer {header.identity} is not the tokenizer {fingerprint} that this input was made with: "
            f"name the right file as `tokenizer`, encode the images again with `vqtool encode -t {name}`, or, if "
            f"only the codes were rebuilt, convert the grids with `vqtool codebook remap GRIDS -t {name}`"
        )
    options = dict(header.config)
    network = options.pop("network", None)
    if not isinstance(network, str) or network not in NETWORKS:
        raise FormatError(f"{name}: network {network!r:.60} is not known to this version of vqtool")
    where = f"{name}: its tensors do not fit its config"
    lookup = parse_record(_Lookup, {key: options.pop(key) for key in _LOOKUP_FIELDS if key in options}, where)
    if lookup.lookup not in LOOKUPS:
        raise FormatError(f"{where}: lookup is {lookup.lookup!r:.60}, known are {LOOKUPS}")
    config = parse_record(NETWORKS[network].Config, options, where)
    tokenizer = build_network(lambda: Tokenizer(config, **asdict(lookup)), tensors, where)  # as float32
    if not 0 < config.codebook_size <= MAX_TOKENS:
        raise FormatError(f"{where}: {config.codebook_size} codes")
    if lookup.num_full_codes is not None:
        low, high = tokenizer.code_map.aminmax()
        if not 0 <= low <= high < config.codebook_size:
            raise FormatError(f"{where}: its code map leads to codes from {int(low)} to {int(high)}")
    tokenizer.take_name(header, name)
    tokenizer.half_precision = tensors["codebook"].dtype == torch.float16
    return tokenizer.eval()


def tokenizer_of(
    named: NamesTokenizer,
    source: str | Path | None = None,
    *,
    given: str | Path | None = None,
    parameter: str = "tokenizer",
    force: bool = False,
) -> Tokenizer:
    """The tokenizer of token grids or of a prior: the one place where it is looked for.

    Args:
        named: a header of grids, or a prior's `grid_spec`.
        source: the file that it stands in; its folder is looked in if the path that is named leads nowhere.
        given: a file or "builtin", taken instead of the one that is named; it has to be the same tokenizer.
        parameter: what `given` comes from, for messages.
        force: take a given tokenizer that is another one, with a warning, as long as codes and grids fit.

    Raises:
        MismatchError: what is there is another tokenizer, or its grids are not of that size.
        VqtoolError: nothing is there, or nothing is named.
    """
    fingerprint, location = named.tokenizer_fingerprint, named.tokenizer_location
    place: str | Path | None = given or location
    if given is None and not fingerprint:
        raise VqtoolError(
            f"{input_name(source or '-')} does not say which tokenizer its tokens are of: name it with --{parameter}; "
            "a prior that was imported without one says it after `vqtool import SOURCE --tokenizer FILE`"
        )
    if given is None and location != BUILTIN:
        near = None if source is None or str(source) == "-" else Path(source).parent
        place = artifacts.find_named(fingerprint, location, near=near)
    if place is None:
        raise VqtoolError(
            f"the tokenizer {fingerprint} that this input was made with is not at {location}: "
            f"name its file with --{parameter}"
        )
    try:
        found = load_tokenizer(place, fingerprint=fingerprint or None)
    except MismatchError as error:
        if force and given is not None:
            found = load_tokenizer(place)
            warn(f"{place}: another tokenizer than {fingerprint}, which these tokens are of: images may be nonsense")
            return _checked(named, found, source)
        if parameter == "tokenizer":
            raise
        raise MismatchError(f"{place} is not the tokenizer {fingerprint}: name its file with --{parameter}") from error
    return _checked(named, found, source)


def _checked(named: NamesTokenizer, tokenizer: Tokenizer, source: str | Path | None) -> Tokenizer:
    """A tokenizer, unless grids under a header cannot be its own: MismatchError."""
    if isinstance(named, GridHeader):
        check_grids(named, tokenizer, str(source or "input"))
    return tokenizer
