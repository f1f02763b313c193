"""`cache`: the network computes cells that are asked for or have changed, and all of them in every m-th call only.

The others lend their keys and values of an earlier call, in which their neighbours, and the time, were others: that is
the error. Each sample's own calls decide when it is computed whole, and how many cells a call computes depends on the
plan alone, so that a sample is the same in every batch.
Source: Liu et al. 2025 (arXiv:2505.19089), ReCAP; Wu et al. 2025 (arXiv:2505.22618), Fast-dLLM's dual cache. Differs
from both: of the masked cells, too, only those are computed whose tokens the call is asked for.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.denoisers._cache import Cache
from vqtool.errors import VqtoolError
from vqtool.priors import Prior
from vqtool.runtimes import replace_forward
from vqtool.samplers._cells import pick, put
from vqtool.samplers._machine import MachineOptions
from vqtool.samplers._microbatches import Microbatch
from vqtool.samplers._settings import Settings
from vqtool.samplers._tiles import Tiling

SHARE = 8  # where a sampler does not say how many cells change, a call has room for one in so many of all that did


class Caches:
    """A prior with what its network has kept, for every microbatch of a walk.

    Args:
        prior: what is called.
        every: m; 1 keeps nothing.
        num: of samples.
    """

    def __init__(self, prior: Prior, every: int, num: int) -> None:
        self._prior, self._every = prior, every
        self._counts = torch.zeros(num, dtype=torch.int64)  # calls of each sample
        self._due = self._asked = torch.ones(num, dtype=torch.bool)
        self._x_t: Tensor | None = None
        self._networks: dict[int, tuple[_Cached, Prior]] = {}

    def begin(self, x_t: Tensor, asked: Tensor) -> None:
        """Begin a call of samples (B,) bool, on the CPU; one more about the same grids belongs to the one before."""
        if x_t is not self._x_t:
            self._x_t, self._due = x_t, self._counts % self._every == 0
            self._counts += asked
        self._asked = asked

    def find(self, number: int, microbatch: Microbatch, changes: int | None) -> Prior:
        """The prior as it is called for a microbatch.

        Args:
            number: of the microbatch.
            microbatch: it.
            changes: how many cells of a sample may have changed since its last call; None for a share of all.
        """
        if self._every == 1:
            return self._prior
        if number not in self._networks:
            network = _Cached(self._prior.denoiser, self._prior.num_parts)
            self._networks[number] = (
                network,
                replace(self._prior, denoiser=replace_forward(self._prior.denoiser, network)),
            )
        network, prior = self._networks[number]
        alike = bool(self._due[microbatch.rows][self._asked[microbatch.rows]].all())  # else places without a sample
        network.due, network.asked = microbatch.fill(self._due, alike), microbatch.fill(self._asked, True)
        network.changes = changes
        return prior


class _Cached:
    """A denoiser for one microbatch, called as it is.

    Attributes:
        due: (places,) bool on the CPU, of which all cells are computed.
        asked: (places,) bool on the CPU, whose logits are wanted.
        changes: cells that a call computes beside those that are wanted.
    """

    def __init__(self, denoiser: Denoiser, num_parts: int) -> None:
        self.due = self.asked = torch.ones(0, dtype=torch.bool)
        self.changes: int | None = None
        self._forward: Callable[..., Tensor] = denoiser.forward
        self._num_parts = num_parts
        self._cache = Cache()
        self._known: Tensor | None = None  # (places, H, W): what was in a cell when it was computed

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: EncodedCondition | None = None, cells: Tensor | None = None
    ) -> Tensor:
        """Logits, as of `Denoiser.forward`."""
        whole = self.asked if cells is None else self.asked & self.due
        others = self.asked & ~whole
        if cells is None or not bool(others.any()):
            return self._compute(None, whole, x_t, t, condition, cells)
        logits = self._compute(self._choose(x_t, cells), others, x_t, t, condition, cells)
        if not bool(whole.any()):
            return logits
        made = self._compute(None, whole, x_t, t, condition, cells)
        return torch.where(whole.to(x_t.device)[:, None, None], made, logits)

    def _choose(self, x_t: Tensor, cells: Tensor) -> Tensor:
        """The cells (places, r) to compute: those that are wanted, then those that have changed, then others."""
        num = x_t[0].numel()
        changes = self.changes or min(-(-num // SHARE), -(-cells.shape[1] // 2))
        count = min(num - cells.shape[1], changes)
        known = x_t if self._known is None else self._known
        order = (x_t != known).flatten(1).to(torch.int8).scatter(1, cells, -1)
        return torch.cat([cells, order.argsort(dim=1, descending=True, stable=True)[:, :count]], dim=1)

    def _compute(self, computed: Tensor | None, rows: Tensor, x_t: Tensor, *rest: Any) -> Tensor:
        """Logits, of which those in some rows (places,) count, by computing some cells (places, r), or all."""
        known = x_t
        if computed is not None and self._known is not None:
            known = put(self._known, computed, pick(x_t, computed))
        writes = None
        if self._known is not None and not bool(rows.all()):
            writes = rows.to(x_t.device)
            known = torch.where(writes[:, None, None], known, self._known)
        self._known = known
        self._cache.begin(None if computed is None else computed // self._num_parts, writes)
        return self._forward(x_t, *rest, self._cache)


def check(prior: Prior, settings: Settings) -> None:
    """Raise unless the networks can compute some cells alone.

    Raises:
        VqtoolError: one cannot, or nothing would be gained; says why.
    """
    for each in (prior, settings.guide_with or prior) if settings.cache > 1 else ():
        why = ""
        if not each.denoiser.caches:
            why = f"the denoiser {each.denoiser_name} has no keys and values of single cells to keep"
        elif not each.kernel.has_mask:
            why = f"the kernel {each.kernel.name} may change every cell in every call"
        elif each.denoiser.latent_size:
            why = "a student draws another latent for all cells in every call"
        if why:
            raise VqtoolError(f"`cache` {settings.cache}: {why}: leave it out")


def choose_runtime(every: int, asked: MachineOptions, tiling: Tiling) -> str:
    """The runtime to ask for: PyTorch where something is kept, and auto leaves the choice.

    Raises:
        VqtoolError: it is to be ONNX Runtime or compiled, or grids pass the network in several tiles.
    """
    if every == 1:
        return asked.runtime
    if asked.runtime == "onnx":
        raise VqtoolError(f"`cache` {every} is for `runtime` torch: leave one of `cache` and `runtime` onnx out")
    if asked.compile:
        raise VqtoolError(
            f"`cache` {every} is for networks that are not compiled: leave one of `cache` and `compile` out"
        )
    if len(tiling) > 1:
        raise VqtoolError(
            f"`cache` {every} is for grids that pass the network whole, and these do so in {len(tiling)} tiles: "
            "leave it out, or take `grid_mode` stretch"
        )
    return "torch"


def kept_bytes(prior: Prior, settings: Settings, tiling: Tiling) -> int:
    """Bytes that are kept of a sample; 0 without `cache`."""
    if settings.cache == 1:
        return 0
    priors = [prior, *([settings.guide_with or prior] if settings.guided else [])]
    configs = [each.denoiser.config for each in priors]
    return sum(8 * config.num_layers * config.width * tiling.num_cells // prior.num_parts for config in configs)
