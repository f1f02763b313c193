"""VQ-DDM's priors: Lightning checkpoints (last.ckpt), and the YAML file of settings beside them.

The network is in one twice, as `_nn.*` and below `_denoising.`, where its name tells which diffusion it was trained
with: `_denoise_fn` the plain one, `_nn` the one that adds x_t to the logits. The rates are buffers. What the weights
show is read off them; of the settings only the grid and the heads of attention are needed, and the others checked.
Source: github.com/anonymrelease/VQ-DDM, DDM/model and DDM/solver.py.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vqtool.conditions import Conditioner, NoCondition, numbered_classes
from vqtool.denoisers import Denoiser, guided_unet, unet
from vqtool.diffusion import kernels, schedules
from vqtool.diffusion.kernels import Kernel
from vqtool.errors import FormatError, VqtoolError
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, count_numbers, fill, listed, tensors_in, without
from vqtool.priors import GridSpec, Prior
from vqtool.trust import sketch

PLAIN, RESIDUAL, COPY = "_denoising._denoise_fn.", "_denoising._nn.", "_nn."
RATES = ("_denoising.log_alpha", "_denoising.log_cumprod_alpha")
LEFT_OUT = r"_denoising\.(log_1_min_(cumprod_)?alpha|Lt_history|Lt_count)"
CLASSES = "label_emb.weight"
PUBLISHED_GRID, PUBLISHED_HEADS = (16, 16), 1
TOLERANCE = 1e-3  # between log_cumprod_alpha, which is float32, and the sum of log_alpha

UNET_NAMES = (  # pattern of ours -> theirs, in this order
    (r"^tokens\.", "embedding."),
    (r"^time\.", "mlp."),
    (r"^classes\.", "label_emb."),
    (r"^(down|up)\.(\d+)\.first\.", r"\1s.\2.0."),
    (r"^(down|up)\.(\d+)\.second\.", r"\1s.\2.1."),
    (r"^(down|up)\.(\d+)\.attention\.", r"\1s.\2.2."),
    (r"^(down|up)\.(\d+)\.resize\.", r"\1s.\2.3.conv."),
    (r"^middle\.first\.", "mid_block1."),
    (r"^middle\.attention\.", "mid_attn."),
    (r"^middle\.second\.", "mid_block2."),
    (r"\.time\.", ".mlp.1."),
    (r"\.first\.", ".block1.block."),
    (r"\.second\.", ".block2.block."),
    (r"\.skip\.", ".res_conv."),
    (r"\.gain$", ".fn.g"),
    (r"\.(qkv|out)\.", r".fn.fn.to_\1."),
    (r"^last\.", "final_conv.0.block."),
    (r"^head\.", "final_conv.1."),
)
GUIDED_NAMES = (
    (r"^time\.", "time_embed."),
    (r"^down\.0\.0\.", "input_blocks.0.0."),
    (r"^down\.(\d+)\.0\.(weight|bias)$", r"input_blocks.\1.0.op.\2"),
    (r"^down\.", "input_blocks."),
    (r"^middle\.", "middle_block."),
    (r"^up\.(\d+)\.(\d)\.(weight|bias)$", r"output_blocks.\1.\2.conv.\3"),
    (r"^up\.", "output_blocks."),
    (r"\.first_norm\.", ".in_layers.0."),
    (r"\.first\.", ".in_layers.2."),
    (r"\.time\.", ".emb_layers.1."),
    (r"\.second_norm\.", ".out_layers.0."),
    (r"\.second\.", ".out_layers.3."),
    (r"\.skip\.", ".skip_connection."),
    (r"\.out\.", ".proj_out."),
    (r"^norm\.", "out.0."),
    (r"^head\.", "out.2."),
)
UNUSED = r"cat_embedding\.weight|input_conv\.(weight|bias)"  # of the guided network, and of the one with classes


def recognise(source: Source) -> bool:
    """Whether it holds the state of VQ-DDM's diffusion."""
    return any(name.startswith((PLAIN, RESIDUAL)) or name in RATES for name in _state(source))


def load(source: Source, options: Options) -> Imported:
    """The prior; its tokenizer is a file of its own.

    Raises:
        FormatError: tensors are missing, left over or do not fit, or the settings contradict them.
    """
    state = _state(source)
    rates = _rates(state, source)
    prefix, weights = _network(state, source)
    notes = ["weights: those of the last step; VQ-DDM keeps no averaged ones"]
    guided = any(name.startswith("input_blocks.") for name in weights)
    grid_size = _grid_size(source, options, notes)
    denoiser: Denoiser
    num_classes = 0
    try:
        if guided:
            num_heads = _num_heads(source, options, notes)
            wide = _guided_config(weights, source, grid_size, len(rates), num_heads)
            denoiser = _fill(lambda: guided_unet.Network(wide), GUIDED_NAMES, weights, source, prefix)
        else:
            weights, num_classes = _read_classes(weights, source, notes)
            config = _unet_config(weights, source, grid_size, len(rates), num_classes)
            denoiser = _fill(lambda: unet.Network(config), UNET_NAMES, weights, source, prefix)
        kernel = _kernel(rates, denoiser.config.codebook_size, notes)
    except FormatError:
        raise
    except (VqtoolError, ValueError) as error:
        raise FormatError(f"{source.path}: {error}") from error
    conditioner: Conditioner = NoCondition()
    if num_classes:
        conditioner, note = numbered_classes(num_classes)
        notes += [note, "null condition: the mean of the classes, which the network was not trained with"]
    prior = Prior(
        kernel=kernel,
        denoiser=denoiser.eval().requires_grad_(False),
        denoiser_name="guided-unet" if guided else "unet",
        conditioner=conditioner,
        grid_spec=GridSpec("", "", grid_size, grid_size, ""),
        parameterisation="residual" if prefix == RESIDUAL else "direct",
        rule="plug-in",
    )
    return Imported(prior=prior, notes=notes)


