"""Train a prior on grids that stay on disk, however few: to start as two processes (`support.two`)."""

import json
import sys

from vqtool.grids import stored
from vqtool.training import data
from vqtool.training.prior import train_prior

if __name__ == "__main__":
    data.IN_MEMORY = 0
    stored.KEPT_BYTES = int(sys.argv[2])
    train_prior(sys.argv[1], "two.safetensors", **json.loads(sys.argv[3]))
