"""What runs a network on a CPU: PyTorch, or ONNX Runtime, which the network is exported for once.

Why: PyTorch's threads wait for each other after every operation, so that other work on one core stops all of them, and
a network of short sequences spends a third of its time between matrix products. ONNX Runtime fuses what stands between
and lets threads take what is left. Its logits differ from PyTorch's by rounding alone (some 1e-6): tokens are the same
except where two of them tie to 1e-5.

A network is a module whose `forward` takes tensors; what else it has stays as it is (`replace_forward`). Its graph, an
.onnx file, has batches of any size, and grids or pictures of any size where the network takes these. It is kept in the
user's cache under a digest of weights, settings and versions; a graph that is loaded or made is compared with the
network on a small input first, so that one that is damaged is noticed and made anew.

Exported by tracing, torch.onnx.export(dynamo=False): 0.7 s for a small network, 5.6 s by torch.export, and rounding is
closer to PyTorch's.
"""

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vqtool.artifacts import describe_tensor, fingerprint
from vqtool.errors import VqtoolError, warn
from vqtool.extras import install_command
from vqtool.outputs import atomic_path, cache_folder
from vqtool.registry import check_known
from vqtool.version import __version__

RUNTIMES = ("torch", "onnx", "auto")
OPSET = 18  # of ONNX, from the end of 2022: what reads files today knows it
TOLERANCE = 1e-3  # between graph and network, of the largest output or of 1: far above rounding, far below damage

Inputs = Mapping[str, Tensor]
Axes = Mapping[str, Sequence[str]]  # input -> names of its first axes, "" where the length is fixed

M = TypeVar("M", bound=nn.Module)
N = TypeVar("N")  # a network, or what has one


class Session(Protocol):
    """What ONNX Runtime makes of a graph."""

    def get_inputs(self) -> list[Any]:
        """What it takes: inputs that make no difference are not among it."""

    def run(self, output_names: None, input_feed: Mapping[str, Any]) -> list[Any]:
        """The outputs as arrays."""


def choose(runtime: str, device: torch.device) -> str:
    """What runs networks on a device, "torch" or "onnx"; auto is the latter on a CPU where it is installed.

    It does not depend on how much there is to do, nor on what else the machine does, so that a seed gives the same.

    Raises:
        VqtoolError: an unknown one, or onnx on a GPU or without its packages.
    """
    check_known("runtime", runtime, RUNTIMES)
    lacking = missing_packages()
    if runtime == "auto":
        return "onnx" if device.type == "cpu" and not lacking else "torch"
    if runtime == "onnx" and device.type != "cpu":
        raise VqtoolError(f"`runtime` onnx is for CPUs, and the device is {device}: take torch, or `device` cpu")
    if runtime == "onnx" and lacking:
        raise VqtoolError(f"`runtime` onnx: {' and '.join(lacking)} not installed: {install_command('onnx')}")
    return runtime


def missing_packages() -> list[str]:
    """Those of the extra vqtool[onnx] that are not installed."""
    return [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]


def try_to_run(runtime: str, device: torch.device, network: N, by_onnx: Callable[[], N]) -> tuple[N, str]:
    """A network as a runtime runs it, and which one: under auto PyTorch where ONNX cannot have the network.

    Args:
        runtime: one of RUNTIMES.
        device: where the network is.
        network: as PyTorch runs it.
        by_onnx: makes the one that ONNX Runtime runs.

    Raises:
        VqtoolError: as `choose`; or it cannot be exported, and `runtime` is onnx.
    """
    if choose(runtime, device) == "torch":
        return network, "torch"
    try:
        return by_onnx(), "onnx"
    except VqtoolError as error:
        if runtime == "onnx":
            raise VqtoolError(f"`runtime` onnx: {error}: take `runtime` torch") from error
        warn(f"PyTorch runs this network: {error}")
        return network, "torch"


def replace_forward(module: M, forward: Callable[..., Any]) -> M:
    """The same module, weights and all, but that this is called in the place of its `forward`."""
    other = copy(module)
    other.forward = forward
    return other


