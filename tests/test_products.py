"""Products by another library are the same products, gradients too."""

import pytest
import torch
from torch.nn import functional as F

from vqtool.products import FEW_ROWS, LEAST_ROWS, MOST_CELLS, Linear, attend, linear, linear_gelu


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(LEAST_ROWS, 24), (3, 50, 24), (2, 8, 9, 24), (LEAST_ROWS - 1, 24), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_and_its_gradients_are_those_of_pytorch(shape, bias):
    layer, x, slope = Linear(24, 40, bias=bias), random(*shape).requires_grad_(), random(*shape[:-1], 40, seed=1)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(*parameter.shape, seed=2 + seed))
    found = layer(x)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    inputs = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, slope), torch.autograd.grad(expected, inputs, slope), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(FEW_ROWS, 24), (3, 50, 24), (2, 8, 9, 24), (FEW_ROWS - 1, 24), (0, 24), (24,)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_without_gradients_are_those_of_pytorch_and_so_is_a_gelu_in_them(shape, has_bias):
    x, weight, bias = random(*shape), random(2, 40, 24, seed=1).transpose(0, 1)[:, 1], random(40, seed=2)
    bias = bias if has_bias else None
    for turned in (x, x.mT.contiguous().mT if x.ndim > 1 else x):
        expected = F.linear(turned, weight, bias)
        with torch.no_grad():
            torch.testing.assert_close(linear(turned, weight, bias), expected, rtol=1e-5, atol=1e-5)
            found = linear_gelu(turned, weight, bias)
        torch.testing.assert_close(found, F.gelu(expected, approximate="tanh"), rtol=1e-5, atol=1e-5)


def test_inputs_that_do_not_lie_in_order_are_taken():
    x, weight = random(24, 300).T, random(40, 24, seed=1)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_numbers_of_another_kind_go_to_pytorch(dtype):
    x, weight = random(200, 24).to(dtype), random(40, 24, seed=1).to(dtype)
    for wanted in (True, False):
        with torch.set_grad_enabled(wanted):
            assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("num", [1, MOST_CELLS, MOST_CELLS + 1])
def test_attention_is_that_of_pytorch(num):
    q, k, v = random(2, 3, 9, 8), random(2, 3, num, 8, seed=1), random(2, 3, num, 8, seed=2)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1e-5)
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
