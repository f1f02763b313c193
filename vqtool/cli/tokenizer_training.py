"""What `train-tokenizer` and `codebook finetune` share: flags of loss and pictures, and the run itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.console import echo
from vqtool.cli.options import Force, Images, Seed, Strict, one_of
from vqtool.cli.training import Minutes, Resume, RunFiles, SheetEvery, Steps, choose_steps, reporting
from vqtool.distributed import is_main_process
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vqtool.cli.inputs import Skipped
    from vqtool.tokenizers import Tokenizer
    from vqtool.training.discriminator import DiscriminatorConfig
    from vqtool.training.loop import LoopConfig
    from vqtool.training.perceptual import Perceptual
    from vqtool.training.tokenizer import Autoencoder, TokenizerLoss, TokenizerObjective

DEFAULT_EPOCHS = 20
MIN_STEPS = 2000
ADVERSARIAL_BETAS = (0.5, 0.9)  # of Adam, where two networks learn against each other
_REPORTED = ("loss", "psnr", "usage", "perplexity", "perceptual", "adversarial_weight", "discriminator")
_LOSS, _PICTURES = "Loss", "Pictures"  # groups of flags in --help


@dataclass(frozen=True, kw_only=True)
class LossFlags:
    """What is minimised beside the terms of the quantizer; None is what stands in --help."""

    loss: Annotated[
        str,
        typer.Option("--loss", rich_help_panel=_LOSS, help="Distance of pixels. l1: sharper edges. l2: higher PSNR."),
    ] = "l1"
    edges: Annotated[
        float,
        typer.Option("--edges", min=0, rich_help_panel=_LOSS, help="Weight of the same of neighbours' differences."),
    ] = 0.5
    perceptual: Annotated[
        str | None,
        typer.Option(
            "--perceptual",
            rich_help_panel=_LOSS,
            show_default=False,
            help="Also as a network sees it: efficientnet-lite0, or a file of ST-LPIPS weights. Default: not.",
        ),
    ] = None
    perceptual_weight: Annotated[
        float | None, typer.Option("--perceptual-weight", min=0, rich_help_panel=_LOSS, help="Its weight. Default: 1.")
    ] = None
    adversarial: Annotated[
        float | None,
        typer.Option(
            "--adversarial",
            min=0,
            rich_help_panel=_LOSS,
            help="Against a discriminator of patches (VQGAN), with this times the adaptive weight; published: 0.8.",
        ),
    ] = None
    adversarial_start: Annotated[
        int | None,
        typer.Option(
            "--adversarial-start", min=0, rich_help_panel=_LOSS, help="First step with it. Default: half-way."
        ),
    ] = None
    adversarial_max: Annotated[
        float | None,
        typer.Option(
            "--adversarial-max", min=0, rich_help_panel=_LOSS, help="Largest adaptive weight. Default: 10000."
        ),
    ] = None
    adversarial_layers: Annotated[
        int | None,
        typer.Option(
            "--adversarial-layers", min=1, max=6, rich_help_panel=_LOSS, help="Of the discriminator. Default: 3."
        ),
    ] = None
    adversarial_width: Annotated[
        int | None,
        typer.Option("--adversarial-width", min=1, rich_help_panel=_LOSS, help="Its first channels. Default: 64."),
    ] = None

    def check(self) -> None:
        """Raise if a flag is unknown or has nothing to act on."""
        from vqtool.training.reconstruction import RECONSTRUCTIONS

        one_of("--loss", self.loss, RECONSTRUCTIONS)
        for name, value in vars(self).items():
            head, _, rest = name.partition("_")
            if rest and value is not None and getattr(self, head) is None:
                raise VqtoolError(f"--{head}-{rest} goes with --{head}, which is not given")

    def discriminator(self) -> "DiscriminatorConfig | None":
        """The discriminator to train against."""
        from vqtool.training.discriminator import DiscriminatorConfig

        if self.adversarial is None:
            return None
        given = {"num_layers": self.adversarial_layers, "width": self.adversarial_width}
        return DiscriminatorConfig(**{name: value for name, value in given.items() if value is not None})

    def build(self, **weights: float | None) -> "TokenizerLoss":
        """What is minimised, with other weights that are not None."""
        from vqtool.training.tokenizer import TokenizerLoss

        given: dict[str, Any] = {
            "reconstruction": self.loss,
            "edge_weight": self.edges,
            "perceptual_weight": self.perceptual_weight,
            "adversarial_weight": self.adversarial,
            "adversarial_max": self.adversarial_max,
            **weights,
        }
        return TokenizerLoss(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class PictureFlags:
    """What is learned from."""

    images: Images
    size: Annotated[str, typer.Option("--size", help="Pixels: 64, or 48x80 (height x width).")] = "64"
    flip: Annotated[
        bool, typer.Option("--flip/--no-flip", rich_help_panel=_PICTURES, help="Mirror half of the images.")
    ] = True
    crop: Annotated[
        float,
        typer.Option("--crop", min=1, rich_help_panel=_PICTURES, help="Read images so much larger, learn from pieces."),
    ] = 1.0
    jitter: Annotated[
        float,
        typer.Option(
            "--jitter", min=0, max=1, rich_help_panel=_PICTURES, help="Vary contrast, brightness, saturation so much."
        ),
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """How a run goes."""

    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("tokenizer.safetensors")
    steps: Steps = None
    minutes: Minutes = None
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images a step.")] = 32
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", min=1e-8, help="After the warm-up. Default: suits the network.")
    ] = None
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16: half the file.")] = False
    sheet_every: SheetEvery = 500
    seed: Seed = 0
    resume: Resume = False
    strict: Strict = False
    force: Force = False

    def at_rate(self, default: float) -> "RunFlags":
        """The same, learning at a rate if none is given."""
        return replace(self, learning_rate=self.learning_rate or default)

    def check(self) -> None:
        """Raise if a file is in the way, or missing for --resume."""
        RunFiles(self.output).check(resume=self.resume, force=self.force)


def train(
    command: str,
    model: "Autoencoder",
    loss: "TokenizerLoss",
    flags: LossFlags,
    pictures: PictureFlags,
    run: RunFlags,
    *,
    parent: "Tokenizer | None" = None,
) -> None:
    """Train a tokenizer and write it.

    Args:
        command: for the history.
        model: to train.
        loss: what is minimised.
        flags: that say so, too.
        pictures: what is learned from.
        run: how long, how fast, and where to.
        parent: the tokenizer that it was before.
    """
    from vqtool.cli.inputs import Skipped
    from vqtool.images import parse_size
    from vqtool.training import data
    from vqtool.training import tokenizer as training

    size, skipped, files = parse_size(pictures.size), Skipped(run.strict), RunFiles(run.output)
    perceptual = _load_perceptual(flags.perceptual, size)
    pixels = _read(pictures, size, skipped, model)
    change = training.Augmentation(flip=pictures.flip, jitter=pictures.jitter)
    build = partial(training.TokenizerObjective, pixels, model, size=size, augmentation=change, perceptual=perceptual)
    config = _choose_run(model, run, lambda config: build(loss=loss, run=config), len(pixels))
    if model.discriminator is not None:
        start = config.num_steps // 2 if flags.adversarial_start is None else flags.adversarial_start
        loss = replace(loss, adversarial_start=start)
    identity = {"images": data.digest(pixels)}
    with reporting(config.num_steps, _REPORTED, done=files.steps_done(resume=run.resume)) as report:
        tokenizer, summary = training.train_tokenizer(
            model,
            build(loss=loss, run=config),
            state_path=files.state,
            log_path=files.log,
            identity=identity,
            resume=run.resume,
            sheet=lambda now, step: training.write_sheet(now, pixels, files.sheet, size=size),
            report=report,
        )
    if is_main_process():
        _write(command, tokenizer, summary, run, identity, parent)
        training.write_sheet(tokenizer, pixels, files.sheet, size=size)
    skipped.finish()


def _load_perceptual(name: str | None, size: tuple[int, int]) -> "Perceptual | None":
    from vqtool.training.perceptual import load_perceptual

    if name is None:
        return None
    network = load_perceptual(name)
    network.check_size(size)
    return network


def _read(
    pictures: PictureFlags, size: tuple[int, int], skipped: "Skipped", model: "Autoencoder"
) -> "NDArray[np.uint8]":
    from vqtool.cli.inputs import load_training_images
    from vqtool.training.discriminator import check_size

    if model.discriminator is not None:
        check_size(model.discriminator.config, size)
    factor = model.tokenizer.factor
    pixels = load_training_images(pictures.images, size, skipped, factor=factor, room=pictures.crop)
    echo(f"{len(pixels)} images of {pictures.size} pixels")
    return pixels


def _choose_run(
    model: "Autoencoder", flags: RunFlags, build: "Callable[[LoopConfig], TokenizerObjective]", num_images: int
) -> "LoopConfig":
    """How the run goes: how long, if it is not said, by timing a few steps."""
    from vqtool.training.loop import LoopConfig, measure_step_seconds

    rate = flags.learning_rate or LoopConfig.learning_rate
    config = LoopConfig(1, flags.batch_size, rate, seed=flags.seed, sheet_steps=flags.sheet_every)
    if model.discriminator is not None:
        config = replace(config, betas=ADVERSARIAL_BETAS)
    num_steps = choose_steps(
        flags.steps,
        flags.minutes,
        resume_from=RunFiles(flags.output).state if flags.resume else None,
        default=max(MIN_STEPS, DEFAULT_EPOCHS * num_images // flags.batch_size),
        step_seconds=lambda: measure_step_seconds(model, build(config), num_items=num_images, config=config),
    )
    return replace(config, num_steps=num_steps)


def _write(
    command: str,
    tokenizer: "Tokenizer",
    summary: Mapping[str, Any],
    run: RunFlags,
    identity: Mapping[str, str],
    parent: "Tokenizer | None",
) -> None:
    from vqtool.artifacts import history_record
    from vqtool.tokenizers import save_tokenizer

    parents = {} if parent is None else {"tokenizer": parent.fingerprint}
    record = history_record(command, inputs={**identity, **parents}, seed=run.seed)
    history = [*(() if parent is None else parent.history), record]
    tokenizer.half_precision = run.half
    header = save_tokenizer(run.output, tokenizer, parents=parents, history=history, summary=summary, force=True)
    files = RunFiles(run.output)
    echo(f"wrote {run.output}: tokenizer {header.fingerprint}; sheet {files.sheet}, log {files.log}")
