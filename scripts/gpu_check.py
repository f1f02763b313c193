"""Check and measure vqtool on a GPU, in stages of stated minutes; see gpu_check.sh for how it is called.

Each figure is a row: what was measured, and numbers by name. Rows are written as JSON and as a Markdown table as soon
as they are there. A stage that runs out of its time leaves the rest of its rows out and says so.
"""

import argparse
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vqtool
from vqtool import conditions, denoisers
from vqtool.artifacts import load as load_artifact
from vqtool.diffusion import kernels
from vqtool.priors import GridSpec, Prior
from vqtool.tokenizers import Tokenizer, load_tokenizer, vqgan
from vqtool.training import prior as training
from vqtool.training.clock import LoopConfig
from vqtool.training.data import GridData
from vqtool.training.loop import measure_step_seconds
from vqtool.training.objectives import PriorLoss, PriorObjective

ROOT = Path(__file__).resolve().parents[1]
Row = tuple[str, dict[str, Any]]

MINUTES = {"tests": 2.0, "ceiling": 0.25, "train": 2.75, "sample": 2.0, "codec": 0.75, "resume": 0.5, "peers": 0.5}
BRIEF = {"ceiling": 0.05, "sample": 0.35, "train": 0.35, "codec": 0.1, "tests": 0.4}  # 75 seconds
SIZES = {  # of the denoiser: layers, width, heads, and grids a step in training
    "base": (8, 256, 8, 256),
    "large": (12, 512, 8, 128),
    "huge": (16, 1024, 16, 64),
    "24x512": (24, 512, 8, 128),
    "6x256": (6, 256, 8, 256),
    "tiny": (1, 64, 2, 2),
}
CODES = 1024
STEPS = 16  # of the samplers


class OutOfTime(Exception):
    """A stage has used its time."""


@dataclass
class Bench:
    """What all stages share.

    Attributes:
        device: to measure on.
        tiny: networks and batches as small as they get.
        deadline: of the stage, by `time.monotonic`.
        ceiling: bf16 operations a second of matrix products, once measured.
        limit: seconds of the stage.
    """

    device: torch.device
    tiny: bool
    deadline: float = 0.0
    ceiling: float = 0.0
    limit: float = 0.0

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.type == "cuda"

    def check(self, needed: float = 0.0) -> None:
        """Raise OutOfTime unless so many seconds are left."""
        if time.monotonic() + needed > self.deadline:
            raise OutOfTime

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], *, least: float = 0.3, most_calls: int = 50) -> float:
        """The median seconds of a call after one that warms up; for `least` seconds, within the deadline."""
        call()
        self.wait()
        times, begin = [], time.monotonic()
        while not times or (
            time.monotonic() - begin < least and time.monotonic() < self.deadline and len(times) < most_calls
        ):
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def peak(self) -> float | None:
        """GB at the highest since the last call."""
        if not self.on_gpu:
            return None
        found = torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.reset_peak_memory_stats(self.device)
        return round(found, 2)


def build(name: str, *, side: int = 16, seed: int = 0) -> Prior:
    """An untrained prior of a size whose head is not 0, so that its samples are not all alike."""
    layers, width, heads, _ = SIZES[name]
    kernel = kernels.build("mask-replace", codebook_size=CODES, num_steps=100)
    config = {
        "codebook_size": CODES, "grid_size": (side, side), "num_steps": 100,
        "num_layers": layers, "width": width, "num_heads": heads,
    }  # fmt: skip
    torch.manual_seed(seed)
    denoiser = denoisers.build("transformer", config)
    torch.nn.init.normal_(denoiser.get_submodule("head").weight, std=0.02)
    spec = GridSpec("", "", (side, side), (16 * side, 16 * side), "")
    return Prior(kernel, denoiser, "transformer", conditions.build("none"), spec)


def operations(name: str, cells: int = 256) -> float:
    """Floating-point operations of a cell in a forward pass: matrices, attention, head."""
    layers, width, _, _ = SIZES[name]
    return 2 * (12 * layers * width**2 + width * CODES) + 4 * layers * cells * width


