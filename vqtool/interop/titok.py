"""TiTok's tokenizers and generators: folders of `config.json` and weights, or files of weights alone.

`config.json` holds the settings of a whole experiment, some of them as unresolved references, and says nothing of
widths, which are read from the weights. A generator and its tokenizer are two sources: the classes are ImageNet's.
Source: github.com/bytedance/1d-tokenizer, modeling/titok.py, modeling/maskgit.py and its sampling script, which alone
anneals the temperature of the logits.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqtool.conditions import numbered_classes
from vqtool.denoisers import titok as generators
from vqtool.errors import FormatError
from vqtool.interop._contract import Imported, Options
from vqtool.interop._masked import build_prior
from vqtool.interop._renaming import fill_renamed
from vqtool.interop._sources import Source, count_numbers, listed, tensors_in
from vqtool.interop._vqgan import compare, count
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.maskgit import MaskgitConfig
from vqtool.tokenizers.titok import TitokConfig

TOKENIZER_MARK = "latent_tokens"
BERT_MARK, UVIT_MARK = "model.embeddings.word_embeddings.weight", "in_blocks.0.attn.qkv.weight"
CODES = "quantize.embedding.weight"
DEFAULT_POWER = 3.0  # of power-cosine guidance, in the sampling script
PUBLISHED = {  # tokens -> what the settings of a published generator say
    32: {"guidance_scale": 4.5, "guidance_decay": "linear", "randomize_temperature": 9.5, "num_steps": 8},
    64: {"guidance_scale": 3.0, "guidance_decay": "linear", "randomize_temperature": 11.0, "num_steps": 8},
    128: {"guidance_scale": 6.9, "guidance_decay": "power-cosine", "randomize_temperature": 2.8, "num_steps": 64},
}
VIT = (  # blocks of OpenAI's CLIP
    (r"\.trunk\.start$", ".class_embedding"),
    (r"\.trunk\.positions$", ".positional_embedding"),
    (r"\.trunk\.token_positions$", ".latent_token_positional_embedding"),
    (r"\.trunk\.norm_in\.", ".ln_pre."),
    (r"\.trunk\.norm_out\.", ".ln_post."),
    (r"\.trunk\.blocks\.(\d+)\.norm", r".transformer.\1.ln_"),
    (r"\.trunk\.blocks\.(\d+)\.qkv\.", r".transformer.\1.attn.in_proj_"),
    (r"\.trunk\.blocks\.(\d+)\.out\.", r".transformer.\1.attn.out_proj."),
    (r"\.trunk\.blocks\.(\d+)\.first\.", r".transformer.\1.mlp.c_fc."),
    (r"\.trunk\.blocks\.(\d+)\.second\.", r".transformer.\1.mlp.c_proj."),
)
TOKENIZER = (
    (r"^codebook$", CODES),
    (r"^encoder\.tokens$", TOKENIZER_MARK),
    (r"^encoder\.patches\.", "encoder.patch_embed."),
    (r"^encoder\.out\.", "encoder.conv_out."),
    (r"^decoder\.embed\.", "decoder.decoder_embed."),
    (r"^decoder\.mask$", "decoder.mask_token"),
    (r"^decoder\.first\.", "decoder.ffn.0."),
    (r"^decoder\.second\.", "decoder.ffn.2."),
    (r"^decoder\.proxies$", "pixel_quantize.embedding.weight"),
    (r"^decoder\.pixels\.(.*)upsample\.conv\.", r"pixel_decoder.\1upsample_conv."),
    (r"^decoder\.pixels\.", "pixel_decoder."),
    *VIT,
)
BERT = (
    (r"^norm_in\.", "model.embeddings.LayerNorm."),
    (r"^head\.", "model.lm_head."),
    (r"^blocks\.", "model.encoder.layer."),
    (r"\.qkv\.", ".attention.self.{query,key,value}."),
    (r"\.out\.", ".attention.output.dense."),
    (r"\.norm1\.", ".attention.output.LayerNorm."),
    (r"\.first\.", ".intermediate.dense."),
    (r"\.second\.", ".output.dense."),
    (r"\.norm2\.", ".output.LayerNorm."),
)


def recognise(source: Source) -> bool:
    """Whether it holds the layers of such a network, under their names, or settings with sections of both kinds."""
    marks = {TOKENIZER_MARK, BERT_MARK, UVIT_MARK} & tensors_in(source.content).keys()
    return bool(marks) or (source.content is None and bool(_settings(source)))


def _settings(source: Source) -> dict[str, Mapping[str, Any]]:
    """The sections on tokenizer and generator; empty where there are no such settings."""
    there = source.content is None and (source.path / "config.json").is_file()
    config = source.config if source.config is not None else source.json("config.json") if there else {}
    model = config.get("model")
    sections = {name: model.get(name) for name in ("vq_model", "generator")} if isinstance(model, Mapping) else {}
    found = {name: section for name, section in sections.items() if isinstance(section, Mapping)}
    return found if "num_latent_tokens" in found.get("vq_model", {}) else {}


def load(source: Source, options: Options) -> Imported:
    """The tokenizer, or the generator.

    Raises:
        FormatError: it is incomplete, contradicts its settings, or has no codes.
    """
    tensors = source.tensors() if source.content is None else tensors_in(source.content)
    said, notes = _settings(source), list[str]()
    if BERT_MARK in tensors or UVIT_MARK in tensors:
        return _load_generator(tensors, said, source, options)
    return Imported(tokenizer=_load_tokenizer(tensors, said.get("vq_model", {}), source, notes), notes=notes)


def _load_tokenizer(tensors: dict[str, Tensor], said: Mapping[str, Any], source: Source, notes: list[str]) -> Tokenizer:
    config = _tokenizer_config(tensors, said, source)
    unit = said.get("use_l2_norm")
    if unit is None:
        unit = config.legacy
        notes.append("its settings are not there: codes are compared as in the published models of its kind")
    lookup = "cosine" if unit else "nearest"
    codes = tensors[CODES].float()
    tensors = {**tensors, CODES: torch.nn.functional.normalize(codes, dim=-1) if unit else codes}
    kind = "old order of latents, proxy codes" if config.legacy else "pixels at once"
    notes.append(
        f"tokenizer: {config.num_tokens} tokens of {config.codebook_size} codes an image of {config.only_size[0]}x"
        f"{config.only_size[1]}; {kind}; {'directions of codes' if unit else 'nearest codes'}"
    )
    return fill_renamed(lambda: Tokenizer(config, lookup=lookup), TOKENIZER, tensors, source)


def _tokenizer_config(tensors: Mapping[str, Tensor], said: Mapping[str, Any], source: Source) -> TitokConfig:
    patches = ("encoder.patch_embed.weight", "encoder.positional_embedding", "decoder.positional_embedding")
    needed = (CODES, TOKENIZER_MARK, *patches, "decoder.decoder_embed.weight")
    if missing := [name for name in needed if name not in tensors]:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    legacy = "decoder.conv_out.weight" not in tensors
    if legacy and "pixel_quantize.embedding.weight" not in tensors:
        raise FormatError(f"{source.path}: it has no pixel decoder, and makes no images: a first stage of training")
    patch = tensors[patches[0]].shape[-1]
    side = math.isqrt(len(tensors[patches[1]]) - 1) * patch
    decoder_side = math.isqrt(len(tensors[patches[2]]) - 1)
    config = TitokConfig(
        codebook_size=len(tensors[CODES]),
        code_dim=tensors[CODES].shape[1],
        num_tokens=len(tensors[TOKENIZER_MARK]),
        only_size=(side, side),
        encoder_width=len(tensors[patches[0]]),
        encoder_layers=count(tensors, r"encoder\.transformer\.(\d+)\."),
        encoder_patch=patch,
        decoder_width=len(tensors["decoder.decoder_embed.weight"]),
        decoder_layers=count(tensors, r"decoder\.transformer\.(\d+)\."),
        decoder_patch=side // max(1, decoder_side),
        legacy=legacy,
        pixels=_pixel_config(tensors, source) if legacy else None,
    )
    compare(
        {
            "codebook_size": (said.get("codebook_size"), config.codebook_size),
            "token_size": (said.get("token_size"), config.code_dim),
            "num_latent_tokens": (said.get("num_latent_tokens"), config.num_tokens),
            "is_legacy": (said.get("is_legacy"), legacy),
            "vit_dec_patch_size": (said.get("vit_dec_patch_size"), config.decoder_patch),
        },
        source,
    )
    return config


def _pixel_config(tensors: Mapping[str, Tensor], source: Source) -> MaskgitConfig:
    levels = count(tensors, r"pixel_decoder\.up\.(\d+)\.")
    widths = [f"pixel_decoder.up.{level}.block.0.conv1.weight" for level in range(max(1, levels))]
    if missing := [name for name in widths if name not in tensors]:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    proxies = tensors["pixel_quantize.embedding.weight"]
    channels = tuple(len(tensors[name]) for name in widths)
    return MaskgitConfig(
        codebook_size=len(proxies),
        code_dim=proxies.shape[1],
        stem_channels=channels[0],
        channels=channels,
        num_blocks=count(tensors, r"pixel_decoder\.mid\.(\d+)\."),
    )


def _load_generator(
    tensors: dict[str, Tensor], said: Mapping[str, Mapping[str, Any]], source: Source, options: Options
) -> Imported:
    own, notes = said.get("generator", {}), list[str]()
    skips = UVIT_MARK in tensors
    config = _generator_config(tensors, own, source, options, skips=skips)
    split = _split_rows(tensors, config, source)
    patterns = _uvit_names(config.num_layers // 2) if skips else BERT
    denoiser = fill_renamed(lambda: generators.Network(config), patterns, split, source)
    settings = _sampling(own, config, notes)
    conditioner, note = numbered_classes(config.num_classes)
    kind = "U-ViT" if skips else "BERT"
    notes += [f"generator: {kind}, {config.num_layers} layers of {config.width}, {config.grid_size[1]} tokens", note]
    return Imported(prior=build_prior(denoiser, "titok", conditioner, settings), notes=notes)


def _generator_config(
    tensors: Mapping[str, Tensor], said: Mapping[str, Any], source: Source, options: Options, *, skips: bool
) -> generators.Config:
    table, places, head, mlp = (
        ("embeddings.weight", "pos_embed", "lm_head.weight", "in_blocks.0.mlp.fc1.weight")
        if skips
        else (
            BERT_MARK,
            "model.embeddings.position_embeddings.weight",
            "model.lm_head.weight",
            "model.encoder.layer.0.intermediate.dense.weight",
        )
    )
    if missing := [name for name in (table, places, head, mlp) if name not in tensors]:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    codes, num_tokens = len(tensors[head]), tensors[places].shape[-2] - 1
    layer = "in_blocks." if skips else "model.encoder.layer."
    numbers = (name.removeprefix(layer).split(".")[0] for name in tensors if name.startswith(layer))
    heads = options.num_heads if options.num_heads is not None else said.get("num_attention_heads")
    if not isinstance(heads, int):
        raise FormatError(f"{source.path}: no settings say how many heads it has: say it with `num_heads`")
    config = generators.Config(
        codebook_size=codes,
        grid_size=(1, num_tokens),
        num_steps=num_tokens,
        num_layers=count_numbers(numbers) * (1 + skips),
        width=tensors[table].shape[1],
        num_heads=heads,
        mlp_width=len(tensors[mlp]),
        num_classes=len(tensors[table]) - codes - 2,
        skips=skips,
    )
    compare(
        {
            "model_type": (said.get("model_type"), "UViT" if skips else "ViT"),
            "num_hidden_layers": (said.get("num_hidden_layers"), config.num_layers),
            "hidden_size": (said.get("hidden_size"), config.width),
            "condition_num_classes": (said.get("condition_num_classes"), config.num_classes),
        },
        source,
    )
    return config


def _split_rows(tensors: Mapping[str, Tensor], config: generators.Config, source: Source) -> dict[str, Tensor]:
    """The tensors, with those of tokens, mask and classes apart, and BERT's row of every token's type in the places."""
    found, num = dict(tensors), config.codebook_size + 1
    table = found.pop("embeddings.weight" if config.skips else BERT_MARK)
    if config.num_classes < 1:
        raise FormatError(f"{source.path}: {len(table)} rows of its embedding leave none for classes")
    found |= {"tokens.weight": table[:num], "classes.weight": table[num:]}
    if config.skips:
        found["positions"] = found.pop("pos_embed")[0]
        return found
    name = "model.embeddings.token_type_embeddings.weight"
    if name not in found:
        raise FormatError(f"{source.path}: 1 tensors are missing: {name}")
    places = found.pop("model.embeddings.position_embeddings.weight").float()
    found["positions"] = places + found.pop(name)[0].float()
    return found


def _uvit_names(half: int) -> tuple[tuple[str, str], ...]:
    """The names of a U-ViT, whose layers are counted anew in its second half."""
    later = [(rf"^blocks\.{half + 1 + number}\.", f"out_blocks.{number}.") for number in range(half)]
    return (
        *later,
        (rf"^blocks\.{half}\.", "mid_block."),
        (r"^blocks\.", "in_blocks."),
        (r"^skips\.(\d+)\.", r"out_blocks.\1.skip_linear."),
        (r"^norm_out\.", "norm."),
        (r"^head\.", "lm_head."),
        (r"\.qkv\.", ".attn.qkv."),
        (r"\.out\.", ".attn.proj."),
        (r"\.first\.", ".mlp.fc1."),
        (r"\.second\.", ".mlp.fc2."),
    )


def _sampling(said: Mapping[str, Any], config: generators.Config, notes: list[str]) -> dict[str, Any]:
    """As the sampling script does it: its logits are divided by numbers that fall from 1.3 to .5."""
    num_tokens = config.grid_size[1]
    values = {**PUBLISHED.get(num_tokens, PUBLISHED[32]), **said}
    if not said:
        notes.append("its settings are not there: it is sampled as the published model of so many tokens")
    steps, scale, decay = min(int(values["num_steps"]), num_tokens), values["guidance_scale"], values["guidance_decay"]
    guidance: dict[str, Any] = {"cfg_scale": 1 + scale, "cfg_schedule": decay}
    if decay == "power-cosine":
        power = values.get("guidance_scale_pow", DEFAULT_POWER)
        guidance = {"cfg_scale": scale, "cfg_schedule": decay, "cfg_power": power}
    return {
        "sampler": "confidence",
        "steps": steps,
        "plan": "arccos",
        "score": "logit",
        "choice_temperature": values["randomize_temperature"],
        "temperature": [1.3 - 0.8 / steps, 0.5] if steps > 1 else [0.5],
        **(guidance if guidance["cfg_scale"] != 1 else {}),
    }
