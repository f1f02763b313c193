"""Run a module in two processes that share its work: `python -m support.two vqtool sample ...`.

What `accelerate launch --num_processes 2 -m` does, in a third of the time: libraries are imported once, before the
process splits in two. One test starts the real launcher (tests/cli/test_sample.py).
"""

import importlib
import os
import runpy
import socket
import subprocess
import sys
import traceback

SHARED = ("accelerate", "vqtool.training.loop", "vqtool.samplers", "vqtool.cli.main")


FSDP = {"ACCELERATE_USE_FSDP": "true"}  # what `accelerate launch --use_fsdp` tells its processes


def run_in_two(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a module with arguments in two processes, and wait for both."""
    command = [sys.executable, "-m", "support.two", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, timeout=200, env={**os.environ, **environment})


def free_port() -> int:
    """A port that nobody listens on; 0 is none to a launcher of accelerate before 1.7."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main() -> None:
    """Be the two processes."""
    for name in SHARED:
        importlib.import_module(name)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    child = os.fork()
    os.environ.update(RANK="0" if child else "1", LOCAL_RANK="0" if child else "1")
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except Exception:
        traceback.print_exc()  # the end of the other one is told last
        raise
    finally:
        if child and os.waitpid(child, 0)[1]:
            sys.exit("the second process failed")


if __name__ == "__main__":
    main()
