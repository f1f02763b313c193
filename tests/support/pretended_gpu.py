"""A GPU that is not there: tensors that say they are on one, hold their numbers on the CPU, and are watched.

Inside ``PretendedGpu`` a tensor that is made or copied to "cuda" computes what it would, but

- a mixture of such tensors with those of the CPU raises, as it would on a GPU (numbers without axes may be mixed);
- whatever makes the program wait for a GPU, or copies between the two, is noted with the line that did it.
"""

import traceback
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ROOT = str(Path(__file__).parents[2])
aten = torch.ops.aten
# Each asks for numbers, or for a size that depends on them.
WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_dim,
    aten.bincount, aten.repeat_interleave,
}  # fmt: skip
BY_MASK = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}  # wait if an index is a mask
PINS = {aten.pin_memory, aten._pin_memory}
COPIES = {aten.copy_, aten._to_copy, aten.lift_fresh}


NUMBERS = {
    torch.Tensor.item: lambda value: value, torch.Tensor.__bool__: bool, torch.Tensor.__int__: int,
    torch.Tensor.__float__: float, torch.Tensor.__index__: int,
}  # fmt: skip


class _OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cuda:0",
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"OnGpu({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        # These look for the driver, or at memory, before they come to a dispatcher.
        if func is torch.Tensor.__getitem__:
            return _index(*args)
        if func is torch.Tensor.__setitem__:
            return _set(*args)
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        if func in NUMBERS:
            return NUMBERS[func](aten._local_scalar_dense(*args))
        if func is torch.Tensor.__invert__:
            return aten.bitwise_not(*args)
        if func in (torch.Tensor.copy_, torch.Tensor.nonzero):
            return getattr(aten, func.__name__)(*args)
        if func is torch.Tensor.contiguous:
            return aten.clone(*args, memory_format=(kwargs or {}).get("memory_format", torch.contiguous_format))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("a pretended GPU is used outside of `PretendedGpu`")


def _view(tensor, index):
    """A tensor indexed by integers, slices and None, and the tensors among the index, by their axes."""
    index = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in index):
        place = next(i for i, part in enumerate(index) if part is Ellipsis)
        taken = sum(part.ndim if _is_mask(part) else 1 for part in index if part is not None and part is not Ellipsis)
        index[place : place + 1] = [slice(None)] * (tensor.ndim - taken)
    axis, chosen = 0, {}
    for part in index:
        if part is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(part, int):
            tensor = tensor.select(axis, part)
            continue
        elif isinstance(part, slice):
            tensor = aten.slice(tensor, axis, part.start, part.stop, 1 if part.step is None else part.step)
        else:
            chosen[axis] = part
            axis += part.ndim - 1 if _is_mask(part) else 0
        axis += 1
    return tensor, [chosen.get(axis) for axis in range(max(chosen) + 1)] if chosen else []


def _index(tensor, index):
    found, chosen = _view(tensor, index)
    return aten.index(found, chosen) if chosen else found


def _set(tensor, index, value):
    found, chosen = _view(tensor, index)
    value = value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=found.dtype, device=found.device)
    if chosen:
        aten.index_put_(found, chosen, value)
    else:
        aten.copy_(found, value)


def _is_mask(part):
    return isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8)


class PretendedGpu(TorchDispatchMode):
    """Where "cuda" can be used; `waits` are the lines that waited for it or copied from or to it."""

    def __init__(self):
        super().__init__()
        self.waits = []
        self._pinned = []  # tensors that a GPU can fetch while the program goes on

    def __enter__(self):
        self._patch = patch.object(torch.cuda, "_lazy_init", lambda: None)
        self._patch.start()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") makes one on the CPU and copies it
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._patch.stop()
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        packet, values = func.overloadpacket, tree_flatten((args, kwargs))[0]
        if packet in PINS:
            self._pinned.append(args[0])
            return args[0]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        inside = [tensor for tensor in tensors if isinstance(tensor, _OnGpu)]
        outside = [tensor for tensor in tensors if not isinstance(tensor, _OnGpu)]
        wanted = kwargs.get("device")
        goes = bool(inside) if wanted is None else torch.device(wanted).type == "cuda"
        if packet in COPIES:
            crosses = (goes and outside) or (inside and not goes) or (packet is aten.copy_ and inside and outside)
            is_fetched = kwargs.get("non_blocking") and any(args[0] is pinned for pinned in self._pinned)
            if crosses and not is_fetched:
                self._note(func)
            if packet is aten.copy_:
                goes = isinstance(args[0], _OnGpu)
        elif inside and any(tensor.ndim for tensor in outside):
            raise RuntimeError(f"{func}: tensors of the CPU and of the GPU together, at {self._line()}")
        if inside and (packet in WAITS or (packet in BY_MASK and any(map(_is_mask, args[1])))):
            self._note(func)
        if packet is aten._fused_sdp_choice:
            return 0
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(lambda value: value.inner if isinstance(value, _OnGpu) else value, (args, kwargs))
        made = func(*args, **kwargs)
        if func._schema.is_mutable and not func._schema.name.startswith("aten::_native_batch_norm"):
            return values[0] if isinstance(made, torch.Tensor) else made
        return tree_map(lambda value: _OnGpu(value) if goes and isinstance(value, torch.Tensor) else value, made)

    def _note(self, func):
        self.waits.append(f"{self._line()}: {func}")

    def _line(self):
        """The innermost line of the package that is being run."""
        own = [frame for frame in traceback.extract_stack() if frame.filename.startswith(f"{ROOT}/vqtool")]
        return f"{own[-1].filename.removeprefix(ROOT + '/')}:{own[-1].lineno}" if own else "a test"
