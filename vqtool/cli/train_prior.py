"""`vqtool train-prior`: learn a prior from token grids."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtool.cli.console import say, shape, warn
from vqtool.cli.main import command
from vqtool.cli.options import Force, Seed, TokenizerOption, one_of
from vqtool.cli.training import Minutes, Resume, RunFiles, SheetEvery, Steps, choose_steps, reporting
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.conditions import Conditioner
    from vqtool.grids import GridBatch, GridHeader
    from vqtool.priors import Origin, Prior


@command
def train_prior(
    grids: Annotated[Path, typer.Argument(help="Grid file; - is stdin.")] = Path("tok.h5"),
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("prior.safetensors"),
    kernel: Annotated[str, typer.Option("--kernel", help="mask-replace, absorbing or uniform.")] = "mask-replace",
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="How fast tokens are lost. Default: the kernel's own.")
    ] = None,
    diffusion_steps: Annotated[int, typer.Option("--diffusion-steps", "-T", min=1, help="T, of the kernel.")] = 100,
    denoiser: Annotated[
        str, typer.Option("--denoiser", help="transformer, or as published: vq-diffusion, unet (VQ-DDM).")
    ] = "transformer",
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            help="tiny (1.5 M parameters), small (4.5), base (10), large (58) or huge (308); other denoisers have "
            "others. Default: suits data and machine.",
        ),
    ] = None,
    condition: Annotated[str, typer.Option("--condition", help="auto, none, class or caption.")] = "auto",
    vocabulary: Annotated[str, typer.Option("--vocabulary", help="Of captions: bpe or sentencepiece.")] = "bpe",
    drop_condition: Annotated[
        float, typer.Option("--drop-condition", min=0, max=1, help="Share trained without condition, for guidance.")
    ] = 0.1,
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            help="reweighted: for samples. bound: for likelihood. For absorbing kernels also elbo, reweighted-elbo, "
            "reweighted-elbo-fixed, mlm, mdlm.",
        ),
    ] = "reweighted",
    auxiliary_weight: Annotated[
        float | None,
        typer.Option(
            "--auxiliary-weight", min=0, help="Of the cross-entropy beside reweighted and bound. Default: 0.0005."
        ),
    ] = None,
    adaptive_auxiliary: Annotated[
        bool, typer.Option("--adaptive-auxiliary", help="Weigh it more at small t: by 1 + 1 / T to 2.")
    ] = False,
    mask_weights: Annotated[
        str, typer.Option("--mask-weights", metavar="A,B", help="Of masked and other cells, in reweighted and bound.")
    ] = "1,1",
    times: Annotated[
        str,
        typer.Option("--times", help="How t is drawn: stratified, uniform, or importance (where the loss is large)."),
    ] = "stratified",
    rule: Annotated[
        str, typer.Option("--rule", help="How x_0 is averaged in the bound: mixture, or plug-in as in VQ-DDM.")
    ] = "mixture",
    fast: Annotated[
        bool | None,
        typer.Option(
            "--fast/--no-fast",
            help="On GPUs: bfloat16 and torch.compile; or neither. Default: bfloat16.",
            show_default=False,
        ),
    ] = None,
    steps: Steps = None,
    minutes: Minutes = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Grids a step.")] = 64,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", min=1e-8, help="After the warm-up. Default: suits the size.")
    ] = None,
    tokenizer: TokenizerOption = None,
    sheet_every: SheetEvery = 500,
    seed: Seed = 0,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train a discrete diffusion prior on token grids.

    Writes the prior, and beside it a log (.log.jsonl), the state for --resume (.state.safetensors) and a sheet of
    samples (.sheet.png). Without --steps and --minutes a run passes 300 times through the grids, but takes no longer
    than 10 minutes on a CPU or 30 on a GPU.

    Examples:

        vqtool train-prior --kernel mask-replace

        vqtool train-prior tok.h5 --condition class --size small --minutes 30 -o digits.safetensors
    """
    from dataclasses import replace

    import torch

    from vqtool import denoisers, distributed, kernels, posterior
    from vqtool.artifacts import history_record
    from vqtool.training import loop, objectives
    from vqtool.training import prior as training
    from vqtool.training.data import build_data

    one_of("--rule", rule, posterior.RULES)
    target = objectives.PriorLoss(
        loss, auxiliary_weight, adaptive_auxiliary, _two_weights(mask_weights), times, drop_condition
    )
    run_files, gpu = RunFiles(output), torch.cuda.is_available()
    run_files.check(resume=resume, force=force)
    header, batch = _read(grids)
    conditioner = _build_conditioner(batch, condition, vocabulary, denoiser)
    forward = kernels.build(kernel, schedule=schedule, codebook_size=header.codebook_size, num_steps=diffusion_steps)
    data, held_out = build_data(batch, conditioner, _origin(header)).split(seed)
    size = size or training.choose_size(denoiser, len(data), batch.tokens[0].size, gpu=gpu)
    file = denoisers.module(denoiser)
    one_of("--size", size, file.SIZES)
    prior = training.build_prior(
        forward, conditioner, data.origin, size, seed=seed, tokens=data.tokens, denoiser=denoiser, rule=rule
    )
    objectives.check_loss(target, prior)
    _announce(prior, size, len(data), len(held_out or ()))

    def plan(num_steps: int) -> loop.LoopConfig:
        rate = learning_rate or file.LEARNING_RATES[size]
        return training.choose_run(num_steps, batch_size, rate, seed=seed, sheet_steps=sheet_every, fast=fast)

    def measure() -> float:
        objective = objectives.PriorObjective(prior, data, target, plan(1))
        seconds = loop.measure_step_seconds(prior.denoiser, objective, num_items=len(data), config=plan(1))
        return distributed.broadcast(seconds)

    num_steps = choose_steps(
        steps,
        minutes,
        resume_from=run_files.state if resume else None,
        default=lambda seconds: training.choose_num_steps(len(data), batch_size, seconds, gpu=gpu),
        step_seconds=measure,
    )
    done, sheet = run_files.steps_done(resume=resume), _sheet(prior, grids, tokenizer, run_files.sheet)
    with reporting(num_steps, ("loss", "bound", "validation_bound"), done=done) as report:
        prior = training.train_prior(
            prior,
            data,
            loss=target,
            run=plan(num_steps),
            state_path=run_files.state,
            log_path=run_files.log,
            identity={"grids": data.digest()},
            resume=resume,
            held_out=held_out,
            sheet=sheet,
            report=report,
        )
    if distributed.is_main_process():
        inputs = {"grids": data.digest(), "tokenizer": header.tokenizer_fingerprint}
        record = history_record("train-prior", inputs=inputs, seed=seed)
        prior = replace(prior, history=(*header.history, record)).save(output, force=True)
        sheet(prior, num_steps)
        drawn = f"sheet {run_files.sheet}, " if run_files.sheet.exists() else ""
        say(f"wrote {output}: prior {prior.fingerprint}; {drawn}log {run_files.log}")


