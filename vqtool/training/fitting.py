"""Training of an autoencoder on images: what is minimised, the run, and what it leaves.

Loss: loss of pixels + `edges` x the same of edges [+ `perceptual_weight` x perceptual] [+ `adversarial` x adaptive
weight x adversarial] + the quantizer's terms, each with its weight.
Source: van den Oord et al. 2017 (arXiv:1711.00937); Esser et al. 2021 (arXiv:2012.09841).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtool import distributed, rng
from vqtool.artifacts import history_record
from vqtool.errors import VqtoolError, count_text, size_text
from vqtool.images import ImageItem, SourceOptions, Tally, parse_size, to_float, to_uint8
from vqtool.images.preview import comparison_grid, save_image
from vqtool.images.stream import ImageStream
from vqtool.options import distribute, option
from vqtool.progress import Notify, Progress, silent
from vqtool.tokenizers import Tokenizer, save_tokenizer
from vqtool.training import loop
from vqtool.training._autoencoder import Autoencoder, Part, Phase, TokenizerLoss, unwrapped
from vqtool.training._order import Indices, upcoming
from vqtool.training.augment import Augmentation, augmented, middle
from vqtool.training.clock import Length, LoopConfig, Moment
from vqtool.training.discriminator import DiscriminatorConfig, check_size
from vqtool.training.perceptual import Perceptual, load_perceptual
from vqtool.training.pictures import CacheOptions, open_pictures, remove_stores
from vqtool.training.runs import FittedRunOptions, MachineOptions, RunFiles, choose_length

DEFAULT_EPOCHS = 20
MIN_STEPS = 2000
ADVERSARIAL_BETAS = (0.5, 0.9)  # of Adam, where two networks learn against each other

OnError = Callable[[ImageItem, VqtoolError], None]
Report = Callable[[int, Mapping[str, float]], None]
# Options that states of earlier versions do not name, with the values that stand for what those did.
_ADDED = {"zoom": False, "perceptual_share": 1.0, "adversarial_warmup": 0}
_TOLD = ("loss", "psnr", "usage", "perplexity", "perceptual", "adversarial_weight", "discriminator")


@dataclass(frozen=True, kw_only=True)
class TokenizerRunOptions(FittedRunOptions):
    """How long a run is."""

    batch_size: int = option(32, "Images a step.", minimum=1, flag="-b", advanced=True)


@dataclass(frozen=True)
class Lesson:
    """How a tokenizer learns."""

    loss: TokenizerLoss
    augmentation: Augmentation
    run: TokenizerRunOptions
    machine: MachineOptions
    size: tuple[int, int]  # (h, w) pixels
    rate: float  # learning rate where none is asked for
    seed: int
    source: SourceOptions
    cache: CacheOptions


def split_options(given: Mapping[str, Any]) -> tuple[DiscriminatorConfig | None, dict[str, Any]]:
    """The discriminator, which is none without `adversarial`, and parts of a `Lesson`, from options by name.

    Raises:
        VqtoolError: an option has nothing to act on.
    """
    for name in given:
        head, _, rest = name.partition("_")
        if head in ("perceptual", "adversarial") and rest and given.get(head) is None:
            raise VqtoolError(f"`{name}` goes with `{head}`, which is not given")
    judge, *parts = distribute(
        given, DiscriminatorConfig, TokenizerLoss, Augmentation, TokenizerRunOptions, MachineOptions, SourceOptions,
        CacheOptions,
    )  # fmt: skip
    lesson = dict(zip(("loss", "augmentation", "run", "machine", "source", "cache"), parts, strict=True))
    return (None if lesson["loss"].adversarial is None else judge), lesson


def sides(size: int | str | tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a size as people write it."""
    return parse_size(size_text(size) if isinstance(size, tuple) else str(size), "`size`")