def is_replaced(module: nn.Module) -> bool:
    """Whether a module is one of `replace_forward`."""
    return "forward" in vars(module)


class Graphs:
    """A network in ONNX Runtime: a graph for each set of inputs that it is given, made when it first is.

    Args:
        network: in eval mode on the CPU; its inputs are tensors, in the order of `axes`.
        axes: of its inputs, given or not.
        config: what it was made from, beside its weights.
        name: what messages call it.
        folder: where graphs are kept; None: onnx/ in the user's cache.
    """

    def __init__(
        self, network: nn.Module, axes: Axes, config: object, *, name: str, folder: Path | None = None
    ) -> None:
        self._network = network
        self._axes = axes
        self._config = repr(config)
        self._name = name
        self._folder = folder or cache_folder("onnx")
        self._sessions: dict[tuple[tuple[str, torch.dtype], ...], Session] = {}

    def run(self, **inputs: Tensor) -> Any:
        """What the network makes of inputs, a tensor or a tuple of several, by ONNX Runtime.

        Raises:
            VqtoolError: it cannot be exported: says why.
        """
        return _run(self.prepare(**inputs), inputs)

    def prepare(self, **inputs: Tensor) -> Session:
        """The session for such inputs, made if there is none yet."""
        key = tuple((name, tensor.dtype) for name, tensor in inputs.items())
        if key not in self._sessions:
            self._sessions[key] = self._load(inputs)
        return self._sessions[key]

    @torch.no_grad()
    def export(self, inputs: Inputs, outputs: Sequence[str] = ("output",)) -> bytes:
        """The graph for such inputs, an .onnx file.

        Args:
            inputs: by name.
            outputs: names of what the network gives.

        Raises:
            VqtoolError: it has an operator that ONNX lacks, or is too large for such a file.
        """
        axes = {name: dict(enumerate(self._axes[name])) for name in inputs}
        named = {name: {at: axis for at, axis in own.items() if axis} for name, own in axes.items()}
        example = tuple(_grow(tensor, self._axes[name]) for name, tensor in inputs.items())
        file = io.BytesIO()
        try:
            # The exporter lacks rms_norm; and it warns that it is the older one, and that a trace may be of one size.
            torch.onnx.utils.register_custom_op_symbolic("aten::rms_norm", _rms_norm, OPSET)
            with warnings.catch_warnings(), _unlogged():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    _Flat(self._network, tuple(inputs)), example, file,  # type: ignore[arg-type]
                    input_names=[*inputs], output_names=[*outputs], dynamic_axes=named, opset_version=OPSET,
                    dynamo=False,
                )  # fmt: skip
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise self._refusal(error) from error
        return file.getvalue()

    def _load(self, inputs: Inputs) -> Session:
        path = self._folder / f"{self._digest(inputs)}.onnx"
        if path.is_file():
            try:
                return self._checked(open_session(path.read_bytes()), inputs)
            except Exception as error:  # ONNX Runtime's own are of no common kind
                warn(f"{path}: damaged, and made anew: {_first_line(error)}")
        graph = self.export(inputs)
        self._keep(path, graph)
        try:
            return self._checked(open_session(graph), inputs)
        except Exception as error:
            raise self._refusal(error) from error

    def _keep(self, path: Path, graph: bytes) -> None:
        """Write a graph to the cache; where that is not possible, it is made anew each time."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path, force=True) as temporary:
                temporary.write_bytes(graph)
        except (OSError, VqtoolError) as error:
            if not isinstance(error.__cause__, BlockingIOError):  # another process is writing the same
                warn(f"the network that ONNX Runtime runs is exported anew each time: {_first_line(error)}")

    @torch.no_grad()
    def _checked(self, session: Session, inputs: Inputs) -> Session:
        """A session, if it computes what the network does."""
        wanted = _Flat(self._network, tuple(inputs))(*inputs.values())
        for own, other in zip(_each(_run(session, inputs)), _each(wanted), strict=True):
            if own.shape != other.shape:
                raise ValueError(f"it gives {tuple(own.shape)}, the network {tuple(other.shape)}")
            off = float((own - other).abs().max())
            if not off <= TOLERANCE * max(1.0, float(other.abs().max())):
                raise ValueError(f"its numbers are up to {off:.2g} from the network's")
        return session

    def _digest(self, inputs: Inputs) -> str:
        """Of all that a graph depends on."""
        shapes = {
            name: [str(tensor.dtype), [*self._axes[name]], _fixed(tensor, self._axes[name])]
            for name, tensor in inputs.items()
        }
        about = {
            "network": f"{type(self._network).__module__}.{type(self._network).__qualname__}",
            "config": self._config,
            "inputs": shapes,
            "versions": [__version__, str(torch.__version__), OPSET],
        }
        tensors = self._network.state_dict().items()
        return fingerprint("onnx", about, ((name, describe_tensor(tensor.contiguous())) for name, tensor in tensors))

    def _refusal(self, error: Exception) -> VqtoolError:
        return VqtoolError(f"{self._name} cannot be exported to ONNX ({_first_line(error)})")


class _Flat(nn.Module):
    """A network called with some of its inputs, by name."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names
        self.eval()

    def forward(self, *tensors: Tensor) -> Any:
        """What the network makes of them."""
        return self.network(**dict(zip(self.names, tensors, strict=True)))


