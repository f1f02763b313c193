"""The mathematics of discrete diffusion over token grids: schedules, kernels, posteriors, guidance and losses."""

from vqtool.diffusion import guidance, kernels, losses, posterior, schedules

__all__ = ["guidance", "kernels", "losses", "posterior", "schedules"]