class TokenizerObjective:
    """The objective of the training loop: which images a step sees, and what is minimised."""

    def __init__(
        self,
        images: ImageStream | NDArray[np.uint8],
        model: Autoencoder,
        loss: TokenizerLoss,
        run: LoopConfig,
        *,
        size: tuple[int, int] | None = None,
        augmentation: Augmentation | None = None,
        perceptual: Perceptual | None = None,
    ) -> None:
        """An objective.

        Args:
            images: (N, 3, h, w): a stream, or an array in memory.
            model: that is trained.
            loss: what is minimised.
            run: seed and length.
            size: (h, w) of what is learned from, if the images are larger: pieces of them.
            augmentation: how images change; None is as usual.
            perceptual: a distance beside those of pixels.
        """
        self.images = images if isinstance(images, ImageStream) else ImageStream.of(images)
        self.loss, self.run, self.perceptual = loss, run, perceptual
        self.size = size or (images.shape[2], images.shape[3])
        self.augmentation = augmentation or Augmentation()
        self.codebook_size = model.tokenizer.config.codebook_size
        self._device: torch.device | None = None
        self._stored: Tensor | None = None  # the images, if they are on a GPU
        self.waits = model.quantizer is not None and not model.quantizer.is_ready()

    def __call__(
        self, model: nn.Module, indices: Indices, samples: Indices, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and metrics of a step."""
        return next(self.in_parts(model, indices, samples, moment, 1))

    def in_parts(
        self, model: nn.Module, indices: Indices, samples: Indices, moment: Moment, num: int
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The loss and metrics of each of `num` parts of a step, which together are those of the step."""
        device = next(model.parameters()).device
        if device != self._device:
            self._move_to(device)
        with torch.autocast(device.type, enabled=False):
            images = self._images_at(indices, int(samples[-1]), device)
            batch = augmented(images, self.size, self.augmentation, seed=self.run.seed, samples=samples)
        noise = rng.uniform(self.run.seed, [0], moment.step, (self.codebook_size,), stream=rng.SELECTION)[0]
        picks = distributed.to_device(noise, device)
        parts = batch.contiguous(memory_format=torch.channels_last).chunk(num)
        how: dict[str, Any] = {"loss": self.loss, "phase": self.phase(moment), "perceptual": self.perceptual}
        weight = unwrapped(model).survey(parts, picks, **how) if num > 1 else None
        for number, part in enumerate(parts):
            yield model(part, picks, part=Part(number, num, weight), **how)

    def _move_to(self, device: torch.device) -> None:
        """Bring to the device what all steps need."""
        self._device, self._stored = device, None
        if self.perceptual is not None:
            self.perceptual.to(device)

    def _images_at(self, indices: Indices, sample: int, device: torch.device) -> Tensor:
        """(B, 3, h', w') uint8 on the device; those that come after a sample begin to be decoded."""
        whole = self.images.whole
        if whole is None:
            taken = self.images.take(indices)
            ahead = self.run.batch_size // distributed.world_size() + self.images.ahead
            self.images.expect(upcoming(sample, ahead, len(self.images), self.run.batch_size, self.run.seed))
            return distributed.to_device(torch.from_numpy(taken), device)
        seen = self.images.readable(indices)
        if self._stored is None and device.type == "cuda" and whole.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
            self._stored = torch.from_numpy(np.require(whole, requirements="W")).to(device)
        if self._stored is not None:
            return self._stored[distributed.to_device(torch.from_numpy(seen), device)]
        return distributed.to_device(torch.from_numpy(whole[seen]), device)

    def phase(self, moment: Moment) -> Phase:
        """What is done in the step at a moment."""
        given = self.loss.adversarial_start
        start = moment.num_steps / 2 if given is None else given
        return Phase(
            quantize=not self.waits or moment.share >= self.loss.quantize_from,
            restart=moment.share < self.loss.restart_until,
            adversarial=moment.step >= start,
            fool=moment.step >= start + self.loss.adversarial_warmup,
        )

    def settings(self) -> dict[str, Any]:
        """What has to be the same for a resume."""
        perceptual = None if self.perceptual is None else self.perceptual.name
        named = {**asdict(self.augmentation), **asdict(self.loss), "size": self.size, "perceptual": perceptual}
        return {name: value for name, value in named.items() if (name, value) not in _ADDED.items()}


def learn(
    model: Autoencoder,
    images: str | Path | Sequence[str | Path],
    files: RunFiles,
    lesson: Lesson,
    *,
    step: str,
    parent: Tokenizer | None,
    half: bool,
    on_error: OnError | None,
    notify: Notify,
    progress: Progress,
    report: Report | None,
) -> Tokenizer:
    """Train a model on images, and write the tokenizer.

    Args:
        model: from `build_model` or `finetuning.build_model`.
        images: folders, image files, tar shards or HDF5 files.
        files: of the run.
        lesson: how it learns.
        step: the command's name, for the history.
        parent: the tokenizer that it was before.
        half: store weights as float16.
        on_error: told of a bad image, which is left out; None raises.
        notify: is told, line by line, what is done.
        progress: shows images that are read, and steps.
        report: is told (step, metrics).
    """
    size = lesson.size
    if distributed.splits_weights():
        raise VqtoolError(
            "FSDP (`accelerate launch --use_fsdp`) is for priors: a tokenizer fits every GPU whole; start without it, "
            "and see `accumulate` and `checkpoint` for less memory"
        )
    perceptual = load_perceptual(lesson.loss.perceptual) if lesson.loss.perceptual is not None else None
    _check_sizes(model, perceptual, size)
    larger = (round(size[0] * lesson.augmentation.crop), round(size[1] * lesson.augmentation.crop))
    tally = on_error if isinstance(on_error, Tally) else Tally(on_error)
    before = len(tally.skipped)
    with open_pictures(
        images, larger, files, source=lesson.source, cache=lesson.cache, factor=model.tokenizer.factor,
        on_error=None if on_error is None else tally, progress=progress,
    ) as pictures:  # fmt: skip
        num = len(pictures.stream)
        notify(f"{count_text(num, 'image')} of {'x'.join(map(str, dict.fromkeys(size)))} pixels, {pictures.kept}")

        def draw(now: Tokenizer, number: int) -> None:
            files.draw(lambda path: write_preview(now, pictures.shown, path, size=size))

        objective = TokenizerObjective(
            pictures.stream, model, lesson.loss, _choose_run(model, lesson, num, files, notify), size=size,
            augmentation=lesson.augmentation, perceptual=perceptual,
        )  # fmt: skip
        parents = {} if parent is None else {"tokenizer": parent.fingerprint}
        made, summary = fit(
            model, objective, state_path=files.state, log_path=files.log,
            data={"images": pictures.identity, **parents}, resume=files.resume, preview=draw, report=report,
            progress=progress,
        )  # fmt: skip
        pictures.tell_all()
        summary["num_images"] = num - len(pictures.stream.left_out)
    if not distributed.is_main_process():
        return made
    summary["num_skipped"] = len(tally.skipped) - before
    inputs = {"images": pictures.digest, **parents}
    record = history_record(step, inputs=inputs, seed=lesson.seed, fit=pictures.fit)
    made.history = (*(() if parent is None else parent.history), record)
    made.half_precision = half
    header = save_tokenizer(files.output, made, parent=parent, history=made.history, summary=summary, force=True)
    made.take_name(header, str(files.output))
    remove_stores(files.output)
    draw(made, summary["steps"])
    notify(f"wrote {files.output}: tokenizer {made.fingerprint}; {files.describe()}")
    return made


def _check_sizes(model: Autoencoder, perceptual: Perceptual | None, size: tuple[int, int]) -> None:
    """Raise VqtoolError unless all networks can see images of (h, w) pixels."""
    factor = model.tokenizer.factor
    if factor and (size[0] % factor or size[1] % factor):
        raise VqtoolError(f"`size` {size[0]}x{size[1]}: both sides must be multiples of the factor {factor}")
    model.tokenizer.grid_size(size)
    if perceptual is not None:
        perceptual.check_size(size)
    if model.discriminator is not None:
        check_size(model.discriminator.config, size)


def _choose_run(model: Autoencoder, lesson: Lesson, num_images: int, files: RunFiles, notify: Notify) -> LoopConfig:
    """How the run goes; where nobody says how long it is, 20 passes through the images, but 2,000 steps at least."""
    run = lesson.run
    default = Length(steps=max(MIN_STEPS, DEFAULT_EPOCHS * num_images // run.batch_size))
    length = choose_length(run, files, default=default, notify=notify)
    config = LoopConfig(
        length.steps, run.batch_size, run.learning_rate or lesson.rate, seed=lesson.seed,
        preview_steps=run.preview_every, minutes=length.minutes, accumulate=run.accumulate, checkpoint=run.checkpoint,
        **lesson.machine.settings(),
    )  # fmt: skip
    return config if model.discriminator is None else replace(config, betas=ADVERSARIAL_BETAS)


def fit(
    model: Autoencoder,
    objective: TokenizerObjective,
    *,
    state_path: Path,
    log_path: Path,
    data: Mapping[str, str],
    resume: bool = False,
    preview: Callable[[Tokenizer, int], None] | None = None,
    report: Report | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Tokenizer, dict[str, Any]]:
    """Train a model that is there.

    Args:
        model: from `build_model` or `finetuning.build_model`.
        objective: what is minimised, on which images, for how long.
        state_path: file that the run can be resumed from.
        log_path: JSON-lines log.
        data: digests of what is learnt from; a resume with others is refused.
        resume: go on from `state_path`.
        preview: draws a picture of the progress.
        report: is told (step, metrics).
        progress: shows the steps.
        clock: seconds, for a run by minutes.

    Returns:
        The tokenizer and its training summary.
    """
    result = loop.run(
        model,
        objective,
        num_items=len(objective.images),
        config=objective.run,
        state_path=state_path,
        log_path=log_path,
        data=data,
        settings={**model.design, **objective.settings()},
        resume=resume,
        preview=None if preview is None else lambda ema, step: preview(_finished(ema), step),
        report=report,
        progress=progress,
        told=_TOLD,
        clock=clock,
    )
    num = len(objective.images) - len(objective.images.left_out)
    return _finished(result.model), {**result.summary, "num_images": num}


def _finished(model: nn.Module) -> Tokenizer:
    if not isinstance(model, Autoencoder):
        raise ValueError(f"model is a {type(model).__name__}, not an Autoencoder")
    return model.finished()


@torch.inference_mode()
def write_preview(
    tokenizer: Tokenizer,
    images: NDArray[np.uint8],
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    num: int = 16,
) -> None:
    """Write a PNG of originals over reconstructions; the images are spread evenly over `images` (N, 3, h, w)."""
    chosen = images[np.linspace(0, len(images) - 1, min(num, len(images))).astype(int)]
    chosen = middle(chosen, size or (images.shape[2], images.shape[3]))
    batch = to_float(chosen).to(tokenizer.device)
    rebuilt = to_uint8(tokenizer.decode(tokenizer.encode(batch)))
    save_image(comparison_grid(chosen, rebuilt), path, force=True)
