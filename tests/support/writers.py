"""Every command that writes, as a line on small inputs: for tests and for scripts/kill.py."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from support.commands import build_tokenizer, write_pictures
from support.exact import random_prior
from support.sources import make_tar
from vqtool.priors import GridSpec
from vqtool.tokenizers import load_tokenizer, save_tokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL = {"channels": (16, 16, 16), "encoder_blocks": (0, 0, 1), "decoder_blocks": (1, 0, 0)}  # of vqvae-f8
TRAIN = "--size 16 -b 4 --steps 3 --preview-every 2"


@dataclass(frozen=True)
class Case:
    """A command that writes."""

    line: str
    outputs: tuple[str, ...]
    resume: bool = False  # whether it takes --resume
    force: bool = True  # whether it takes --force
    in_turn: bool = False  # whether outputs are written one after the other, whole

    @property
    def name(self) -> str:
        """Such as "codebook prune", and what kind of output it writes."""
        words = [word for word in self.line.split()[:2] if word.replace("-", "").isalpha()]
        two = words[0] == "codebook" or words in (["eval", "merge"], ["eval", "compare"])
        return f"{' '.join(words if two else words[:1])} {Path(self.outputs[0]).suffix or '/'}"


CASES = (
    Case("encode imgs --size 32x48 -t tokenizer.safetensors -b 2 -o out.h5", ("out.h5",), resume=True),
    Case(
        "encode a.tar b.tar --size 32x48 -t tokenizer.safetensors -b 2 -o out-{shard}.h5",
        ("out-0.h5", "out-1.h5"),
        resume=True,
        in_turn=True,
    ),
    Case("decode tok.h5 -o out", ("out",)),
    Case("decode tok.h5 -o out.tar", ("out.tar",)),
    Case("decode tok.h5 -o out.png", ("out.png",)),
    Case("sample prior.safetensors -n 6 -b 2 --steps 3 -o out.h5", ("out.h5",), resume=True),
    Case(
        "sample prior.safetensors -n 6 -b 2 --steps 3 --shards 2 -o out-{shard}.h5",
        ("out-0.h5", "out-1.h5"),
        resume=True,
        in_turn=True,
    ),
    Case("sample prior.safetensors -n 2 --steps 3 --trajectory out.webp -o out.h5", ("out.h5", "out.webp")),
    Case("inpaint tok.h5 -p prior.safetensors --mask left-half --steps 2 -o out.h5", ("out.h5",)),
    Case("outpaint tok.h5 -p prior.safetensors --left 2 --steps 2 -o out.h5", ("out.h5",)),
    Case("vary tok.h5 -p prior.safetensors --strength 0.5 --steps 2 -o out.h5", ("out.h5",)),
    Case("complete masked.h5 -p prior.safetensors --steps 2 -o out.h5", ("out.h5",)),
    Case("inpaint imgs -p prior.safetensors --mask left-half --steps 2 -o out", ("out",)),
    Case("outpaint imgs -p prior.safetensors --left 16 --steps 2 -o out.tar", ("out.tar",)),
    Case("vary imgs -p prior.safetensors --strength 0.5 --steps 2 -o out.png", ("out.png",)),
    Case("head tok.h5 -n 2 -o out.h5", ("out.h5",)),
    Case("cat tok.h5 tok.h5 -o out.h5", ("out.h5",)),
    Case("cat --index tok.h5 -o out.index", ("out.index",)),
    Case("show tok.h5 -o out.png", ("out.png",)),
    Case("eval tok.h5 --report out.html -o out.json", ("out.html", "out.json")),
    Case("eval merge part.npz part.npz -o out.npz", ("out.npz",)),  # `eval stats` writes in the same way
    Case("eval compare scores.json scores.json -o out.json", ("out.json",)),
    Case(
        "eval tok.h5 --likelihood --prior prior.safetensors --times 2 --plot out.png -o out.json",
        ("out.png", "out.json"),
    ),
    Case(
        "compare prior.safetensors --sampler fewer --sampler halton --steps 2,3 -n 2 --seeds 0 -o out.json",
        ("out.json",),
        resume=True,
    ),
    Case("codebook usage tok.h5 --plot out.png", ("out.png",)),
    Case("codebook refit imgs --size 32 -t tokenizer.safetensors -K 8 -o out.safetensors", ("out.safetensors",)),
    Case("codebook remap tok.h5 -t pruned.safetensors -o out.h5", ("out.h5",)),
    Case("codebook prune few.h5 -o out.safetensors", ("out.safetensors", "out.map.safetensors")),
    Case("codebook apply-map few.h5 --map pruned.map.safetensors -o out.h5", ("out.h5",)),
    Case(
        f"codebook finetune tokenizer.safetensors imgs {TRAIN} --cache disk -o out.safetensors",
        ("out.safetensors", "out.log.jsonl", "out.state.safetensors", "out.preview.png"),
        resume=True,
    ),
    Case(
        f"train-tokenizer imgs {TRAIN} -K 16 -o out.safetensors",
        ("out.safetensors", "out.log.jsonl", "out.state.safetensors", "out.preview.png"),
        resume=True,
    ),
    Case(
        "train-prior tok.h5 --size tiny -b 4 --steps 3 --preview-every 2 -o out.safetensors",
        ("out.safetensors", "out.log.jsonl", "out.state.safetensors", "out.preview.png"),
        resume=True,
    ),
    Case(
        "distill prior.safetensors -n 4 --teacher-calls 2 --calls 2 --latent-size 2 -b 2 --steps 3 "
        "-o out.safetensors",
        ("out.safetensors", "out.log.jsonl", "out.state.safetensors"),
        resume=True,
    ),
    Case("codebook transplant prior.safetensors -t refitted.safetensors -o out.safetensors", ("out.safetensors",)),
    Case(
        "train-prior tok.h5 --from prior.safetensors --lora 1 --keep-adapter out.adapter.safetensors -b 4 --steps 2 "
        "--preview-every 0 -o out.safetensors",
        ("out.safetensors", "out.adapter.safetensors", "out.state.safetensors", "out.log.jsonl", "out.preview.png"),
        resume=True,
    ),
    Case("import checkpoint.ckpt -o out.safetensors", ("out.safetensors",)),
    Case("export vqgan.safetensors --format taming -o out", ("out",)),
    Case("export vqmodel.safetensors --format diffusers -o out", ("out",)),
)  # fmt: skip


def make_inputs(run: Callable[[str], int]) -> None:
    """Make the inputs of all commands in the current folder.

    Args:
        run: runs a command in it; returns its exit code.
    """
    write_pictures(Path("imgs"), 4, size=(32, 48))
    for name in ("a", "b"):
        make_tar(Path(f"{name}.tar"), {f"{name}{path.name}": path.read_bytes() for path in Path("imgs").iterdir()})
    save_tokenizer("tokenizer.safetensors", build_tokenizer())
    fingerprint = load_tokenizer("tokenizer.safetensors").fingerprint
    spec = GridSpec(fingerprint, "tokenizer.safetensors", (4, 6), (32, 48), "crop")
    replace(random_prior(codebook_size=16), grid_spec=spec).save("prior.safetensors")
    np.savez("part.npz", features=np.random.default_rng(0).normal(size=(4, 3)))
    shutil.copyfile(GOLDEN / "taming-vqgan" / "last.ckpt", "checkpoint.ckpt")
    for config in (GOLDEN / "taming-vqgan").glob("*.yaml"):
        shutil.copy(config, ".")
    for line in (
        "encode imgs --size 32x48 -t tokenizer.safetensors -o tok.h5",
        "head tok.h5 -n 1 -o few.h5",
        "eval tok.h5 -o scores.json",
        "inpaint tok.h5 -p prior.safetensors --mask left-half --masked -o masked.h5",
        "codebook prune few.h5 -o pruned.safetensors",
        "codebook refit imgs --size 32x48 -t tokenizer.safetensors -K 16 --seed 1 -o refitted.safetensors",
        "import checkpoint.ckpt -o vqgan.safetensors",
        f"import {GOLDEN / 'df-vqmodel' / 'vqvae'} -o vqmodel.safetensors",
    ):
        if run(line):
            raise SystemExit(f"{line}: failed")
