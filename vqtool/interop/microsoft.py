"""VQ-Diffusion's training checkpoints (.pth): text, class and unconditional priors, and what they hold beside.

A file holds the prior's weights twice, as trained (`model`) and averaged (`ema`, which is what is sampled with), the
schedule as buffers, and in full files the codec and CLIP's text tower. The weights do not say how many heads attention
has, nor which activation, and seldom the grid; the YAML file that goes with it does, or options do.
Source: github.com/microsoft/VQ-Diffusion, image_synthesis/engine/solver.py and modeling/transformers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vqtool.conditions import Conditioner, NoCondition, clip, numbered_classes
from vqtool.conditions.clip import ClipCondition
from vqtool.conditions.text_encoders import TextEncoder
from vqtool.denoisers import vq_diffusion
from vqtool.diffusion import kernels
from vqtool.diffusion.kernels import Kernel
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.interop import openai, taming, transformers
from vqtool.interop._contract import Imported, Options
from vqtool.interop._microsoft_names import IGNORED, names_of
from vqtool.interop._sources import Source, count_numbers, tensors_in, without
from vqtool.interop._stacking import fill_stacked
from vqtool.priors import GridSpec, Prior
from vqtool.tokenizers import Tokenizer

NULL_CLASS = 1000  # where there is a row of that number, it is the null class


def recognise(source: Source) -> bool:
    """Whether it holds a prior's weights as VQ-Diffusion's solver writes them."""
    parts = source.content if isinstance(source.content, Mapping) else {}
    names = [*tensors_in(parts.get("ema")), *without("transformer.", tensors_in(parts.get("model")))]
    return any(name.startswith(("transformer.content_emb.", "transformer.to_logits.")) for name in names)


def load(source: Source, options: Options) -> Imported:
    """The prior, and the codec and text tower that are in the file with it.

    Raises:
        FormatError: tensors are missing, left over or do not fit.
        MismatchError: the settings are of other weights.
    """
    notes: list[str] = []
    tensors = _weights(source, options, notes)
    settings = _settings(source, notes)
    shapes = _Shapes.read(tensors, source)
    _compare(shapes, settings, source)
    if settings.get("learnable_cf") and shapes.text_width and not shapes.null_text:
        raise FormatError(
            f"{source.path}: its settings say learnable_cf, but the learned null text, empty_text_embed, is missing "
            "from its weights: guidance would compare with something else"
        )
    kernel = _kernel(tensors, shapes.codebook_size, source, notes)
    config = _config(shapes, settings, source, options, notes)
    denoiser = fill_stacked(lambda: vq_diffusion.Network(config), names_of(config), tensors, source, ignored=IGNORED)
    tower = _text_encoder(shapes, tensors, source)
    reader = tower or options.text_encoder if shapes.text_width else None
    if reader is None and shapes.text_width:
        notes.append("text tower: none in the file; without `text_encoder` the prior cannot read captions")
    prior = Prior(
        kernel=kernel,
        denoiser=denoiser.eval().requires_grad_(False),
        denoiser_name="vq-diffusion",
        conditioner=_conditioner(shapes, reader, source, options, notes),
        grid_spec=GridSpec("", "", config.grid_size, config.grid_size, ""),
        parameterisation="direct",
        text_encoder=reader,
    )
    return Imported(tokenizer=_tokenizer(source, options, notes), prior=prior, text_encoder=tower, notes=notes)


def _tokenizer(source: Source, options: Options, notes: list[str]) -> Tokenizer | None:
    """The codec, by taming's names."""
    model = tensors_in(source.content.get("model"))
    codec = without("content_codec.enc.", model) | without("content_codec.dec.", model)
    return taming.read_vqgan(codec, source.config, source, options, notes=notes) if codec else None


def _weights(source: Source, options: Options, notes: list[str]) -> dict[str, Tensor]:
    """The averaged or the raw weights, by the names that they have in `ema`."""
    model = without("transformer.", tensors_in(source.content.get("model")))
    averaged = tensors_in(source.content.get("ema"))
    if options.weights is not None and not (model and averaged):
        held = "averaged" if averaged else "raw"
        raise FormatError(f"{source.path}: holds {held} weights alone: leave out `weights` {options.weights}")
    if not averaged:
        notes.append("the file holds no averaged weights (ema): the raw ones are taken")
    return model if options.weights == "raw" or not averaged else averaged


