"""Generate images with vector-quantised discrete diffusion.

images -> tokenizer -> token grids -> prior -> sampler -> token grids -> tokenizer -> images -> metrics

Every word of that line is a module of this package, a kind of file on disk and a command. The names below and the
packages are the Python interface (docs/python.md); they are imported when first used, so that `import vqtool` is quick.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.version import __version__

if TYPE_CHECKING:
    from vqtool import codebooks, metrics
    from vqtool.diffusion import kernels, posterior
    from vqtool.images.reader import read_images
    from vqtool.images.writer import save_images
    from vqtool.metrics.compare.comparison import compare
    from vqtool.metrics.evaluation import evaluate
    from vqtool.priors import Prior, load_prior
    from vqtool.samplers import condition, sample
    from vqtool.samplers.drawing import sample_to_file
    from vqtool.samplers.editing import edit, edit_to_file
    from vqtool.samplers.shards import sample_shards
    from vqtool.tokenizers import Tokenizer, load_tokenizer, tokenizer_of
    from vqtool.tokenizers.batches import decode
    from vqtool.tokenizers.encoding import encode
    from vqtool.tokenizers.shards import encode_shard, encode_shards

_LAZY = {
    "codebooks": "vqtool.codebooks",
    "compare": "vqtool.metrics.compare.comparison",
    "evaluate": "vqtool.metrics.evaluation",
    "kernels": "vqtool.diffusion.kernels",
    "posterior": "vqtool.diffusion.posterior",
    "Prior": "vqtool.priors",
    "condition": "vqtool.samplers",
    "decode": "vqtool.tokenizers.batches",
    "distill_prior": "vqtool.training.distilling",
    "edit": "vqtool.samplers.editing",
    "edit_to_file": "vqtool.samplers.editing",
    "encode": "vqtool.tokenizers.encoding",
    "encode_shard": "vqtool.tokenizers.shards",
    "encode_shards": "vqtool.tokenizers.shards",
    "finetune_tokenizer": "vqtool.training.finetuning",
    "load_prior": "vqtool.priors",
    "read_images": "vqtool.images.reader",
    "sample": "vqtool.samplers",
    "sample_shards": "vqtool.samplers.shards",
    "sample_to_file": "vqtool.samplers.drawing",
    "save_images": "vqtool.images.writer",
    "Tokenizer": "vqtool.tokenizers",
    "load_tokenizer": "vqtool.tokenizers",
    "tokenizer_of": "vqtool.tokenizers",
    "train_prior": "vqtool.training.prior",
    "train_tokenizer": "vqtool.training.tokenizer",
}

__all__ = [
    "FormatError",
    "MismatchError",
    "Prior",
    "Tokenizer",
    "VqtoolError",
    "__version__",
    "codebooks",
    "compare",
    "condition",
    "decode",
    "distill_prior",
    "edit",
    "edit_to_file",
    "encode",
    "encode_shard",
    "encode_shards",
    "evaluate",
    "finetune_tokenizer",
    "kernels",
    "load_prior",
    "load_tokenizer",
    "metrics",
    "posterior",
    "read_images",
    "sample",
    "sample_shards",
    "sample_to_file",
    "save_images",
    "tokenizer_of",
    "train_prior",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        if not name.startswith("_") and find_spec(f"vqtool.{name}") is not None:  # a package or module of ours
            return import_module(f"vqtool.{name}")
        raise AttributeError(f"module 'vqtool' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    return module if _LAZY[name].endswith(f".{name}") else getattr(module, name)