def _state(source: Source) -> dict[str, Tensor]:
    content = source.content
    return tensors_in(content.get("state_dict")) if isinstance(content, Mapping) else {}


def _network(state: Mapping[str, Tensor], source: Source) -> tuple[str, dict[str, Tensor]]:
    """The prefix of the diffusion's network, and its weights without it, from both copies."""
    prefix = next((prefix for prefix in (PLAIN, RESIDUAL) if without(prefix, state)), None)
    if prefix is None:
        raise FormatError(f"{source.path}: the network is missing: tensors {PLAIN}* or {RESIDUAL}*")
    first, second = without(prefix, state), without(COPY, state)
    differing = [name for name in first if name in second and not torch.equal(first[name], second[name])]
    if differing:
        raise FormatError(
            f"{source.path}: the network is in it twice, as {prefix}* and {COPY}*, but they differ: {listed(differing)}"
        )
    known = re.compile(rf"({re.escape(prefix)}|{re.escape(COPY)}).*|{LEFT_OUT}")
    left = [name for name in state if name not in RATES and not known.fullmatch(name)]
    if left:
        raise FormatError(f"{source.path}: tensors that are not understood: {listed(left)}")
    return prefix, second | first


def _rates(state: Mapping[str, Tensor], source: Source) -> Tensor:
    """(T,) float64: the logarithm of alpha_bar at t = 1..T."""
    missing = [name for name in RATES if name not in state]
    if missing:
        raise FormatError(f"{source.path}: tensors are missing: {listed(missing)}")
    one_step, cumulative = (state[name].double() for name in RATES)
    log_alpha_bar = one_step.cumsum(0)  # keeps the digits of every step, which the stored sum does not
    if one_step.ndim != 1 or cumulative.shape != one_step.shape or not len(one_step):
        shapes = ", ".join(f"{name} {tuple(state[name].shape)}" for name in RATES)
        raise FormatError(f"{source.path}: rates of one step each are expected, not {shapes}")
    if not torch.allclose(log_alpha_bar, cumulative, rtol=TOLERANCE, atol=TOLERANCE):
        raise FormatError(f"{source.path}: {RATES[1]} is not the sum of {RATES[0]}")
    return log_alpha_bar


def _kernel(log_alpha_bar: Tensor, codebook_size: int, notes: list[str]) -> Kernel:
    log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha_bar])
    beta_bar = -torch.expm1(log_alpha_bar) / codebook_size
    kernel = kernels.from_rates(log_alpha_bar.exp(), beta_bar, torch.zeros_like(beta_bar), codebook_size)
    if kernel.schedule in schedules.names("uniform"):
        notes.append(f"schedule: {kernel.schedule} of {kernel.num_steps} steps, exact in place of the float32 rates")
    else:
        notes.append(f"schedule: the checkpoint's own rates of {kernel.num_steps} steps, of no schedule with a name")
    return kernel


