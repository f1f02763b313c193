"""diffusers' VQDiffusionPipeline: a folder of a tokenizer, a text prior, its schedule, text encoder and vocabulary.

Old and new folders are read: weights in safetensors or pickles, names of tensors of any version. `export` writes such
a folder; its parts load one by one with diffusers (>= 0.33, <= 0.42.1 at least) and transformers. The whole pipeline
does not with `VQDiffusionPipeline.from_pretrained`: diffusers 0.42.1 does not find its own class for the null text.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from vqtool.conditions.clip import ClipCondition
from vqtool.conditions.text_encoders import TextEncoder
from vqtool.denoisers import vq_diffusion
from vqtool.diffusion import kernels
from vqtool.diffusion.kernels import Kernel
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.interop import diffusers_vqmodel, transformers
from vqtool.interop._contract import Imported, Options
from vqtool.interop._pipelines import read_text
from vqtool.interop._sources import Source
from vqtool.interop._stacking import Names, block_names, fill_stacked
from vqtool.outputs import atomic_path
from vqtool.priors import GridSpec, Prior
from vqtool.tokenizers import Tokenizer

PIPELINE = "VQDiffusionPipeline"
NULL_TEXT = "learned_classifier_free_sampling_embeddings"
WEIGHTS = "diffusion_pytorch_model.safetensors"
RATES = {"alpha_cum_start": 0.99999, "alpha_cum_end": 9e-6, "gamma_cum_start": 9e-6, "gamma_cum_end": 0.99999}
# What the network of a pipeline is; settings that old folders leave out count as these.
EXPECTED = {
    "activation_fn": "geglu-approximate",  # GELU2
    "attention_bias": True,
    "norm_type": "ada_norm",
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "attention_type": "default",
    "only_cross_attention": False,
    "double_self_attention": False,
}
ROUNDING = 1e-7  # of schedules, whose ends are written as decimal numbers


def recognise(source: Source) -> bool:
    """Whether it is the folder of such a pipeline."""
    return source.is_pipeline(PIPELINE)


def load(source: Source, options: Options) -> Imported:
    """The prior of a pipeline with its tokenizer and text encoder.

    Raises:
        FormatError: it is incomplete, or of another kind of network.
        MismatchError: its parts do not fit together.
    """
    notes: list[str] = []
    encoder, conditioner = read_text(source, options, pooled=False)
    settings = source.json("transformer/config.json")
    kernel = _kernel(source.json("scheduler/scheduler_config.json"), source, notes)
    config = _config(settings, source, conditioner)
    _compare(config, kernel, encoder, source)
    tensors = source.tensors("transformer")
    if config.learned_null:
        tensors[f"{NULL_TEXT}.embeddings"] = source.tensors(NULL_TEXT).get("embeddings", torch.zeros(0))
    denoiser = fill_stacked(lambda: vq_diffusion.Network(config), names_of(config), tensors, source)
    notes.append(f"null condition: {'learned' if config.learned_null else 'the empty caption'}")
    prior = Prior(
        kernel=kernel,
        denoiser=denoiser.eval().requires_grad_(False),
        denoiser_name="vq-diffusion",
        conditioner=conditioner,
        grid_spec=GridSpec("", "", config.grid_size, config.grid_size, ""),
        parameterisation="direct",
        text_encoder=encoder,
    )
    tokenizer = diffusers_vqmodel.read_vqmodel(source, "vqvae", options=options, notes=notes)
    return Imported(tokenizer=tokenizer, prior=prior, text_encoder=encoder, notes=notes)


def _kernel(settings: Mapping[str, Any], source: Source, notes: list[str]) -> Kernel:
    """The forward process of a VQDiffusionScheduler: two straight lines from t = 1 to t = T."""
    rates = {name: settings.get(name, usual) for name, usual in RATES.items()}
    num_steps = settings.get("num_train_timesteps", 100)
    try:
        codebook_size = settings["num_vec_classes"] - 1
        alpha_bar, gamma_bar = (
            torch.cat([torch.tensor([first]), _line(rates[f"{name}_start"], rates[f"{name}_end"], num_steps)])
            for name, first in (("alpha_cum", 1.0), ("gamma_cum", 0.0))
        )
        beta_bar = ((1.0 - alpha_bar) - gamma_bar).clamp(min=0.0) / codebook_size
        kernel = kernels.from_rates(alpha_bar, beta_bar, gamma_bar, codebook_size)
    except KeyError as error:
        raise FormatError(f"{source.path}: its scheduler's settings say nothing of {error.args[0]}") from error
    except VqtoolError as error:
        raise FormatError(f"{source.path}/scheduler: {error}") from error
    notes.append(f"schedule: {kernel.schedule} of {num_steps} steps, kernel {kernel.name}")
    return kernel


def _line(first: float, last: float, num_steps: int) -> Tensor:
    """(T,) float64."""
    return torch.linspace(first, last, num_steps, dtype=torch.float64)


def _config(settings: Mapping[str, Any], source: Source, conditioner: ClipCondition) -> vq_diffusion.Config:
    where = f"{source.path}/transformer"
    for name, expected in EXPECTED.items():
        found = settings.get(name, expected)
        if found != expected:
            raise FormatError(f"{where}: {name} is {found!r}: only {expected!r} is understood")
    if settings.get("cross_attention_dim") is None:
        raise FormatError(f"{where}: no text prior, the only kind understood: it has no cross_attention_dim")
    null_text = source.json(f"{NULL_TEXT}/config.json") if (source.path / NULL_TEXT).is_dir() else {}
    try:
        heads, side = settings["num_attention_heads"], settings["sample_size"]
        return vq_diffusion.Config(
            codebook_size=settings["num_vector_embeds"] - 1,
            grid_size=(side, side),
            num_steps=settings["num_embeds_ada_norm"],
            num_layers=settings["num_layers"],
            width=heads * settings["attention_head_dim"],
            num_heads=heads,
            text_width=settings["cross_attention_dim"],
            text_length=conditioner.max_length,
            learned_null=bool(null_text.get("learnable")),
        )
    except KeyError as error:
        raise FormatError(f"{where}: its config.json says nothing of {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}: its config.json is not that of a text prior over tokens: {error}") from error


def _compare(config: vq_diffusion.Config, kernel: Kernel, encoder: TextEncoder, source: Source) -> None:
    """Raise unless the parts of a pipeline fit together."""
    for what, prior, other in (
        ("codes of the transformer and the scheduler", config.codebook_size, kernel.codebook_size),
        ("steps of the transformer and the scheduler", config.num_steps, kernel.num_steps),
        ("widths of the transformer's text and the text encoder", config.text_width, encoder.config.width),
    ):
        if prior != other:
            raise MismatchError(f"{source.path}: its parts do not fit together: {what} are {prior} and {other}")


def names_of(config: vq_diffusion.Config) -> Names:
    """Our names of a network's weights -> those of diffusers' Transformer2DModel."""
    names: dict[str, tuple[str, ...]] = {
        "tokens.weight": ("latent_image_embedding.emb.weight",),
        "rows": ("latent_image_embedding.height_emb.weight",),
        "columns": ("latent_image_embedding.width_emb.weight",),
    }
    if config.learned_null:
        names["null_text"] = (f"{NULL_TEXT}.embeddings",)
    for part in ("weight", "bias"):
        names |= {f"norm.{part}": (f"norm_out.{part}",), f"head.{part}": (f"out.{part}",)}
    for number in range(config.num_layers):
        for norm, theirs in (("attention_norm", "norm1"), ("cross_norm", "norm2")):
            names[f"blocks.{number}.{norm}.table.weight"] = (f"transformer_blocks.{number}.{theirs}.emb.weight",)
    return {**names, **block_names(_BLOCK, "blocks.", "transformer_blocks.", config.num_layers)}


_BLOCK: dict[str, tuple[str, ...]] = {
    "attention_norm.linear": ("norm1.linear",),
    "attention.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attention.out": ("attn1.to_out.0",),
    "cross_norm.linear": ("norm2.linear",),
    "cross.q": ("attn2.to_q",),
    "cross.kv": ("attn2.to_k", "attn2.to_v"),
    "cross.out": ("attn2.to_out.0",),
    "mlp_norm": ("norm3",),
    "mlp.first": ("ff.net.0.proj",),
    "mlp.second": ("ff.net.2",),
}


def export(prior: Prior, tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write the folder of a pipeline.

    Args:
        prior: a text prior with the published network.
        tokenizer: what its tokens decode with.
        folder: made if it is not there; files of these names are replaced.

    Returns:
        What the user should know.

    Raises:
        VqtoolError: a pipeline cannot hold this prior or tokenizer; says why.
        MismatchError: they do not fit together.
    """
    config, conditioner, encoder = _exportable(prior)
    export_around(prior, config.codebook_size, tokenizer, conditioner, encoder, folder)
    tensors: dict[str, Tensor] = {}
    for name, tensor in prior.denoiser.state_dict().items():
        theirs = names_of(config)[name]
        tensors |= dict(zip(theirs, tensor.chunk(len(theirs)), strict=True))
    null_text = tensors.pop(f"{NULL_TEXT}.embeddings", None)
    write_part(folder / "transformer", _transformer_settings(config), WEIGHTS, tensors)
    learned = {"learnable": config.learned_null, "hidden_size": config.text_width, "length": conditioner.max_length}
    write_part(
        folder / NULL_TEXT,
        {"_class_name": "LearnedClassifierFreeSamplingEmbeddings", **learned},
        WEIGHTS,
        {} if null_text is None else {"embeddings": null_text},
    )
    write_json(folder / "scheduler" / "scheduler_config.json", _scheduler_settings(prior.kernel))
    write_json(folder / "model_index.json", _INDEX)
    return export_notes(conditioner)


