"""What the tests of commands share: tokenizer files, and a way to run `vqtool` in this process."""

import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; set before torch is imported
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # two runs on a GPU can be compared bit for bit
os.environ.setdefault(  # finding the fonts anew takes seconds
    "MPLCONFIGDIR", str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib")
)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="vqtool-tests-")  # features that commands remember
os.environ["PYTHONPATH"] = os.pathsep.join(  # processes that tests start find support/
    filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
)

from support.commands import Result, build_tokenizer

from vqtool import artifacts
from vqtool.cli import main as cli
from vqtool.tokenizers import save_tokenizer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # some tests send Ctrl-C, to themselves and to commands


def pytest_unconfigure(config):
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory):
    """A tokenizer file: factor 8, K = 16."""
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.safetensors"
    save_tokenizer(path, build_tokenizer())
    return path


@pytest.fixture(scope="session")
def other_tokenizer_path(tmp_path_factory):
    """A tokenizer file of the same shape with other weights."""
    path = tmp_path_factory.mktemp("tokenizer") / "other.safetensors"
    save_tokenizer(path, build_tokenizer(seed=1))
    return path


@pytest.fixture
def gpu():
    """The device of tests marked `gpu`, which compute in float32; VQTOOL_TEST_DEVICE=cpu runs them without one."""
    import torch

    name = os.environ.get("VQTOOL_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device(name)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.fixture
def vqtool(monkeypatch, capsysbinary):
    """Run a command in this process: vqtool("encode", "imgs", stdin=None) -> Result."""

    def run(*arguments, stdin=None):
        monkeypatch.setattr(sys, "argv", ["vqtool", *map(str, arguments)])
        capsysbinary.readouterr()
        with ExitStack() as stack:
            if stdin is not None:
                monkeypatch.setattr(sys, "stdin", stack.enter_context(open(stdin)))
            with pytest.raises(SystemExit) as stop:
                cli.main()
        data, err = capsysbinary.readouterr()
        return Result(stop.value.code or 0, data, err.decode())

    return run


@pytest.fixture
def builtin(tmp_path, monkeypatch):
    """A folder that stands for that of the built-in tokenizer and prior."""
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(artifacts, "builtin_path", lambda kind: folder / f"{kind}.safetensors")
    return folder
