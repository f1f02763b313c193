"""Kill every command that writes at each of its writes, fill its disk, and start it twice: nothing half may be left.

    python scripts/kill.py                           # all commands, all writes
    python scripts/kill.py encode train-prior        # some
    python scripts/kill.py --most 20 --twice 3       # a sample

After a kill or a full disk each output is absent, what it was, or whole; the command given again (with `--resume`, if
it has that) ends with what an undisturbed run gives; and no temporary file is left. Of two copies that are started at
once one succeeds and the other is refused in one line. Prints a line a finding and the numbers of cases; exit code 1 if
there are findings. On Linux on x86-64 a process is killed before the n-th system call that changes a file, elsewhere
after the n-th part of its time. Run it on an otherwise idle machine: 20 to 60 s a command with --most 10.
"""

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import syscalls
import torch
from PIL import Image
from safetensors.torch import load_file

from vqtool import artifacts
from vqtool.cli import main as cli
from vqtool.grids import read_grids
from vqtool.tokenizers import SIZES

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from support.writers import CASES, SMALL, Case, make_inputs

IGNORED = {"seconds", "cpu_seconds", "network_seconds", "images_per_second", "grids_per_second"}  # of results: times


@dataclass
class Findings:
    """What was found, and how many cases were tried."""

    lines: list[str] = field(default_factory=list)
    cases: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("killed", "full disk", "started twice", "refused by name of process and host"), 0
        )
    )

    @property
    def counts(self) -> str:
        """The numbers of cases so far."""
        return ", ".join(f"{num} {what}" for what, num in self.cases.items())

    def add(self, case: Case, what: str) -> None:
        """Print and keep a finding."""
        line = f"{case.name}: {what}"
        if line not in self.lines:
            print(line, flush=True)
        self.lines.append(line)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    err: str


def call(line: str, limits: Callable[[], None] = lambda: None) -> int:
    """Run a command in this process."""
    limits()
    sys.argv = ["vqtool", *line.split()]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def run(line: str, folder: Path, limits: Callable[[], None] = lambda: None) -> Result:
    """Run a command to its end in a forked process."""
    process = syscalls.fork(lambda: call(line, limits), folder)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return Result(code, (folder.parent / f"{folder.name}.err").read_text(errors="replace"))


def run_killed(line: str, folder: Path, kill_at: int | None) -> tuple[int, list[str]]:
    """Run a command, killed before its n-th call: its exit code and its calls.

    Where calls cannot be traced, it is killed after n twentieths of the time that it takes.
    """
    process = syscalls.fork(lambda: call(line), folder, traced=syscalls.AVAILABLE)
    if syscalls.AVAILABLE:
        return syscalls.follow(process, folder, kill_at)
    begun = time.monotonic()
    if kill_at is not None:
        time.sleep(_seconds.get(line, 1.0) * kill_at / 20)
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if kill_at is None:
        _seconds[line] = _seconds[f"{line} --force"] = time.monotonic() - begun
    return code, ["the next write"] * 20


_seconds: dict[str, float] = {}  # that lines take, where calls cannot be traced


@contextmanager
def fresh(inputs: Path) -> Iterator[Path]:
    """A folder with the inputs of all commands."""
    with tempfile.TemporaryDirectory(dir=inputs.parent, prefix="case-") as outer:
        folder = Path(outer) / "work"
        shutil.copytree(inputs, folder, copy_function=os.link)
        yield folder


def fault(path: Path) -> str:
    """What is wrong with an output; empty if it is absent or whole."""
    if not path.exists():
        return ""
    try:
        if path.is_dir():
            return "; ".join(filter(None, (fault(each) for each in path.rglob("[!.]*") if each.is_file())))
        if path.suffix == ".h5":
            read_grids(path)
        elif path.suffix == ".safetensors":
            load_file(path) if path.parent.name == "out" else artifacts.verify(path)  # diffusers' or ours
        elif path.suffix in (".png", ".webp"):
            Image.open(path).load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".tar":
            with tarfile.open(path) as tar:
                [Image.open(io.BytesIO(tar.extractfile(member).read())).load() for member in tar]
        elif path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif not path.stat().st_size:
            return f"{path.name} is empty"
    except Exception as error:
        return f"{path.name} is broken ({type(error).__name__}: {str(error).splitlines()[0][:80]})"
    return ""


def content(path: Path) -> Any:
    """What an output holds, without when and by which command line it was made."""
    if path.is_dir():
        return {str(each.relative_to(path)): content(each) for each in sorted(path.rglob("[!.]*")) if each.is_file()}
    if path.suffix == ".h5":
        batch = read_grids(path)[1]
        return batch.tokens.tolist(), list(batch.ids)
    if path.suffix == ".safetensors":
        return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix in {".png", ".webp"}:
        return np.asarray(Image.open(path)).tobytes()
    if path.suffix == ".ckpt":
        return {
            name: tensor.numpy().tobytes() for name, tensor in torch.load(path, weights_only=True)["state_dict"].items()
        }
    return path.read_bytes()