def run_by_onnx(module: M, axes: Axes, config: object, *, name: str, example: Tensor) -> M:
    """A network of one input, in ONNX Runtime.

    Args:
        module: in eval mode on the CPU.
        axes: of its input.
        config: what it was made from.
        name: what messages call it.
        example: an input; whether the network can be exported shows here.

    Raises:
        VqtoolError: it cannot be exported.
    """
    if is_replaced(module):
        return module
    graphs, (input_name,) = Graphs(module, axes, config, name=name), axes
    graphs.prepare(**{input_name: example})
    return replace_forward(module, lambda tensor: graphs.run(**{input_name: tensor}))


def open_session(graph: bytes) -> Session:
    """What ONNX Runtime makes of an .onnx file, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # Else threads that wait for more to do keep the cores from PyTorch, which does the rest of a step.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session: Session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the exporter from printing the whole graph to standard output where it fails; it ignores its own switch."""
    library: Any = torch._C
    log, library._jit_onnx_log = library._jit_onnx_log, lambda *parts: None
    try:
        yield
    finally:
        library._jit_onnx_log = log


def _rms_norm(graph: Any, x: Any, shape: Any, weight: Any, epsilon: Any) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis, in operators of ONNX."""
    size = None if epsilon.node().mustBeNone() else float(epsilon.node().t("value"))
    size = torch.finfo(torch.float32).eps if size is None else size
    last, least = (graph.op("Constant", value_t=torch.as_tensor(value)) for value in ([-1], size))
    mean = graph.op("ReduceMean", graph.op("Mul", x, x), last, keepdims_i=1)
    normed = graph.op("Div", x, graph.op("Sqrt", graph.op("Add", mean, least)))
    return normed if weight.node().mustBeNone() else graph.op("Mul", normed, weight)


def _run(session: Session, inputs: Inputs) -> Tensor | tuple[Tensor, ...]:
    feed = {each.name: inputs[each.name].detach().contiguous().numpy() for each in session.get_inputs()}
    found = tuple(map(torch.from_numpy, session.run(None, feed)))
    return found[0] if len(found) == 1 else found


def _each(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _grow(tensor: Tensor, axes: Sequence[str]) -> Tensor:
    """A tensor that is longer in every axis that has a name: by one for "batch", twice as long else.

    A trace of it has no length that is 1 by chance, nor the size of the training grids.
    """
    for at, axis in enumerate(axes):
        if axis:
            more = tensor.narrow(at, 0, 1 if axis == "batch" else tensor.shape[at])
            tensor = torch.cat([tensor, more], dim=at)
    return tensor


def _fixed(tensor: Tensor, axes: Sequence[str]) -> list[int]:
    """The lengths of the axes that have no name."""
    named = [*axes, *[""] * (tensor.ndim - len(axes))]
    return [length for length, axis in zip(tensor.shape, named, strict=True) if not axis]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
