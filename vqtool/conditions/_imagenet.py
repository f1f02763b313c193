"""The names of ImageNet's 1,000 classes, in the order of their numbers."""

from functools import cache
from importlib.resources import files
from pathlib import Path

NUM_CLASSES = 1000


@cache
def imagenet_labels() -> tuple[str, ...]:
    """One name a class, all different: WordNet's first, or another one where two classes have the same."""
    path = Path(str(files("vqtool"))) / "builtin" / "imagenet-classes.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())
