"""Codebooks: what the codes are worth, and how to rebuild them.

`refit`, `prune`, `remap` and `apply_map` do from Python what `vqtool codebook` does. Below them `usage` counts what
grids use; `vectors` samples what an encoder makes of images, `seeding` and `fitting` fit codes to it; `rebuilt` puts
codes into a tokenizer, `maps` keeps which old code becomes which new one. Seeding is one function a method, with
`def seeds(vectors (N, D), size, generator) -> (size, D)`; their names are in `seeding.SEEDINGS`.
"""

from vqtool.codebooks.conversion import Conversion, apply_map, remap
from vqtool.codebooks.maps import CodeMap, load_map, save_map
from vqtool.codebooks.pruning import Pruning, prune
from vqtool.codebooks.refitting import Refit, refit

__all__ = [
    "CodeMap",
    "Conversion",
    "Pruning",
    "Refit",
    "apply_map",
    "load_map",
    "prune",
    "refit",
    "remap",
    "save_map",
]
