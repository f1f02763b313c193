"""Denoisers on a GPU against the same on the CPU."""

import pytest
import torch
from support.shaken import shaken

from vqtool import denoisers

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", denoisers.NAMES)
@pytest.mark.parametrize("some", [False, True], ids=["all cells", "some cells"])
def test_predictions_are_those_of_the_cpu(gpu, name, some):
    noise = torch.Generator().manual_seed(0)
    x_t = torch.randint(13, (4, 8, 8), generator=noise)
    t = torch.tensor([1, 7, 13, 20])
    cells = torch.rand(4, 64, generator=noise).argsort()[:, :9] if some else None
    more = {"codebook_size": 16} if name == "maskbit" else {}  # which takes powers of 2
    expected = shaken(name, **more)(x_t, t, None, cells)
    found = shaken(name, **more).to(gpu)(x_t.to(gpu), t.to(gpu), None, None if cells is None else cells.to(gpu))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("condition", "more"),
    [
        (torch.tensor([0, 1, 2, 3]), {"num_classes": 3}),
        (torch.tensor([[5, 2, 0], [1, 0, 0], [7, 7, 3], [4, 6, 0]]), {"vocabulary_size": 30, "max_length": 6}),
    ],
    ids=["class", "caption"],
)
def test_conditions_steer_as_they_do_on_the_cpu(gpu, condition, more):
    x_t, t = torch.randint(13, (4, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([1, 7, 13, 20])
    expected = shaken("transformer", **more)(x_t, t, condition)
    found = shaken("transformer", **more).to(gpu)(x_t.to(gpu), t.to(gpu), condition.to(gpu))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
