"""The mathematics of discrete diffusion over token grids: schedules, kernels, posteriors, guidance and losses."""