def run_tests(bench: Bench) -> Iterator[Row]:
    """The tests marked `gpu`, four at a time, in a process of their own."""
    places = [*sorted(map(str, (ROOT / "tests").glob("*/test_gpu.py"))), "tests/test_rng.py"]
    environment = {**os.environ, "VQTOOL_TEST_DEVICE": bench.device.type}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", *places]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "4" if bench.on_gpu else "2", "--dist", "worksteal"]
    if bench.tiny:
        command += ["-k", "halton or bits or ema or reweighted or taming"]
    begin = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=max(10.0, bench.deadline - begin))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # it and its workers
        text, _ = process.communicate()
        text += "\ncut off"
    lines = text.strip().splitlines()
    print("\n".join(lines[-60:]), flush=True)
    yield (
        "tests marked gpu",
        {
            "result": lines[-1].strip("= ") if lines else "nothing",
            "exit_code": process.returncode,
            "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))][:8],
        },
    )


def measure_ceiling(bench: Bench) -> Iterator[Row]:
    """Products of large square matrices: what the card can do at most."""
    size = 128 if bench.tiny else 8192
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("float32 as TF32", torch.float32, "high"),
        ("float32", torch.float32, "highest"),
    ):
        bench.check()
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        rate = 2 * size**3 / bench.seconds(lambda a=a, b=b: a @ b)
        if dtype == torch.bfloat16:
            bench.ceiling = rate
        torch.set_float32_matmul_precision("highest")
        yield f"matrix products of {size} x {size}, {name}", {"TFLOP/s": round(rate / 1e12, 1)}


def measure_training(bench: Bench) -> Iterator[Row]:
    """Steps of the training loop at 256 tokens a grid: bf16 on a GPU, with and without torch.compile."""
    names = ["tiny"] if bench.tiny else ["base", "24x512", "large", "huge"]
    cases = [(name, False) for name in names] + ([(name, True) for name in names] if bench.on_gpu else [])
    for name, compiled in cases:
        bench.check(25.0 if compiled else 3.0)
        size = 2 if bench.tiny else SIZES[name][3]
        grids = np.random.default_rng(0).integers(0, CODES, (4 * size, 16, 16))
        data = GridData(grids, torch.zeros(len(grids), 0, dtype=torch.int64), build("6x256").grid_spec)
        run = LoopConfig(1000, size, bf16=bench.on_gpu, compile=compiled)
        bench.peak()
        prior = build(name)
        objective = PriorObjective(prior, data, PriorLoss(), run)
        seconds = measure_step_seconds(prior.denoiser, objective, num_items=len(data), config=run)
        rate = size * 256 / seconds
        figures = {"grids a step": size, "ms a step": round(1000 * seconds, 1), "tokens/s": round(rate)}
        figures["TFLOP/s"] = round(3 * rate * operations(name) / 1e12, 2)
        if bench.ceiling:
            figures["share of ceiling"] = round(3 * rate * operations(name) / bench.ceiling, 3)
        figures["GB"] = bench.peak()
        yield f"training {name}, {'bf16' if bench.on_gpu else 'fp32'}{', compiled' if compiled else ''}", figures


def measure_sampling(bench: Bench) -> Iterator[Row]:
    """Whole walks of ancestral sampling: from noise to tokens on the CPU."""
    steps = 2 if bench.tiny else STEPS
    for batch in (1, 2) if bench.tiny else (1, 64, 512):
        for name in ("tiny",) if bench.tiny else ("6x256", "24x512"):
            bench.check(2.0)
            prior = build(name).to(bench.device)
            bench.peak()
            for label, more in sampling_forms(bench):
                bench.check(2.0)

                def walk(prior: Prior = prior, batch: int = batch, more: dict[str, Any] = more) -> object:
                    return vqtool.sample(prior, batch, batch_size=batch, steps=steps, **more)

                seconds = bench.seconds(walk, least=0.5)
                figures = {"grids/s": round(batch / seconds, 2), "ms a step": round(1000 * seconds / steps, 2)}
                yield f"sampling {name}, batch {batch}, {steps} steps, {label}", {**figures, "GB": bench.peak()}