def export_around(
    prior: Prior,
    codebook_size: int,
    tokenizer: Tokenizer,
    conditioner: ClipCondition,
    encoder: TextEncoder,
    folder: Path,
) -> None:
    """Write what stands around the transformer in the folder of a pipeline: tokenizer, text encoder and vocabulary.

    Args:
        prior: that is exported.
        codebook_size: K of its network.
        tokenizer: what its tokens decode with.
        conditioner: its captions.
        encoder: reads them.
        folder: of the pipeline.

    Raises:
        VqtoolError: VQModel has no such network.
        MismatchError: prior and tokenizer do not fit together.
    """
    if prior.grid_spec.tokenizer_fingerprint:
        prior.check_tokenizer(tokenizer.identity, tokenizer.location)
    if tokenizer.codebook_size != codebook_size:
        raise MismatchError(f"the prior has {codebook_size} tokens, the tokenizer {tokenizer.codebook_size} codes")
    diffusers_vqmodel.export(tokenizer, folder / "vqvae")
    tensors, settings = transformers.export_text_encoder(encoder)
    write_part(folder / "text_encoder", settings, "model.safetensors", tensors)
    transformers.write_vocabulary(conditioner, folder / "tokenizer")


_INDEX = {
    "_class_name": PIPELINE,
    NULL_TEXT: ["diffusers", "LearnedClassifierFreeSamplingEmbeddings"],
    "scheduler": ["diffusers", "VQDiffusionScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "Transformer2DModel"],
    "vqvae": ["diffusers", "VQModel"],
}


def _exportable(prior: Prior) -> tuple[vq_diffusion.Config, ClipCondition, TextEncoder]:
    config, conditioner, encoder = prior.denoiser.config, prior.conditioner, prior.text_encoder
    if not isinstance(config, vq_diffusion.Config) or encoder is None or not isinstance(conditioner, ClipCondition):
        raise VqtoolError(
            "diffusers' VQDiffusionPipeline cannot hold this prior: there, the denoiser is vq-diffusion with captions "
            "that CLIP reads"
        )
    length = conditioner.max_length
    for what, met in {
        "the logits are all there is (parameterisation direct)": prior.parameterisation == "direct",
        "the MLP is linear, 4 times as wide": (config.mlp, config.mlp_ratio) == ("linear", 4),
        "the activation is gelu2": config.activation == "gelu2",
        "the time is learned": config.time == "learned",
        "positions are rows and columns of their own": config.positions == "axial",
        "the position tables are of the size of the grid": config.tables == config.grid_size,
        "grids are square": len(set(config.grid_size)) == 1,
        "the head has a bias": config.head_bias,
        "the null text is as long as captions": not config.learned_null or config.text_length == length,
        "the average over x_0 is the mixture": prior.rule == "mixture",
        "the schedule of a mask-replace kernel is two straight lines of at least 2 steps": _is_straight(prior.kernel),
    }.items():
        if not met:
            raise VqtoolError(f"diffusers' VQDiffusionPipeline cannot hold this prior: there, {what}")
    return config, conditioner, encoder


def _is_straight(kernel: Kernel) -> bool:
    tables = (kernel.alpha_bar[1:], kernel.gamma_bar[1:])
    lines = (_line(float(table[0]), float(table[-1]), kernel.num_steps) for table in tables)
    straight = all(torch.allclose(a, b, rtol=0, atol=ROUNDING) for a, b in zip(tables, lines, strict=True))
    return straight and kernel.name == "mask-replace" and kernel.num_steps > 1


def _scheduler_settings(kernel: Kernel) -> dict[str, Any]:
    ends = {
        f"{name}_{end}": float(table[place])
        for name, table in (("alpha_cum", kernel.alpha_bar), ("gamma_cum", kernel.gamma_bar))
        for end, place in (("start", 1), ("end", -1))
    }
    sizes = {"num_vec_classes": kernel.codebook_size + 1, "num_train_timesteps": kernel.num_steps}
    return {"_class_name": "VQDiffusionScheduler", **sizes, **ends}


def _transformer_settings(config: vq_diffusion.Config) -> dict[str, Any]:
    return {
        "_class_name": "Transformer2DModel",
        **EXPECTED,
        "attention_head_dim": config.width // config.num_heads,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "num_vector_embeds": config.codebook_size + 1,
        "num_embeds_ada_norm": config.num_steps,
        "cross_attention_dim": config.text_width,
        "sample_size": config.grid_size[0],
        "dropout": 0.0,
    }


def export_notes(conditioner: ClipCondition) -> list[str]:
    """What the user should know of a vocabulary that transformers reads."""
    tokens = conditioner.vocabulary.tokens
    pad = next(word for word, number in tokens.items() if number == conditioner.pad)
    if pad in conditioner.vocabulary.special:
        return []
    return [f"transformers will take {pad!r} in a caption for padding; here it is a word"]


def write_part(folder: Path, settings: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a folder of `config.json` and weights."""
    write_json(folder / "config.json", settings)
    with atomic_path(folder / name, force=True) as temporary:
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        temporary.write_bytes(save(whole, {"format": "pt"}))  # by Python, whose errors say that a disk is full


def write_json(path: Path, settings: Mapping[str, Any]) -> None:
    """Write settings to a file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
