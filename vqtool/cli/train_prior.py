"""`vqtool train-prior`: learn a prior from token grids."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtool.cli.console import echo, shape, warn
from vqtool.cli.main import command
from vqtool.cli.options import Force, Seed, TokenizerOption, one_of
from vqtool.cli.training import Minutes, Resume, RunFiles, SheetEvery, Steps, choose_steps, reporting
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.conditions import Conditioner
    from vqtool.diffusion.kernels import Kernel as ForwardProcess
    from vqtool.grids import GridBatch, GridHeader
    from vqtool.priors import GridSpec, Prior
    from vqtool.training.data import GridData
    from vqtool.training.loop import LoopConfig


Kernel = Annotated[str, typer.Option("--kernel", help="mask-replace, absorbing or uniform.")]
Schedule = Annotated[
    str | None, typer.Option("--schedule", help="How fast tokens are lost. Default: the kernel's own.")
]
DiffusionSteps = Annotated[int, typer.Option("--diffusion-steps", "-T", min=1, help="T, of the kernel.")]
DenoiserName = Annotated[
    str,
    typer.Option(
        "--denoiser", help="transformer, or as published: vq-diffusion, unet (VQ-DDM's), guided-unet (its variant)."
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        help="tiny (1.5 M parameters), small (4.5), base (10), large (58) or huge (308); other denoisers have "
        "others. Default: suits data and machine.",
    ),
]
DropCondition = Annotated[
    float, typer.Option("--drop-condition", min=0, max=1, help="Share trained without condition, for guidance.")
]
LossName = Annotated[
    str,
    typer.Option(
        "--loss",
        help="reweighted: for samples. bound: for likelihood. For absorbing kernels also elbo, reweighted-elbo, "
        "reweighted-elbo-fixed, mlm, mdlm.",
    ),
]
AuxiliaryWeight = Annotated[
    float | None,
    typer.Option(
        "--auxiliary-weight", min=0, help="Of the cross-entropy beside reweighted and bound. Default: 0.0005."
    ),
]
AdaptiveAuxiliary = Annotated[
    bool, typer.Option("--adaptive-auxiliary", help="Weigh it more at small t: 2 at t = 1, 1 + 1 / T at T.")
]
MaskWeights = Annotated[
    str, typer.Option("--mask-weights", metavar="A,B", help="Of masked and other cells, in reweighted and bound.")
]
Times = Annotated[
    str, typer.Option("--times", help="How t is drawn: stratified, uniform, or importance (where the loss is large).")
]
Rule = Annotated[
    str, typer.Option("--rule", help="How x_0 is averaged in the bound: mixture, or plug-in as in VQ-DDM.")
]
Parameterisation = Annotated[
    str | None,
    typer.Option(
        "--parameterisation",
        help="What logits stand for: evidence (of the other cells), direct, or residual (VQ-DDM's x_0 = mu + x_t). "
        "Default: suits denoiser and rule.",
    ),
]
Keep = Annotated[
    str, typer.Option("--keep", help="Averaged weights to write: the last, or the best for the grids held out.")
]
Fast = Annotated[
    bool | None,
    typer.Option(
        "--fast/--no-fast",
        help="On GPUs: bfloat16 and torch.compile; or neither. Default: bfloat16.",
        show_default=False,
    ),
]


@command
def train_prior(
    grids: Annotated[Path, typer.Argument(help="Grid file; - is stdin.")] = Path("tok.h5"),
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("prior.safetensors"),
    kernel: Kernel = "mask-replace",
    schedule: Schedule = None,
    diffusion_steps: DiffusionSteps = 100,
    denoiser: DenoiserName = "transformer",
    size: Size = None,
    condition: Annotated[str, typer.Option("--condition", help="auto, none, class or caption.")] = "auto",
    vocabulary: Annotated[str, typer.Option("--vocabulary", help="Of captions: bpe or sentencepiece.")] = "bpe",
    drop_condition: DropCondition = 0.1,
    loss: LossName = "reweighted",
    auxiliary_weight: AuxiliaryWeight = None,
    adaptive_auxiliary: AdaptiveAuxiliary = False,
    mask_weights: MaskWeights = "1,1",
    times: Times = "stratified",
    rule: Rule = "mixture",
    parameterisation: Parameterisation = None,
    keep: Keep = "last",
    fast: Fast = None,
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
    from vqtool.diffusion import kernels
    from vqtool.training import objectives
    from vqtool.training import prior as training
    from vqtool.training.data import build_data

    one_of("--keep", keep, ("last", "best"))
    weights = _two_weights(mask_weights)
    target = objectives.PriorLoss(loss, auxiliary_weight, adaptive_auxiliary, weights, times, drop_condition)
    run_files = RunFiles(output)
    run_files.check(resume=resume, force=force)
    header, batch = _read(grids)
    conditioner = _build_conditioner(batch, condition, vocabulary, denoiser)
    forward = kernels.build(kernel, schedule=schedule, codebook_size=header.codebook_size, num_steps=diffusion_steps)
    data, held_out = build_data(batch, conditioner, _grid_spec(header)).split(seed)
    prior, rate = _build_prior(forward, conditioner, data, denoiser, size, rule, seed)
    prior = training.reparameterise(prior, parameterisation) if parameterisation else prior
    objectives.check_loss(target, prior)
    _announce(prior, len(data), len(held_out or ()))
    sheet = _sheet(prior, grids, tokenizer, run_files.sheet)

    def plan(num_steps: int) -> "LoopConfig":
        rate_given = learning_rate or rate
        return training.choose_run(num_steps, batch_size, rate_given, seed=seed, sheet_steps=sheet_every, fast=fast)

    num_steps = choose_steps(
        steps,
        minutes,
        resume_from=run_files.state if resume else None,
        default=lambda seconds: training.choose_num_steps(len(data), batch_size, seconds),
        step_seconds=lambda: training.measure_step_seconds(prior, data, target, plan(1)),
    )
    done = run_files.steps_done(resume=resume)
    with reporting(num_steps, ("loss", "bound", "validation_bound"), done=done) as report:
        trained = training.train_prior(
            prior,
            data,
            loss=target,
            run=plan(num_steps),
            state_path=run_files.state,
            log_path=run_files.log,
            identity={"grids": data.digest()},
            resume=resume,
            held_out=held_out,
            keep_best=keep == "best",
            sheet=sheet,
            report=report,
        )
    _finish(trained, run_files, header, data.digest(), seed, lambda: sheet(trained, num_steps))


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


def _grid_spec(header: "GridHeader") -> "GridSpec":
    from vqtool.priors import GridSpec

    return GridSpec(
        header.tokenizer_fingerprint,
        header.tokenizer_location,
        header.grid_size,
        header.image_size,
        header.preprocessing,
    )


def _build_prior(
    kernel: "ForwardProcess",
    conditioner: "Conditioner",
    data: "GridData",
    name: str,
    size: str | None,
    rule: str,
    seed: int,
) -> "tuple[Prior, float]":
    """A fresh prior and the highest learning rate that suits it."""
    from vqtool import denoisers
    from vqtool.diffusion import posterior
    from vqtool.training import prior as training

    one_of("--rule", rule, posterior.RULES)
    file = denoisers.module(name)
    chosen = size or training.choose_size(name, len(data), data.tokens[0].size)
    one_of("--size", chosen, file.SIZES)
    prior = training.build_prior(
        kernel, conditioner, data.grid_spec, chosen, seed=seed, tokens=data.tokens, denoiser=name, rule=rule
    )
    parameters = sum(parameter.numel() for parameter in prior.denoiser.parameters())
    echo(f"denoiser {name} {chosen}: {parameters / 1e6:.2f} M parameters")
    return prior, file.LEARNING_RATES[chosen]


def _announce(prior: "Prior", num_grids: int, num_held_out: int) -> None:
    kernel, conditioner = prior.kernel, prior.conditioner
    texts = {"none": "no condition", "class": f"{len(conditioner.examples)} classes", "caption": "captions"}
    held_out = f" ({num_held_out} more held out)" if num_held_out else ""
    echo(f"{num_grids} grids of {shape(prior.grid_spec.grid_size)}{held_out}; {texts[conditioner.kind]}")
    echo(f"kernel {kernel.name}, schedule {kernel.schedule}, T = {kernel.num_steps}")


def _finish(
    prior: "Prior", files: RunFiles, header: "GridHeader", digest: str, seed: int, draw: Callable[[], None]
) -> None:
    """Write the prior with its history, and its sheet."""
    from dataclasses import replace

    from vqtool import distributed
    from vqtool.artifacts import history_record

    if not distributed.is_main_process():
        return
    inputs = {"grids": digest, "tokenizer": header.tokenizer_fingerprint}
    record = history_record("train-prior", inputs=inputs, seed=seed)
    saved = replace(prior, history=(*header.history, record)).save(files.output, force=True)
    draw()
    drawn = f"sheet {files.sheet}, " if files.sheet.exists() else ""
    echo(f"wrote {files.output}: prior {saved.fingerprint}; {drawn}log {files.log}")


def _sheet(prior: "Prior", grids: Path, given: str | None, path: Path) -> "Callable[[Prior, int], None]":
    """What draws samples now and then; where the tokenizer is not found, a warning and nothing."""
    from vqtool.tokenizers import tokenizer_of
    from vqtool.training.prior import write_sheet

    try:
        tokenizer = tokenizer_of(prior.grid_spec, grids, given=given)
    except VqtoolError as error:
        if given is not None:
            raise
        warn(f"no sheets of samples: {error}")
        return lambda now, step: None
    return lambda now, step: write_sheet(now, tokenizer, path)
