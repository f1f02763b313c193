"""Fills modules from sources in which the same weights have other names, by patterns of ours."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vqtool.interop._sources import Module, Source, fill
from vqtool.trust import sketch

Patterns = tuple[tuple[str, str], ...]  # regular expressions of our names -> theirs, all applied in turn


def fill_renamed(
    build: Callable[[], Module], patterns: Patterns, tensors: Mapping[str, Tensor], source: Source
) -> Module:
    """A network, filled with all tensors of a source; without gradients, in eval mode.

    Args:
        build: makes it.
        patterns: where theirs has {a,b,c}, as in "attn.{q,k,v}.weight", the tensors are put one below the other.
        tensors: by the source's names; axes of one entry, as of convolutions of one cell, may be more or fewer.
        source: for messages.

    Raises:
        FormatError: tensors are missing, of another shape or left over; they are listed.
    """
    names, found = {}, dict(tensors)
    for ours, wanted in sketch(build, len(tensors), str(source.path)).items():
        theirs = rename(ours, patterns)
        parts = _expand(theirs)
        names[ours] = " + ".join(parts)
        if all(part in tensors for part in parts):
            values = [found.pop(part) for part in parts]
            value = torch.cat(values) if len(values) > 1 else values[0]
            found[ours] = value.reshape(wanted.shape) if _is_squeezed(value, wanted) else value
    return fill(build, found, source, names=names).eval().requires_grad_(False)


def renamed(module: nn.Module, patterns: Patterns) -> dict[str, Tensor]:
    """The tensors of a module by the names that `fill_renamed` reads them from."""
    found: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        parts = _expand(rename(name, patterns))
        found |= dict(zip(parts, tensor.chunk(len(parts)), strict=True))
    return found


def rename(name: str, patterns: Patterns) -> str:
    """The source's name of one of ours."""
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def _expand(name: str) -> list[str]:
    """x.{a,b}.y as x.a.y and x.b.y."""
    match = re.search(r"\{(.+?)\}", name)
    if match is None:
        return [name]
    return [name[: match.start()] + part + name[match.end() :] for part in match[1].split(",")]


def _is_squeezed(value: Tensor, wanted: Tensor) -> bool:
    """Whether a tensor is another one but for axes of one entry."""
    return [side for side in value.shape if side > 1] == [side for side in wanted.shape if side > 1]