def _two_weights(text: str) -> tuple[float, float]:
    """The numbers of --mask-weights."""
    try:
        masked, other = (float(part) for part in text.split(","))
    except ValueError:
        masked = other = -1.0
    if not (0 <= masked < float("inf") and 0 <= other < float("inf") and masked + other > 0):
        raise VqtoolError(f"--mask-weights {text}: two numbers of 0 or more are expected, such as 1,0.5")
    return masked, other


def _read(grids: Path) -> "tuple[GridHeader, GridBatch]":
    from vqtool.grids import read_grids

    if str(grids) != "-" and not grids.exists():
        raise VqtoolError(f"{grids}: no such file: make token grids with `vqtool encode`, or name another file")
    header, batch = read_grids(grids)
    if not len(batch):
        raise VqtoolError(f"{grids}: no grids in it: there is nothing to learn from")
    return header, batch


def _build_conditioner(batch: "GridBatch", kind: str, vocabulary: str, denoiser: str) -> "Conditioner":
    """The conditioner of the grids; says what was chosen and what is cut."""
    from vqtool import conditions, denoisers
    from vqtool.training.prior import check_condition

    one_of("--vocabulary", vocabulary, conditions.VOCABULARIES)
    one_of("--condition", kind, ("auto", *conditions.KINDS))
    if kind == "auto":
        captions = batch.captions if "caption" in denoisers.module(denoiser).CONDITIONS else None
        kind = conditions.choose_kind(batch.labels, captions)
    check_condition(denoiser, kind)
    conditioner = conditions.build(kind, batch.labels, batch.captions, vocabulary=vocabulary)
    texts = conditioner.select(batch.labels, batch.captions) or []
    missing = sum(text is None for text in texts)
    if missing:
        warn(f"{missing} of {len(texts)} grids have no {kind}: they train the null condition")
    truncated = len(conditioner.find_truncated(texts))
    if truncated:
        warn(f"{truncated} captions are longer than {conditions.MAX_CAPTION_LENGTH} tokens: their ends are left out")
    return conditioner


def _origin(header: "GridHeader") -> "Origin":
    from vqtool.priors import Origin

    return Origin(
        header.tokenizer_fingerprint,
        header.tokenizer_location,
        header.grid_size,
        header.image_size,
        header.preprocessing,
    )


def _announce(prior: "Prior", size: str, num_grids: int, num_held_out: int) -> None:
    kernel, conditioner = prior.kernel, prior.conditioner
    texts = {"none": "no condition", "class": f"{len(conditioner.examples)} classes", "caption": "captions"}
    held_out = f" ({num_held_out} more held out)" if num_held_out else ""
    parameters = sum(parameter.numel() for parameter in prior.denoiser.parameters())
    say(f"{num_grids} grids of {shape(prior.origin.grid_size)}{held_out}; {texts[conditioner.kind]}")
    say(f"kernel {kernel.name}, schedule {kernel.schedule}, T = {kernel.num_steps}")
    say(f"denoiser {prior.denoiser_name} {size}: {parameters / 1e6:.2f} M parameters")


def _sheet(prior: "Prior", grids: Path, given: str | None, path: Path) -> "Callable[[Prior, int], None]":
    """What draws samples now and then; where the tokenizer is not found, a warning and nothing."""
    from vqtool.tokenizers import find_named_tokenizer
    from vqtool.training.prior import write_sheet

    near = None if str(grids) == "-" else grids.parent
    origin = prior.origin
    try:
        tokenizer = find_named_tokenizer(
            origin.tokenizer_fingerprint, origin.tokenizer_location, given=given, near=near
        )
    except VqtoolError as error:
        if given is not None:
            raise
        warn(f"no sheets of samples: {error}")
        return lambda now, step: None
    return lambda now, step: write_sheet(now, tokenizer, path)
