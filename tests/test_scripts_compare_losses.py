"""scripts/compare_losses.py: the bits of steps by their masks in closed form, and the table."""

import importlib
import sys
from pathlib import Path

import pytest

from vqtool.denoisers import NAMES

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
compare_losses = importlib.import_module("compare_losses")


def test_bits_weighted_by_masks_sum_to_the_same_where_every_step_costs_as_much():
    even = {"t": list(range(1, 101)), "bits_per_token": [0.04] * 100}
    assert compare_losses.masked_bits(even) == pytest.approx(4)
    late = {"t": [1, 2, 3], "bits_per_token": [0.0, 0.0, 1.0]}
    assert compare_losses.masked_bits(late) == pytest.approx(1.5)


def test_the_table_has_a_row_for_each_denoiser_and_loss_with_errors_over_seeds():
    runs = [
        {"denoiser": "muse", "loss": loss, "seed": seed, "values": {"bits": bits, "bits-masked": bits}}
        for loss, seed, bits in (("bound", 0, 4.0), ("bound", 1, 5.0), ("mlm", 0, 6.0))
    ]
    assert [*compare_losses.markdown(runs)][2:] == [
        "| muse | bound | 2 | 4.5 +- 0.5 | 4.5 +- 0.5 |  |",
        "| muse | mlm | 1 | 6 | 6 |  |",
    ]
    assert {*compare_losses.DENOISERS} <= {*NAMES}
