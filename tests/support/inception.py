"""Random weights of FID's Inception-v3, in the layouts in which they are published."""

import numpy as np
import torch

from vqtool.metrics.features.inception import Network


def random_weights(seed=0):
    """A state dict under the published names: activations neither vanish nor explode with it."""
    draws = np.random.RandomState(seed)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Network().state_dict().items()}
    found = {}
    for name, shape in shapes.items():
        noise = draws.random_sample(shape) * 2 - 1  # of variance 1 / 3
        if name.endswith(("conv.weight", "fc.weight")):
            value = noise * (6 / np.prod(shape[1:])) ** 0.5
        else:
            value = 1 + 0.3 * noise if name.endswith(("bn.weight", "running_var")) else 0.2 * noise
        found[name] = torch.from_numpy(value.astype(np.float32))
    return found
