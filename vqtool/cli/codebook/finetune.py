"""`vqtool codebook finetune`: a decoder that learns what the codes mean."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli import tokenizer_training as shared
from vqtool.cli.console import say
from vqtool.cli.main import command
from vqtool.cli.options import Force, Images, Seed, Strict
from vqtool.cli.training import Minutes, Resume, RunFiles, SheetEvery, Steps

DEFAULT_RATE = 2e-4


@command
def finetune(
    tokenizer: Annotated[str, typer.Argument(help="Tokenizer file, or 'builtin'.", show_default=False)],
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="Tokenizer to write.")] = Path("finetuned.safetensors"),
    size: shared.Size = "64",
    keep_codes: Annotated[
        bool, typer.Option("--keep-codes", help="Train the decoder alone: images keep their tokens.")
    ] = False,
    loss: shared.LossName = "l1",
    edges: shared.Edges = 0.5,
    perceptual: shared.PerceptualName = None,
    perceptual_weight: shared.PerceptualWeight = None,
    adversarial: shared.Adversarial = None,
    adversarial_start: shared.AdversarialStart = None,
    adversarial_max: shared.AdversarialMax = None,
    adversarial_layers: shared.AdversarialLayers = None,
    adversarial_width: shared.AdversarialWidth = None,
    flip: shared.Flip = True,
    crop: shared.Crop = 1.0,
    jitter: shared.Jitter = 0.0,
    steps: Steps = None,
    minutes: Minutes = None,
    batch_size: shared.BatchSize = 32,
    learning_rate: shared.LearningRate = None,
    half: shared.Half = False,
    sheet_every: SheetEvery = 500,
    seed: Seed = 0,
    resume: Resume = False,
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Fine-tune a tokenizer's decoder and codes on your images behind its frozen encoder (ReFiT).

    Goes after `vqtool codebook refit`: the decoder has not seen the new codes. Writes the tokenizer, and beside it a
    log (.log.jsonl), the state for --resume (.state.safetensors) and a sheet of originals over reconstructions.

    Examples:

        vqtool codebook finetune tokenizer.safetensors imgs/ --minutes 20

        vqtool codebook finetune builtin imgs/ --keep-codes --perceptual efficientnet-lite0 -o mine.safetensors
    """
    from vqtool.tokenizers import load_tokenizer
    from vqtool.training import finetuning

    judges = shared.LossFlags(
        loss, edges, perceptual, perceptual_weight, adversarial, adversarial_start, adversarial_max,
        adversarial_layers, adversarial_width,
    )  # fmt: skip
    judges.check()
    RunFiles(output).check(resume=resume, force=force)
    old = load_tokenizer(tokenizer)
    model = finetuning.build_model(
        load_tokenizer(tokenizer), seed, learn_codes=not keep_codes, discriminator=judges.discriminator()
    )
    rate, stays_half = learning_rate or DEFAULT_RATE, half or old.half_precision
    shared.train(
        "codebook finetune",
        model,
        judges.build(revive_until=0.0),
        judges,
        shared.PictureFlags(images, size, flip, crop, jitter, strict),
        shared.RunFlags(output, steps, minutes, batch_size, rate, sheet_every, stays_half, seed, resume),
        parent=old,
    )
    sources = " ".join(str(path) for path in images)
    say(f"to use it, encode again: vqtool encode {sources} --size {size} -t {output} -o tok.h5 --force")
    if keep_codes:
        say(f"or, since tokens are what they were, convert: vqtool codebook remap tok.h5 -t {output} -o new.h5")
    else:
        say(f"or, without the images, convert what was encoded: vqtool codebook remap tok.h5 -t {output} -o new.h5")
