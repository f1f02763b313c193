"""`vqtool train-tokenizer`: learn a tokenizer from images."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import Force, Images, Seed, Strict, one_of
from vqtool.cli.training import LearningRate, Minutes, Resume, RunFiles, SheetEvery, Steps, choose_steps, reporting

RECONSTRUCTIONS = ("l1", "l2")
DEFAULT_EPOCHS = 20
MIN_STEPS = 2000


@command
def train_tokenizer(
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("tokenizer.safetensors"),
    size: Annotated[str, typer.Option("--size", help="Pixels: 64, or 48x80 (height x width).")] = "64",
    codebook_size: Annotated[int, typer.Option("--codebook-size", "-K", min=2, help="How many codes.")] = 1024,
    code_dim: Annotated[int, typer.Option("--code-dim", min=1, help="Numbers in a code.")] = 16,
    loss: Annotated[str, typer.Option("--loss", help="l1: sharper edges. l2: higher PSNR.")] = "l1",
    steps: Steps = None,
    minutes: Minutes = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images a step.")] = 32,
    learning_rate: LearningRate = 1e-3,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Mirror half of the images.")] = True,
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16: half the file.")] = False,
    sheet_every: SheetEvery = 500,
    seed: Seed = 0,
    resume: Resume = False,
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Train a VQ-VAE tokenizer with an EMA codebook on images.

    Writes the tokenizer, and beside it a log (.log.jsonl), the state for --resume (.state.safetensors) and a sheet of
    originals over reconstructions (.sheet.png).

    Examples:

        vqtool train-tokenizer imgs/

        vqtool train-tokenizer imgs/ --size 128 --minutes 60 -o mine.safetensors
    """
    from dataclasses import replace

    from vqtool.artifacts import history_record
    from vqtool.cli.console import say
    from vqtool.cli.inputs import Skipped, load_training_images
    from vqtool.distributed import is_main_process
    from vqtool.images import parse_size
    from vqtool.tokenizers import save_tokenizer
    from vqtool.tokenizers.vqvae import VqVaeConfig, num_parameters
    from vqtool.training import data
    from vqtool.training import tokenizer as training
    from vqtool.training.loop import LoopConfig, measure_step_seconds

    one_of("--loss", loss, RECONSTRUCTIONS)
    run_files, skipped = RunFiles(output), Skipped(strict)
    run_files.check(resume=resume, force=force)
    config = VqVaeConfig(codebook_size=codebook_size, code_dim=code_dim)
    pixels = load_training_images(images, parse_size(size), skipped, factor=config.factor)
    model = training.build_model(config, seed)
    say(f"{len(pixels)} images of {size} pixels; tokenizer of {num_parameters(model) / 1e6:.2f} M parameters")

    target = training.TokenizerLoss(reconstruction=loss, flip=flip)
    run = LoopConfig(1, batch_size, learning_rate, seed=seed, sheet_steps=sheet_every)
    trial = training.build_objective(pixels, config, target, run)
    num_steps = choose_steps(
        steps,
        minutes,
        resume_from=run_files.state if resume else None,
        default=max(MIN_STEPS, DEFAULT_EPOCHS * len(pixels) // batch_size),
        step_seconds=lambda: measure_step_seconds(model, trial, num_items=len(pixels), config=run),
    )
    identity = {"images": data.digest(pixels)}
    done = run_files.steps_done(resume=resume)
    with reporting(num_steps, ("loss", "psnr", "usage", "perplexity"), done=done) as report:
        tokenizer, summary = training.train_tokenizer(
            pixels,
            config=config,
            loss=target,
            run=replace(run, num_steps=num_steps),
            state_path=run_files.state,
            log_path=run_files.log,
            identity=identity,
            resume=resume,
            sheet=lambda now, step: training.write_sheet(now, pixels, run_files.sheet),
            report=report,
        )
    if is_main_process():
        record = history_record("train-tokenizer", inputs=identity, seed=seed)
        tokenizer.half_precision = half
        header = save_tokenizer(output, tokenizer, history=[record], summary=summary, force=True)
        training.write_sheet(tokenizer, pixels, run_files.sheet)
        say(f"wrote {output}: tokenizer {header.fingerprint}; sheet {run_files.sheet}, log {run_files.log}")
    skipped.finish()
