"""A training run that counts, step by step, what its processes say to each other.

To start as a process: the counts of process N go to counts-N.json, a record a step, without steps that are none.
"""

import json
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

from torch.utils._python_dispatch import TorchDispatchMode

from support import prior_run, training_run
from vqtool.training._run import Run

LAST = 15  # step


class Counting(TorchDispatchMode):
    """Counts collective operations, by name, from the beginning of each step to that of the next."""

    def __init__(self):
        super().__init__()
        self.steps = {}
        self._now = Counter()

    def begin(self, step):
        """What comes now belongs to this step."""
        self._now = self.steps.setdefault(step, Counter())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func.name().partition("::")
        if namespace == "c10d":
            self._now[name.strip("_")] += 1
        return func(*args, **kwargs or {})


class _Done(Exception):
    pass


def end(step, metrics):
    """Of long runs a few steps are looked at."""
    if step == LAST:
        raise _Done


def main():
    """Count."""
    kind, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    counting, take_step = Counting(), Run.take_step

    def counted(run, *arguments):
        counting.begin(run.step + 1)
        return take_step(run, *arguments)

    with counting, patch.object(Run, "take_step", counted), suppress(_Done):
        (prior_run if kind == "prior" else training_run).train(folder, report=end, save_seconds=1000, **settings)
    (folder / f"counts-{os.environ['RANK']}.json").write_text(json.dumps(counting.steps))


if __name__ == "__main__":
    main()
