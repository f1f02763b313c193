"""What public functions refuse: one line with the value and what was expected, never torch's own words."""

import pytest
import torch
from support.commands import build_tokenizer
from support.text_priors import text_prior

from vqtool import conditions
from vqtool.conditions.clip import ClipCondition

IMAGES = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"must be \(B, 3, height, width\) floats in \[-1, 1\], are float32 \(3, 16, 16\)"),
        (IMAGES.to(torch.uint8), r"are uint8 \(1, 3, 16, 16\)"),
        (IMAGES[:, :1], r"are float32 \(1, 1, 16, 16\)"),
        (IMAGES + 200.0, r"images must lie in \[-1, 1\], span \[200, 200\]"),
        (IMAGES * torch.nan, r"images must lie in \[-1, 1\], span \[nan, nan\]"),
        (IMAGES.numpy(), r"must be a tensor \(B, 3, height, width\) in \[-1, 1\], are ndarray"),
    ],
)
def test_what_is_no_batch_of_images_is_not_encoded(images, message):
    tokenizer = build_tokenizer()
    for function in (tokenizer.encode, tokenizer.latents):
        with pytest.raises(ValueError, match=message):
            function(images)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.full((1, 2, 2), 2000), r"tokens must lie in \[0, \d+\], span \[2000, 2000\]"),
        (torch.full((1, 2, 2), -1), r"span \[-1, -1\]"),
        (torch.zeros(2, 2, dtype=torch.int64), r"must be \(B, H, W\) integers, are int64 \(2, 2\)"),
        (torch.zeros(1, 2, 2), r"are float32 \(1, 2, 2\)"),
        ([[[0, 1]]], "must be a tensor .* is list"),
    ],
)
def test_what_are_no_tokens_are_not_decoded(tokens, message):
    with pytest.raises(ValueError, match=message):
        build_tokenizer().decode(tokens)


def test_a_prior_refuses_grids_times_and_conditions_that_are_none():
    prior = text_prior()
    size = prior.kernel.codebook_size
    x_t, t = torch.zeros(1, 2, 3, dtype=torch.int64), torch.tensor([6])
    for arguments, message in (
        ((x_t + 2000, t), rf"x_t must lie in \[0, {size}\], span \[2000, 2000\]"),
        ((x_t[0], t), r"x_t must be \(B, H, W\) integers, are int64 \(2, 3\)"),
        ((x_t, torch.tensor(6)), r"t must be \(1,\), one step a grid, is int64 \(\)"),
        ((x_t, torch.tensor([600])), r"t must lie in \[0, \d+\], is \[600\]"),
        ((x_t, t, prior.conditioner.encode(["a red cat", "the dog"])), r"1 conditions .* are needed, not \(2, 9\)"),
        ((x_t, t, "a red cat"), "1 conditions .* are needed, not 'a red cat'"),
    ):
        with pytest.raises(ValueError, match=message):
            prior.log_x0(*arguments)


@pytest.mark.parametrize(
    "conditioner",
    [conditions.NoCondition(), conditions.ClassCondition(["a", "b"]), ClipCondition()],
    ids=["none", "class", "clip"],
)
def test_one_text_is_no_list_of_texts(conditioner):
    with pytest.raises(ValueError, match=r"a list of texts is needed, not 'a': write \[text\] for one"):
        conditioner.encode("a")
    with pytest.raises(ValueError, match="texts are strings or None, one is 3"):
        conditioner.encode([3])
