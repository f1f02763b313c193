"""A small tokenizer, a folder of pictures, and ways to run `vqtool` as a process."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqtool.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from vqtool.tokenizers.vqvae import VqVaeConfig

TINY = VqVaeConfig(
    codebook_size=16, code_dim=4, channels=(16, 16, 16), encoder_blocks=(0, 0, 1), decoder_blocks=(1, 0, 0)
)


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout (bytes, and as text), stderr."""

    code: int
    data: bytes
    err: str

    @property
    def out(self) -> str:
        return self.data.decode()


def sharpened(path: str | Path, output: str | Path) -> Tokenizer:
    """A tokenizer file with another decoder, as `codebook finetune --keep-codes` leaves it, in a file of its own."""
    parent, child = load_tokenizer(path), load_tokenizer(path)
    for parameter in child.decoder.parameters():
        parameter.data.mul_(1.25)
    save_tokenizer(output, child, parent=parent, history=parent.history, force=True)
    return load_tokenizer(output)


def build_tokenizer(seed: int = 0, config: VqVaeConfig = TINY) -> Tokenizer:
    """A tokenizer with random weights whose codes lie where its encoder puts noise, so that all of them are used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = Tokenizer(config).eval()
        noise = torch.rand(4, 3, 32, 32) * 2 - 1
        with torch.no_grad():
            latents = tokenizer.latents(noise).flatten(0, 2)
            tokenizer.codebook.copy_(latents[torch.randperm(len(latents))[: config.codebook_size]])
    return tokenizer


def write_pictures(folder: Path, num: int, *, size: tuple[int, int] = (16, 16), seed: int = 0) -> Path:
    """PNG files of noise, 00.png, 01.png, ..., size (height, width)."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    for i in range(num):
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


COMMAND = (sys.executable, "-m", "vqtool")


def start(*arguments, **options) -> "subprocess.Popen[bytes]":
    """Start `vqtool` as a process of its own."""
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **options)


def shell(line: str, folder: Path, **variables: object) -> Result:
    """Run a line of bash in a folder, with `$vqtool` as the command and the pipe's exit codes in the result."""
    environment = {**os.environ, "vqtool": " ".join(COMMAND), **{name: str(value) for name, value in variables.items()}}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


def error_lines(text: str) -> list[str]:
    """The lines of stderr that say what went wrong."""
    return [line for line in text.splitlines() if line.startswith("error: ")]