def _settings(source: Source, notes: list[str]) -> dict[str, Any]:
    """What the YAML file says of the prior, in one level."""
    try:
        params = source.config["model"]["params"] if source.config else {}
        diffusion = params["diffusion_config"]["params"] if source.config else {}
        names = ("transformer_config", "content_emb_config")
        parts = [diffusion, *(diffusion.get(name, {}).get("params", {}) for name in names)]
        found = {name: value for part in parts for name, value in part.items()}
        found.setdefault("learnable_cf", params.get("learnable_cf"))
    except (KeyError, TypeError, AttributeError):
        notes.append("the settings say nothing of a diffusion model (model.params.diffusion_config): they are not used")
        return {}
    for name in ("timestep_type", "class_type"):
        if "adalayernorm" not in found.get(name, "adalayernorm"):
            raise FormatError(f"{source.path}: {name} {found[name]} is not understood: adalayernorm is")
    return found


@dataclass(frozen=True)
class _Shapes:
    """What the weights say by their shapes."""

    codebook_size: int
    num_steps: int
    num_layers: int
    width: int
    mlp_ratio: int
    convolutional: bool
    learned_time: bool
    table_size: tuple[int, int]
    num_classes: int  # rows of the class tables
    text_width: int
    null_text: tuple[int, ...] | None
    num_cells: int | None  # where a buffer says it

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], source: Source) -> "_Shapes":
        """Of the first tensor of a kind, whichever block has it.

        Raises:
            FormatError: what says the size of the whole is missing.
        """

        def shape(*endings: str) -> tuple[int, ...]:
            return next((tuple(value.shape) for name, value in tensors.items() if name.endswith(endings)), ())

        sizes = {
            "transformer.content_emb.emb.weight": shape("content_emb.emb.weight"),
            "transformer.content_emb.height_emb.weight": shape("content_emb.height_emb.weight"),
            "transformer.content_emb.width_emb.weight": shape("content_emb.width_emb.weight"),
            "transformer.blocks.N.mlp": shape("mlp.0.weight", "mlp.conv1.weight"),
            "log_cumprod_at": shape("log_cumprod_at"),
        }
        missing = [name for name, found in sizes.items() if len(found) < (1 if name.startswith("log_") else 2)]
        if missing:
            raise FormatError(f"{source.path}: tensors are missing: {', '.join(missing)}")
        tokens, height, width, mlp, rates = sizes.values()
        blocks = [name.split(".")[2] for name in tensors if name.startswith("transformer.blocks.")]
        return cls(
            codebook_size=tokens[0] - 1,
            num_steps=rates[0] - 1,
            num_layers=count_numbers(blocks),
            width=tokens[1],
            mlp_ratio=max(1, mlp[0] // tokens[1]),
            convolutional=len(mlp) == 4,
            learned_time=bool(shape("ln1.emb.weight")),
            table_size=(height[0], width[0]),
            num_classes=(shape("ln2.emb.weight") or (0,))[0],
            text_width=(shape("attn2.key.weight") or (0, 0))[1],
            null_text=shape("empty_text_embed") or None,
            num_cells=(shape("attn2.mask") or (None,))[-1],
        )


def _compare(shapes: _Shapes, settings: Mapping[str, Any], source: Source) -> None:
    """Raise unless the settings are those of the weights."""
    found = {
        "num_embed": shapes.codebook_size,
        "diffusion_step": shapes.num_steps,
        "n_layer": shapes.num_layers,
        "n_embd": shapes.width,
        "mlp_hidden_times": shapes.mlp_ratio,
        "mlp_type": "conv_mlp" if shapes.convolutional else "fc",
        "spatial_size": list(shapes.table_size),
        "class_number": shapes.num_classes or settings.get("class_number"),
        "condition_dim": shapes.text_width or settings.get("condition_dim"),
    }
    for name, weights in found.items():
        said = settings.get(name, weights)
        if (list(said) if isinstance(said, tuple) else said) != weights:
            raise MismatchError(
                f"{source.path}: its settings are of other weights: {name} is {said} there, {weights} in the weights: "
                "name the right ones with `config`"
            )


def _kernel(tensors: Mapping[str, Tensor], codebook_size: int, source: Source, notes: list[str]) -> Kernel:
    """The forward process of the buffers, whose last entry is that of t = 0."""
    names = [f"log_cumprod_{rate}t" for rate in "abc"]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise FormatError(f"{source.path}: tensors are missing: {', '.join(missing)}")
    if len({tensors[name].shape for name in names}) > 1:
        raise FormatError(f"{source.path}: {', '.join(names)} are not of one length")
    try:
        alpha_bar, beta_bar, gamma_bar = (tensors[name].double().exp().roll(1) for name in names)
        kernel = kernels.from_rates(alpha_bar, beta_bar, gamma_bar, codebook_size)
    except VqtoolError as error:
        raise FormatError(f"{source.path}: {error}") from error
    origin = "read from the checkpoint" if kernel.schedule == "checkpoint" else "that of the checkpoint, in full digits"
    notes.append(f"schedule: {kernel.schedule} of {kernel.num_steps} steps, kernel {kernel.name}: {origin}")
    return kernel


def _config(
    shapes: _Shapes, settings: Mapping[str, Any], source: Source, options: Options, notes: list[str]
) -> vq_diffusion.Config:
    said: dict[str, Any] = {
        "`num_heads` (published: 16)": options.num_heads or settings.get("n_head"),
        "`activation` (published: gelu2)": options.activation or settings.get("block_activate"),
        "`grid_size` (published: 16, also where the tables of positions have 32x32)": _grid_size(
            shapes, settings, source, options
        ),
    }
    if missing := [what for what, value in said.items() if value is None]:
        raise FormatError(
            f"{source.path}: its weights do not say all, and there is no YAML file of settings beside it: name that "
            f"with `config`, or say {', '.join(missing)}"
        )
    heads, activation, grid = said.values()
    if str(activation).lower() not in ("gelu", "gelu2"):
        raise FormatError(f"{source.path}: block_activate {activation} is not understood: GELU and GELU2 are")
    if grid != shapes.table_size:
        rows, columns = shapes.table_size
        notes.append(f"positions: the first {math.prod(grid)} of tables for {rows}x{columns} cells, along their rows")
    has_null_class = shapes.num_classes == NULL_CLASS + 1
    try:
        return vq_diffusion.Config(
            codebook_size=shapes.codebook_size,
            grid_size=grid,
            num_steps=shapes.num_steps,
            num_layers=shapes.num_layers,
            width=shapes.width,
            num_heads=heads,
            mlp="conv" if shapes.convolutional else "linear",
            mlp_ratio=shapes.mlp_ratio,
            activation=str(activation).lower(),
            time="learned" if shapes.learned_time else "sinusoidal",
            table_size=None if grid == shapes.table_size else shapes.table_size,
            num_classes=shapes.num_classes - has_null_class,
            text_width=shapes.text_width,
            text_length=shapes.null_text[0] if shapes.null_text and shapes.text_width else 0,
            learned_null=bool(has_null_class or (shapes.null_text and shapes.text_width)),
        )
    except ValueError as error:
        raise FormatError(f"{source.path}: {error}") from error


def _grid_size(
    shapes: _Shapes, settings: Mapping[str, Any], source: Source, options: Options
) -> tuple[int, int] | None:
    """(H, W), None where nothing tells."""
    if options.grid_size is not None:
        return options.grid_size
    num_cells = settings.get("content_seq_len", shapes.num_cells)
    said = settings.get("content_spatial_size")
    square = math.isqrt(num_cells or 0)
    known = [shapes.table_size, *([(said[0], said[1])] if said else []), (square, square)]
    if num_cells:
        fitting = [size for size in known if math.prod(size) == num_cells]
        if not fitting:
            raise FormatError(
                f"{source.path}: how {num_cells} cells are laid out is not known: say it with `grid_size`"
            )
        return fitting[0]
    return None


def _conditioner(
    shapes: _Shapes, tower: TextEncoder | None, source: Source, options: Options, notes: list[str]
) -> Conditioner:
    if shapes.num_classes:
        known = shapes.num_classes - (shapes.num_classes == NULL_CLASS + 1)
        conditioner, note = numbered_classes(known)
        notes.append(note)
        return conditioner
    if not shapes.text_width:
        return NoCondition()
    if tower is None:
        return ClipCondition()
    if tower.config.width != shapes.text_width:
        raise MismatchError(
            f"{source.path}: the prior attends to features of {shapes.text_width} numbers, the text encoder gives "
            f"{tower.config.width}: it is another one's"
        )
    return _captions(tower, source, options)


def _text_encoder(shapes: _Shapes, tensors: Mapping[str, Tensor], source: Source) -> TextEncoder | None:
    """CLIP's text tower, whose weights are half precision, computed in float32."""
    tower = without("condition_emb.", tensors)
    return openai.read_text_encoder(tower, source) if tower and shapes.text_width else None


def _captions(tower: TextEncoder, source: Source, options: Options) -> ClipCondition:
    """Captions in the tokens that the tower knows."""
    length, known = tower.config.max_length, tower.config.vocabulary_size
    vocabulary = (
        transformers.read_vocabulary(options.vocabulary, length).vocabulary if options.vocabulary else clip.standard()
    )
    if vocabulary.size > known:
        raise MismatchError(
            f"{source.path}: its text tower knows {known} tokens, the vocabulary has {vocabulary.size}: "
            "name the folder of the right one with `vocabulary`"
        )
    return ClipCondition(vocabulary, max_length=length, pad=0)
