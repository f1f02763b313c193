"""What walks of samplers are tested with: random priors, all kinds of guidance, tokens to edit."""

import torch

import vqtool
from support.exact import random_prior
from vqtool import samplers

SIZE = (4, 6)  # of random_prior
GUIDANCE = {
    "0": {"cfg_scale": 0.0},
    "schedule": {"cfg_scale": 3.0, "cfg_schedule": "cosine", "cfg_interval": (0.2, 0.8)},
    "zero-shot": {"cfg_scale": 3.0, "null": "zero-shot"},
    "second": {"cfg_scale": 2.0, "guide_with": lambda prior: random_prior(kind="class", scale=0.2).to(prior.device)},
    "top-k": {"top_k": 3},
    "truncation": {"temperature": 0.5, "truncation": 0.7},
}


def kernel_for(sampler):
    return "absorbing" if getattr(samplers.find(sampler), "NEEDS_ABSORBING", False) else "mask-replace"


def draw(prior, num, *, steps, **chosen):
    """Grids of a prior, each with its condition; values that are functions are asked with the prior."""
    if prior.conditioner.kind != "none":
        texts = prior.conditioner.examples
        chosen["condition"] = prior.conditioner.encode([texts[i % len(texts)] for i in range(num)])
    asked = {name: value(prior) if callable(value) else value for name, value in chosen.items()}
    if "steps" in samplers.options(asked.get("sampler", samplers.DEFAULT)):
        asked.setdefault("steps", steps)
    return vqtool.sample(prior, num, seed=3, precision="fp32", **asked)


def some_known(num):
    """What gives a prior's masked grids of that number."""

    def build(prior):
        noise = torch.Generator().manual_seed(0)
        tokens = torch.randint(prior.kernel.codebook_size, (num, *SIZE), generator=noise)
        return torch.where(torch.rand(num, *SIZE, generator=noise) < 0.4, tokens, prior.kernel.mask_id)

    return build


def some_source(num):
    """What gives a prior's whole grids of that number."""
    return lambda prior: torch.randint(
        prior.kernel.codebook_size, (num, *SIZE), generator=torch.Generator().manual_seed(1)
    )
