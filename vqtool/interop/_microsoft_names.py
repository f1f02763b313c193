"""How VQ-Diffusion's code calls the weights of its transformers: in `ema`, and after "transformer." in `model`."""

from vqtool.denoisers import vq_diffusion
from vqtool.interop._stacking import Names

# Buffers, the text tower (read by `text_encoders`), a causal mask that is never used, and the null text where there is
# no text.
IGNORED = (r"log_.*", r"Lt_.*", r"condition_emb\..*", r".*\.attn2\.mask", r"empty_text_embed")


def names_of(config: vq_diffusion.Config) -> Names:
    """Our names of a network's weights -> theirs."""
    top = {
        "tokens.weight": "content_emb.emb.weight",
        "rows": "content_emb.height_emb.weight",
        "columns": "content_emb.width_emb.weight",
    }
    names: dict[str, tuple[str, ...]] = {ours: (f"transformer.{theirs}",) for ours, theirs in top.items()}
    if config.text_width and config.learned_null:
        names["null_text"] = ("empty_text_embed",)
    modules: dict[str, tuple[str, ...]] = {"norm": ("to_logits.0",), "head": ("to_logits.1",)}
    for number in range(config.num_layers):
        for ours, theirs in _block_names(config).items():
            modules[f"blocks.{number}.{ours}"] = tuple(f"blocks.{number}.{name}" for name in theirs)
            if ours.endswith("norm.linear") and (config.time == "learned" or ours == "mlp_norm.linear"):
                table = f"blocks.{number}.{theirs[0].removesuffix('linear')}emb.weight"
                names[f"blocks.{number}.{ours.removesuffix('linear')}table.weight"] = (f"transformer.{table}",)
    for ours, theirs in modules.items():
        for part in ("weight", "bias"):
            names[f"{ours}.{part}"] = tuple(f"transformer.{name}.{part}" for name in theirs)
    return names


def _block_names(config: vq_diffusion.Config) -> dict[str, tuple[str, ...]]:
    """Of the parts of a block that have a weight and a bias."""
    first = "attn1" if config.text_width else "attn"
    names: dict[str, tuple[str, ...]] = {
        "attention_norm.linear": ("ln1.linear",),
        "attention.qkv": (f"{first}.query", f"{first}.key", f"{first}.value"),
        "attention.out": (f"{first}.proj",),
        "mlp_norm.linear" if config.num_classes else "mlp_norm": ("ln2.linear" if config.num_classes else "ln2",),
        "mlp.first": ("mlp.conv1" if config.mlp == "conv" else "mlp.0",),
        "mlp.second": ("mlp.conv2" if config.mlp == "conv" else "mlp.2",),
    }
    if config.text_width:
        names |= {
            "cross_norm.linear": ("ln1_1.linear",),
            "cross.q": ("attn2.query",),
            "cross.kv": ("attn2.key", "attn2.value"),
            "cross.out": ("attn2.proj",),
        }
    return names
