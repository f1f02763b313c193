"""Walks of diffusers' masked pipelines (aMUSEd, Meissonic), drawn with the random numbers of golden ones."""

import torch
from torch.nn import functional as F

from vqtool.samplers import Settings, Walk, confidence
from vqtool.samplers._edit import Edit
from vqtool.samplers._unmask import find_largest


class Replayed(Walk):
    """A batch that is drawn with the random numbers of a golden walk."""

    def apply(self, rule, x_t, t, cells, *rows, active=None):
        step = len(self.seen)
        self.seen.append(x_t)
        log_p = next(self._ask(x_t, t, None, active))[1].flatten(1, 2)[: len(x_t)]
        exponentials, uniforms = self.numbers
        self.drawn = (log_p.exp() / exponentials[step]).argmax(-1)
        count = rule.args[1]  # how many places are wanted
        log_drawn = log_p.gather(-1, self.drawn[..., None])[..., 0]
        noise = torch.zeros_like(log_drawn)
        if step < len(uniforms):
            gumbel = -(-uniforms[step].clamp(min=1e-20).log()).clamp(min=1e-20).log()
            noise = self.temperatures[step] * gumbel
        keys = (log_drawn + noise).gather(1, cells)
        places = find_largest(keys, x_t.flatten(1).gather(1, cells) == self.kernel.mask_id, count)
        return places, self.drawn.gather(1, cells).gather(1, places)


def replay(
    prior, size, condition, exponentials, uniforms, scale, *, known=None, plan="cosine", temperatures=None, **chosen
):
    """All grids of a walk with temperatures from 2 to 0, or others: (steps, B, H, W)."""
    settings = Settings(cfg_scale=scale, **chosen)
    steps = len(exponentials)
    walk = Replayed(
        prior, range(len(condition)), condition, seed=0, grid_size=size, settings=settings, edit=Edit(known, None, None)
    )
    walk.seen, walk.numbers = [], (exponentials, uniforms)
    walk.temperatures = torch.linspace(2, 0, steps) if temperatures is None else temperatures
    final = confidence.sample(walk, confidence.Options(steps=steps, plan=plan))
    return torch.stack([*walk.seen[1:], final])


def features(io, kind, padding):
    """The states and the pooled text of the original, in one tensor; the narrower filled up, as `TextEncoder` does."""
    states, pooled = io[f"{kind}_hidden"], io[f"{kind}_pooled"][:, None]
    return torch.cat([F.pad(states, (0, max(0, -padding))), F.pad(pooled, (0, max(0, padding)))], dim=1)
