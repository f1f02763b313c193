"""Fine-tuning of a tokenizer behind its frozen encoder: the decoder learns what the codes mean, as after ReFiT.

What it does: trains the decoder, its convolution after the codes included, and the codes if wanted. Tokens stay what
they are where the codes are kept.
When to use it: after `vqtool codebook refit`, or on pictures of a kind that the tokenizer has not been trained on.
Source: Hu et al. 2022, ReFiT (arXiv:2112.01799). Differs from it: the encoder's vectors do not move, so
there is no commitment term.
"""

from dataclasses import asdict

import torch

from vqtool.tokenizers import Tokenizer, quantizers
from vqtool.tokenizers.quantizers import Quantizer
from vqtool.training._autoencoder import Autoencoder, check_codes_learn
from vqtool.training.discriminator import DiscriminatorConfig


def build_model(
    tokenizer: Tokenizer, seed: int, *, learn_codes: bool = True, discriminator: DiscriminatorConfig | None = None
) -> Autoencoder:
    """What fine-tunes a tokenizer; takes the tokenizer apart.

    Args:
        tokenizer: to begin with.
        seed: of the discriminator's weights.
        learn_codes: whether the codebook learns, too.
        discriminator: None is none.

    Raises:
        VqtoolError: its codes cannot learn, since they are not what latents are compared with.
    """
    quantizer = _quantizer_of(tokenizer) if learn_codes else None
    tokenizer.requires_grad_(True).encoder.requires_grad_(False)
    design = {
        "tokenizer": tokenizer.fingerprint,
        "learn_codes": learn_codes,
        "discriminator": None if discriminator is None else asdict(discriminator),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Autoencoder(tokenizer, quantizer, discriminator, design=design)


def _quantizer_of(tokenizer: Tokenizer) -> Quantizer:
    """A quantizer that learns a tokenizer's codes by gradients and starts on them."""
    check_codes_learn(tokenizer)
    name = "cosine" if tokenizer.lookup == "cosine" else "vq"
    quantizer = quantizers.build(name, tokenizer.codebook_size, tokenizer.codebook.shape[1])
    quantizer.begin(tokenizer.codebook)
    return quantizer