def sampling_forms(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments of the ways to compute: the default first."""
    yield ("bf16" if bench.on_gpu else "fp32"), {}
    if bench.on_gpu:
        yield "fp32, exact", {"exact": True}


def measure_codec(bench: Bench) -> Iterator[Row]:
    """The built-in tokenizer, and an f16 VQGAN of the published shape with random weights, both at 256 x 256 pixels."""
    torch.manual_seed(0)
    shape = vqgan.SIZES["f16-small" if bench.tiny else "f16"]
    for name, built in (("built-in tokenizer", load_tokenizer()), ("f16 VQGAN", Tokenizer(shape).eval())):
        tokenizer = built.to(bench.device)
        batch, side = (2, 64) if bench.tiny else (32, 256)
        images = torch.rand(batch, 3, side, side, device=bench.device) * 2 - 1
        tokens = torch.randint(tokenizer.codebook_size, (batch, *tokenizer.grid_size((side, side)))).to(bench.device)
        for what, call in (
            ("encode", lambda images=images, tokenizer=tokenizer: tokenizer.encode(images)),
            ("decode", lambda tokens=tokens, tokenizer=tokenizer: tokenizer.decode(tokens)),
        ):
            bench.check(1.0)
            bench.peak()
            rate = batch / bench.seconds(call)
            yield f"{name}, {what}, {side} px, batch {batch}", {"images/s": round(rate, 1), "GB": bench.peak()}


class _Stop(Exception):
    """Ends a run in its middle."""


def check_resume(bench: Bench) -> Iterator[Row]:
    """A run that is stopped and resumed against one that is not: every tensor of its state, bit for bit."""
    size = 4 if bench.tiny else 32
    grids = np.random.default_rng(0).integers(0, CODES, (4 * size, 16, 16))
    data = GridData(grids, torch.zeros(len(grids), 0, dtype=torch.int64), build("6x256").grid_spec)
    run = LoopConfig(8, size, save_seconds=0.0, bf16=bench.on_gpu)

    def stop(step: int, metrics: object) -> None:
        if step == 4:
            raise _Stop

    def fit(folder: Path, name: str, **more: Any) -> None:
        prior = build("tiny" if bench.tiny else "base")
        paths = {"state_path": folder / f"{name}.safetensors", "log_path": folder / f"{name}.jsonl"}
        training.fit(prior, data, loss=PriorLoss(), run=run, **paths, **more)

    for deterministic in (True, False):
        bench.check(2.0)
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folder = Path(place)
            fit(folder, "whole")
            try:
                fit(folder, "parts", report=stop)
            except _Stop:
                fit(folder, "parts", resume=True)
            states = [load_artifact(folder / f"{name}.safetensors", "training-state")[1] for name in ("whole", "parts")]
        different = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
        torch.use_deterministic_algorithms(False)
        label = "deterministic algorithms" if deterministic else "as a user runs it"
        yield f"a resumed run, {label}", {"tensors": len(states[0]), "not equal bit for bit": len(different)}


def compare_peers(bench: Bench) -> Iterator[Row]:
    """Whole walks against diffusers' pipeline with the same weights, where diffusers is installed."""
    if importlib.util.find_spec("diffusers") is None:
        yield "diffusers' pipeline", {"skipped": "diffusers is not installed"}
        return
    sys.path.append(str(ROOT / "scripts"))
    from benchmarks.pipeline import Case, Sizes

    sizes = Sizes(batch=1, side=4, tokens=32, steps=2, num_layers=1, width=64) if bench.tiny else Sizes()
    case = Case(sizes)
    case.pipeline.to(bench.device)
    case.pipeline.features = case.pipeline.features.to(bench.device)
    theirs = bench.seconds(case.theirs)
    case.prior = case.prior.to(bench.device)
    ours = bench.seconds(case.ours)
    figures = {"ours, grids/s": round(sizes.batch / ours, 2), "theirs, grids/s": round(sizes.batch / theirs, 2)}
    yield f"a walk of {sizes.steps} steps, batch {sizes.batch}, guided", figures


STAGES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "tests": run_tests,
    "ceiling": measure_ceiling,
    "train": measure_training,
    "sample": measure_sampling,
    "codec": measure_codec,
    "resume": check_resume,
    "peers": compare_peers,
}


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, and what else uses its GPU."""
    about = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": "CPU",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "vqtool": vqtool.__version__,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        about |= {"device": torch.cuda.get_device_name(device), "GB": round(total / 1e9, 1)}
        about["GB in use before"] = round((total - free) / 1e9, 1)
    return about


def to_markdown(result: dict[str, Any]) -> str:
    """The rows as one table."""
    about = ", ".join(f"{name} {value}" for name, value in result["about"].items())
    lines = [about, "", "| stage | measured | figures |", "|---|---|---|"]
    for row in result["rows"]:
        figures = ", ".join(
            f"{name} {value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else f"{name} {value}"
            for name, value in row["figures"].items()
            if value is not None and value != []
        )
        lines.append(f"| {row['stage']} | {row['measured']} | {figures} |")
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--stages", help=f"of {','.join(STAGES)}; default: all")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny networks: to know that every stage works")
    parser.add_argument("--minutes-scale", type=float, default=1.0, help="of the time of every stage")
    parser.add_argument("--quick", action="store_true", help="the tests alone, 90 seconds")
    parser.add_argument("--brief", action="store_true", help="tests and some figures, 75 seconds")
    parser.add_argument("-o", "--output", type=Path, default=Path(os.environ.get("OUT", ROOT / "runs" / "gpu-check")))
    options = parser.parse_args(arguments)
    minutes = {"tests": 1.5} if options.quick else BRIEF if options.brief else MINUTES
    names = options.stages.split(",") if options.stages else [*minutes]
    if unknown := set(names) - set(STAGES):
        parser.error(f"unknown stages: {', '.join(sorted(unknown))}; known are {', '.join(STAGES)}")
    options.limits = {name: 60 * options.minutes_scale * minutes.get(name, MINUTES[name]) for name in names}
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no CUDA device: `--device cpu --tiny` runs every stage without one")
    return options


def main() -> int:
    """Run the stages; 1 if a test failed or a stage broke."""
    options = parse()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device, begin, broken = torch.device(options.device), time.monotonic(), False
    options.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"about": describe(device), "rows": []}
    bench = Bench(device, options.tiny)

    def add(stage: str, measured: str, figures: dict[str, Any]) -> None:
        result["rows"].append({"stage": stage, "measured": measured, "figures": figures})
        (options.output / "gpu-check.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.output / "gpu-check.md").write_text(to_markdown(result))
        print(f"{time.monotonic() - begin:6.1f} s  {stage}: {measured}: {figures}", flush=True)

    print(result["about"], flush=True)
    for name, limit in options.limits.items():
        print(f"{time.monotonic() - begin:6.1f} s  == {name}, {limit:.0f} s at most", flush=True)
        bench.deadline, bench.limit = time.monotonic() + limit, limit
        try:
            for measured, figures in STAGES[name](bench):
                add(name, measured, figures)
                broken = broken or bool(figures.get("exit_code"))
        except OutOfTime:
            add(name, "the rest", {"left out": f"{limit:.0f} seconds are over"})
        except Exception as error:  # what other stages measure is worth having
            broken = True
            add(name, "broken off", {"error": f"{type(error).__name__}: {error}"[:500]})
        if bench.on_gpu:
            torch.cuda.empty_cache()
    result["seconds"] = round(time.monotonic() - begin, 1)
    (options.output / "gpu-check.json").write_text(json.dumps(result, indent=1) + "\n")
    print(to_markdown(result))
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
