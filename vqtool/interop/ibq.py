"""SEED-Voken's IBQ tokenizers (Lightning, .ckpt): taming's network, whose codes are found by the largest dot product.

Their program always uses the averaged weights, `model_ema.*`, whose names are those of the others without dots.
Source: github.com/TencentARC/SEED-Voken, src/IBQ/models/ibqgan.py.
"""

from collections.abc import Mapping

from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop import _vqgan, taming
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, class_named, listed, tensors_in

LEFT_OUT = {"training losses": r"loss\."}
AVERAGE = "model_ema."
COUNTERS = (f"{AVERAGE}decay", f"{AVERAGE}num_updates")


def recognise(source: Source) -> bool:
    """Whether its settings name IBQ; without settings whether its weights can be of it."""
    state = tensors_in(source.content.get("state_dict")) if isinstance(source.content, Mapping) else {}
    named = class_named(source.config)
    averaged = source.config is None and COUNTERS[0] in state
    return _vqgan.has_taming_names(state) and ("IBQ" in named or averaged)


def load(source: Source, options: Options) -> Imported:
    """The tokenizer of a checkpoint.

    Raises:
        FormatError: it is incomplete, or its settings contradict it.
    """
    notes: list[str] = []
    state = tensors_in(source.content.get("state_dict")) if isinstance(source.content, Mapping) else {}
    weights = choose_weights(_vqgan.drop(state, LEFT_OUT, notes), source, options, notes)
    tokenizer = taming.read_vqgan(weights, source.config, source, options, notes=notes, lookup="dot")
    return Imported(tokenizer=tokenizer, notes=notes)


def choose_weights(
    state: Mapping[str, Tensor], source: Source, options: Options, notes: list[str]
) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, or the raw ones, under their usual names.

    Raises:
        FormatError: weights are asked for that it does not have, or some have no average.
    """
    raw = {name: value for name, value in state.items() if not name.startswith(AVERAGE)}
    averages = {name: value for name, value in state.items() if name.startswith(AVERAGE) and name not in COUNTERS}
    choice = options.weights
    if choice is not None and not averages:
        raise FormatError(f"{source.path}: holds no averaged weights (model_ema): leave out `weights` {choice}")
    if choice == "raw" or not averages:
        notes.append(
            "weights: raw" if averages else "the file holds no averaged weights (model_ema): the raw ones are taken"
        )
        return raw
    theirs = {name: AVERAGE + name.replace(".", "") for name in raw}
    if missing := [name for name in theirs.values() if name not in averages]:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    notes.append("weights: averaged, model_ema")
    return {name: averages[their] for name, their in theirs.items()}