def _settings(source: Source, part: str) -> Mapping[str, Any]:
    """The arguments of Unet or DiscreteDiffusion in the file of settings; empty where there are none."""
    found: Any = source.config
    for name in ("Model", part, "kwargs"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _check(source: Source, part: str, found: Mapping[str, Any]) -> None:
    """Compare what the settings say with what the weights show."""
    said = _settings(source, part)
    differing = [f"{name} {said[name]}, not {value}" for name, value in found.items() if said.get(name, value) != value]
    if differing:
        raise FormatError(
            f"{source.path}: the settings of {part} do not fit the weights: {listed(differing)}; "
            "name others with `config`"
        )


def _grid_size(source: Source, options: Options, notes: list[str]) -> tuple[int, int]:
    shape = _settings(source, "DiscreteDiffusion").get("shape")
    if options.grid_size is not None:
        return options.grid_size
    if isinstance(shape, list) and len(shape) >= 2 and all(isinstance(side, int) and side > 0 for side in shape):
        return shape[-2], shape[-1]
    height, width = PUBLISHED_GRID
    notes.append(f"grids: {height}x{width} cells, as published; neither weights nor settings say (`grid_size`)")
    return height, width


def _num_heads(source: Source, options: Options, notes: list[str]) -> int:
    said = _settings(source, "Unet").get("num_heads")
    if options.num_heads is not None:
        return options.num_heads
    if isinstance(said, int):
        return said
    notes.append(f"attention heads: {PUBLISHED_HEADS}, as published; neither weights nor settings say (`num_heads`)")
    return PUBLISHED_HEADS


def _length(weights: Mapping[str, Tensor], name: str, source: Source, axis: int = 0) -> int:
    if name not in weights or weights[name].ndim <= axis:
        raise FormatError(f"{source.path}: tensors are missing: {name}")
    return weights[name].shape[axis]


def _read_classes(weights: Mapping[str, Tensor], source: Source, notes: list[str]) -> tuple[dict[str, Tensor], int]:
    """The weights with a row a class and one more for none, and how many classes there are; 0 without.

    The program makes the table as long as that of the codes, whatever the number of classes.

    Raises:
        FormatError: the settings name more classes than rows.
    """
    table, name = weights.get(CLASSES), f"{PLAIN}{CLASSES}"
    if table is None:
        return dict(weights), 0
    said = _settings(source, "Unet").get("classes")
    num = said if isinstance(said, int) else len(table)
    if said is None:
        notes.append(f"classes: as many as {name} has rows, of which the last may be unused; no settings say how many")
    if not 0 < num <= len(table):
        raise FormatError(f"{source.path}: {num} classes in its settings, but {name} has {len(table)} rows")
    rows = table[:num]
    return {**weights, CLASSES: torch.cat([rows, rows.mean(0, keepdim=True)])}, num


def _unet_config(
    weights: Mapping[str, Tensor], source: Source, grid_size: tuple[int, int], num_steps: int, num_classes: int
) -> unet.Config:
    codebook_size, dim = (_length(weights, "embedding.weight", source, axis) for axis in (0, 1))
    levels = {name.split(".")[1] for name in weights if re.match(r"downs\.\d+\.", name)}
    widths = [
        _length(weights, f"downs.{level}.0.block1.block.0.weight", source) for level in range(count_numbers(levels))
    ]
    mults = [width // dim for width in widths]
    _check(source, "Unet", {"num_steps": num_steps, "dim": dim, "dim_mults": mults})
    _check(source, "Unet", {"num_classes": codebook_size})
    _check(source, "DiscreteDiffusion", {"num_classes": codebook_size, "timesteps": num_steps})
    return unet.Config(
        codebook_size=codebook_size,
        grid_size=grid_size,
        num_steps=num_steps,
        dim=dim,
        dim_mults=tuple(mults),
        num_inputs=codebook_size,
        num_classes=num_classes,
        bounded_attention=False,
    )


def _guided_config(
    weights: Mapping[str, Tensor], source: Source, grid_size: tuple[int, int], num_steps: int, num_heads: int
) -> guided_unet.Config:
    codebook_size, dim = (_length(weights, name, source) for name in ("out.2.weight", "input_blocks.0.0.weight"))
    levels: list[list[int]] = [[]]  # of each: the stages that hold a block
    for stage in range(1, count_numbers(name.split(".")[1] for name in weights if name.startswith("input_blocks."))):
        if {f"input_blocks.{stage}.0.op.{part}" for part in ("weight", "bias")} & weights.keys():
            levels.append([])
        else:
            levels[-1].append(stage)
    if not all(levels):
        raise FormatError(f"{source.path}: tensors are missing: input_blocks.* of a whole level")
    widths = [_length(weights, f"input_blocks.{stages[0]}.0.in_layers.2.weight", source) for stages in levels]
    mults = [width // dim for width in widths]
    attention = [n for n, stages in enumerate(levels) if f"input_blocks.{stages[0]}.1.qkv.weight" in weights]
    _check(source, "Unet", {"category": codebook_size, "out_channels": codebook_size, "model_channels": dim})
    _check(source, "Unet", {"num_res_blocks": len(levels[0]), "channel_mult": mults})
    _check(source, "DiscreteDiffusion", {"num_class": codebook_size, "timesteps": num_steps})
    return guided_unet.Config(
        codebook_size=codebook_size,
        grid_size=grid_size,
        num_steps=num_steps,
        dim=dim,
        dim_mults=tuple(mults),
        num_blocks=len(levels[0]),
        num_heads=num_heads,
        attention_levels=tuple(attention),
        sees_mask=False,
    )


def _fill(
    build: Callable[[], Denoiser],
    patterns: tuple[tuple[str, str], ...],
    weights: dict[str, Tensor],
    source: Source,
    prefix: str,
) -> Denoiser:
    names, found = {}, dict(weights)
    for ours, wanted in sketch(build, len(weights), str(source.path)).items():
        theirs = ours
        for pattern, replacement in patterns:
            theirs = re.sub(pattern, replacement, theirs)
        names[ours] = prefix + theirs
        if theirs in weights:
            value = found.pop(theirs)
            while value.ndim > wanted.ndim and value.shape[-1] == 1:  # convolutions of one cell that are linear here
                value = value.squeeze(-1)
            found[ours] = value
    return fill(build, found, source, names=names, ignored=[UNUSED])
