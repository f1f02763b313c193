"""Fine-tuning of a tokenizer behind its frozen encoder: the decoder learns what the codes mean, as after ReFiT.

What it does: trains the decoder, its convolution after the codes included, and the codes if wanted. Tokens stay what
they are where the codes are kept.
When to use it: after `vqtool codebook refit`, or on pictures of a kind that the tokenizer has not been trained on.
Source: Hu et al. 2022, ReFiT (arXiv:2112.01799). Differs from it: the encoder's vectors do not move, so
there is no commitment term.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vqtool.locks import claims
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.rng import check_seed
from vqtool.tokenizers import Tokenizer, load_tokenizer, quantizers
from vqtool.tokenizers.quantizers import Quantizer
from vqtool.training._autoencoder import Autoencoder, check_codes_learn
from vqtool.training.discriminator import DiscriminatorConfig
from vqtool.training.fitting import Lesson, OnError, Report, learn, sides, split_options
from vqtool.training.runs import RunFiles

DEFAULT_RATE = 2e-4


@claims()
def finetune_tokenizer(
    tokenizer: str | Path,
    images: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    keep_codes: bool = False,
    size: int | str | tuple[int, int] = 64,
    half: bool = False,
    seed: int = 0,
    resume: bool | str = False,
    force: bool = False,
    on_error: OnError | None = None,
    notify: Notify = ignore,
    progress: Progress = silent,
    report: Report | None = None,
    **options: Any,
) -> Tokenizer:
    """Fine-tune a tokenizer's decoder and codes on images behind its frozen encoder, and write it.

    Args:
        tokenizer: a file, or "builtin".
        images: folders, image files, tar shards or HDF5 files.
        output: file to write.
        keep_codes: train the decoder alone: images keep their tokens.
        size: pixels to learn from: 64, (48, 80) or "48x80" (height first).
        half: store weights as float16, as they are if the tokenizer's were.
        seed: of all noise.
        resume: go on with an interrupted run, exactly; "auto": if there is one, else begin.
        force: overwrite an earlier result or run.
        on_error: told of a bad image, which is left out; None raises.
        notify: is told, line by line, what is done.
        progress: shows images that are read, and steps.
        report: is told (step, metrics) after each step.
        **options: of `TokenizerLoss`, `DiscriminatorConfig`, `Augmentation`, `TokenizerRunOptions`,
            `MachineOptions`, `CacheOptions` and `SourceOptions`, by name.

    Returns:
        The tokenizer as it was written (in the main process).

    Raises:
        VqtoolError: files are missing or in the way, options do not go together, or the codes cannot learn.
        KeyboardInterrupt: after Ctrl-C, with the state saved; its text says so.
    """
    judge, parts = split_options(options)
    check_seed(seed)
    files = RunFiles.open(output, resume=resume, force=force)
    old = load_tokenizer(tokenizer)
    model = build_model(load_tokenizer(tokenizer), seed, learn_codes=not keep_codes, discriminator=judge)
    lesson = Lesson(**parts, size=sides(size), rate=DEFAULT_RATE, seed=seed)
    return learn(
        model, images, files, lesson, step="codebook finetune", parent=old, half=half or old.half_precision,
        on_error=on_error, notify=notify, progress=progress, report=report,
    )  # fmt: skip


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
    design = {"keep_codes": not learn_codes, **({} if discriminator is None else asdict(discriminator))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Autoencoder(tokenizer, quantizer, discriminator, design=design)


def _quantizer_of(tokenizer: Tokenizer) -> Quantizer:
    """A quantizer that learns a tokenizer's codes by gradients and starts on them."""
    check_codes_learn(tokenizer)
    name = "cosine" if tokenizer.lookup == "cosine" else "vq"
    quantizer = quantizers.build(name, *tokenizer.codebook.shape, restart=False)
    quantizer.begin(tokenizer.codebook)
    return quantizer