def timeless(value: Any) -> Any:
    """JSON without the times in it."""
    if isinstance(value, dict):
        return {name: timeless(each) for name, each in value.items() if not (name in IGNORED or "per_second" in name)}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def leftovers(folder: Path, inputs: Path, case: Case) -> list[str]:
    """Files that are neither inputs nor outputs."""
    known = {each.name for each in inputs.iterdir()} | {Path(each).parts[0] for each in case.outputs}
    known |= {f"{Path(case.outputs[0]).stem}{end}" for end in (".best.safetensors",)}
    top = [each.name for each in folder.iterdir() if each.name not in known]
    inside = [each.name for name in case.outputs if (folder / name).is_dir() for each in (folder / name).rglob(".*")]
    return top + inside


def check_after(case: Case, folder: Path, before: dict[str, Any], when: str, findings: Findings) -> None:
    """The invariant: each output is absent, old or whole."""
    for name in case.outputs:
        path = folder / name
        if name in before and not path.exists():
            findings.add(case, f"{when}: the old {name} is gone")
        elif name in before and content_or_none(path) == before[name]:
            continue
        elif not name.endswith(".jsonl") and (wrong := fault(path)):  # a log may end within a line; it is resumed
            findings.add(case, f"{when}: {wrong}")


def content_or_none(path: Path) -> Any:
    """As `content`; None where there is nothing that could be read."""
    try:
        return content(path)
    except Exception:
        return None


def try_again(case: Case, folder: Path, inputs: Path, expected: dict[str, Any], when: str, findings: Findings) -> None:
    """The same command once more ends as an undisturbed one, and cleans up."""
    there = any((folder / name).exists() for name in case.outputs)
    state = any(folder.glob(".*")) or there
    ways = ["--resume", "--force"] if case.resume and state else ["--force"]
    for line in (f"{case.line} {way}" for way in ways):
        result = run(line, folder)
        if result.code == 0:
            break
    if result.code:
        findings.add(case, f"{when}, then again ({line.split()[-1]}): {result.err.strip().splitlines()[-1][:200]}")
        return
    for name in case.outputs:
        if content_or_none(folder / name) != expected[name]:
            findings.add(
                case, f"{when}, then again ({line.split()[-1]}): {name} differs from that of an undisturbed run"
            )
    if left := leftovers(folder, inputs, case):
        findings.add(case, f"{when}, then again: left {', '.join(sorted(left)[:3])}")


def kill_everywhere(case: Case, inputs: Path, most: int, findings: Findings, noise: random.Random) -> dict[str, Any]:
    """Kill a command before each of its writes; returns what an undisturbed run leaves."""
    with fresh(inputs) as folder:
        code, calls = run_killed(case.line, folder, None)
        if code:
            raise SystemExit(f"{case.line}: {(folder.parent / f'{folder.name}.err').read_text()}")
        expected = {name: content(folder / name) for name in case.outputs}
        if left := leftovers(folder, inputs, case):
            findings.add(case, f"undisturbed: left {', '.join(left)}")
    places = list(range(len(calls)))
    if len(places) > most:
        places = sorted(noise.sample(places, most))
    for place in places:
        for old in (False, True):
            with fresh(inputs) as folder:
                before = {}
                if old:
                    run(case.line, folder)
                    before = {name: content(folder / name) for name in case.outputs}
                run_killed(f"{case.line} --force" if old else case.line, folder, place)
                when = f"killed before {calls[place]} {place} of {len(calls)}{' over old output' if old else ''}"
                check_after(case, folder, before, when, findings)
                try_again(case, folder, inputs, expected, when, findings)
                findings.cases["killed"] += 1
    return expected


def fill_disk(case: Case, inputs: Path, expected: dict[str, Any], findings: Findings) -> None:
    """No file may grow beyond a limit: a full disk at several places."""
    for limit in (0, 100, 1000, 3000, 10_000, 30_000):

        def limits(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        with fresh(inputs) as folder:
            process = syscalls.fork(lambda limits=limits: call_with_pipes(case.line, limits), folder)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            err = (folder.parent / f"{folder.name}.errors").read_text(errors="replace")
            check_full(case, folder, inputs, expected, Result(code, err), f"{limit} bytes a file", findings)


def fill_small_disk(case: Case, inputs: Path, expected: dict[str, Any], findings: Findings) -> None:
    """The outputs lie on a disk of some kilobytes, if this user may mount one."""
    line = case.line.replace(" out", " full/out")
    there = replace(case, line=line, outputs=tuple(f"full/{name}" for name in case.outputs))
    for size in ("4k", "16k", "64k"):
        with fresh(inputs) as folder:
            disk = folder / "full"
            disk.mkdir()
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], capture_output=True, check=False
            )
            if mounted.returncode:
                return
            try:
                result = run(line, folder)
                wanted = {f"full/{name}": value for name, value in expected.items()}
                check_full(there, folder, inputs, wanted, result, f"a disk of {size}", findings)
            finally:
                subprocess.run(["umount", str(disk)], check=True)


