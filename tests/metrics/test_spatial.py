"""Spatial Fréchet distance: the Fréchet distance of the spatial array."""

import numpy as np

from vqtool.metrics import Features, frechet_distance, measure_features


def test_it_is_the_distance_of_the_spatial_features_alone():
    generator = np.random.default_rng(0)
    ours, theirs = (
        Features("Net", generator.normal(size=(30, 4)), spatial=generator.normal(size=(30, 6)) * scale)
        for scale in (1.0, 2.0)
    )
    found = {score.name: score.value for score in measure_features(theirs, ours)}
    assert found["sFD-Net"] == frechet_distance(theirs.spatial, ours.spatial)
    assert found["FD-Net"] == frechet_distance(theirs.pooled, ours.pooled)