def call_with_pipes(line: str, limits: Callable[[], None]) -> int:
    """Run a command whose stderr goes to another process: the limit is on files."""
    copy = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=os.open("../work.errors", os.O_WRONLY | os.O_CREAT))
    os.dup2(copy.stdin.fileno(), 2)
    code = call(line, limits)
    sys.stderr.flush()
    os.close(2)
    copy.stdin.close()
    copy.wait()
    return code


def check_full(
    case: Case, folder: Path, inputs: Path, expected: dict[str, Any], result: Result, when: str, findings: Findings
) -> None:
    """What a command leaves that could not write all: one line, and nothing half."""
    findings.cases["full disk"] += 1
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    if result.code == 0:
        wrong = [name for name in case.outputs if content_or_none(folder / name) != expected[name]]
        if wrong:
            findings.add(case, f"{when}: exit 0, but {', '.join(wrong)} is not what it should be")
        return
    if result.code != 1 or len(lines) != 1 or "unexpected" in result.err or "Traceback" in result.err:
        findings.add(
            case, f"{when}: exit {result.code}: {(result.err.strip().splitlines() or ['nothing said'])[-1][:200]}"
        )
    check_after(case, folder, {}, when, findings)
    if left := [each for each in leftovers(folder, inputs, case) if each.endswith(".tmp")]:
        findings.add(case, f"{when}: left {', '.join(sorted(left)[:3])}")


def start_twice(case: Case, inputs: Path, expected: dict[str, Any], findings: Findings) -> None:
    """Two copies at once: one succeeds, the other is refused."""
    with fresh(inputs) as folder:
        second = folder.parent / "work2"
        second.symlink_to(folder)
        at = time.monotonic() + 0.05

        def begin() -> int:
            time.sleep(max(0.0, at - time.monotonic()))
            return call(case.line)

        processes = [syscalls.fork(begin, each) for each in (folder, second)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        texts = [(folder.parent / f"{each.name}.err").read_text() for each in (folder, second)]
        findings.cases["started twice"] += 1
        if sorted(codes) != [0, 1]:
            last = " | ".join((text.strip().splitlines() or [""])[-1][:150] for text in texts)
            findings.add(case, f"started twice: exit codes {sorted(codes)}: {last}")
        else:
            said = [line for line in texts[codes.index(1)].splitlines() if line.startswith("error: ")]
            is_named = (
                len(said) == 1 and f": process {processes[codes.index(0)]} on {socket.gethostname()} is" in said[0]
            )
            findings.cases["refused by name of process and host"] += is_named
            if len(said) != 1 or not (is_named or ": exists" in said[0]):  # the first was done already
                findings.add(case, f"started twice: the second says {texts[codes.index(1)][-200:]!r}")
        for name in case.outputs:
            if content_or_none(folder / name) != expected[name]:
                findings.add(case, f"started twice: {name} differs from that of one alone")
        if left := leftovers(folder, inputs, case):
            findings.add(case, f"started twice: left {', '.join(sorted(left)[:3])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="*", help="such as encode, or codebook; default: all")
    parser.add_argument(
        "--most", type=int, default=1000, help="kills a command, drawn by --seed if it writes more often"
    )
    parser.add_argument("--twice", type=int, default=50, help="pairs of copies a command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    SIZES["vqvae-f8"] = replace(SIZES["vqvae-f8"], **SMALL)
    findings, noise = Findings(), random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root:
        inputs = Path(root) / "inputs"
        inputs.mkdir()
        os.chdir(inputs)
        make_inputs(lambda line: run(line, inputs).code)
        for case in CASES:
            if options.commands and case.line.split()[0] not in options.commands:
                continue
            begun, so_far = time.monotonic(), len(findings.lines)
            expected = kill_everywhere(case, inputs, options.most, findings, noise)
            fill_disk(case, inputs, expected, findings)
            fill_small_disk(case, inputs, expected, findings)
            for _ in range(options.twice):
                start_twice(case, inputs, expected, findings)
            found = len(findings.lines) - so_far
            seconds = time.monotonic() - begun
            print(f"# {case.name}: {found} findings, {seconds:.0f} s; {findings.counts}", file=sys.stderr, flush=True)
    print(f"{findings.counts}: {len(findings.lines)} findings")
    return 1 if findings.lines else 0


if __name__ == "__main__":
    sys.exit(main())
