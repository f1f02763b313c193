"""Documents: what they show runs as written, what they name is there."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.command_lines import commands_in, leaf_commands
from support.commands import write_pictures
from support.sets import SixNumbers

from vqtool import metrics
from vqtool.metrics.jobs import texts
from vqtool.tokenizers import SIZES, Tokenizer

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "word",
    [  # of the four papers
        "truncation", "purity", "high-quality inference", "fast inference", "fast sampling", "improved strides",
        "learnable classifier-free", "zero-shot classifier-free", "auxiliary loss", "mask-and-replace", "absorbing",
        "codebook collapse", "ReFiT", "AFK-MC2", "MaskGIT confidence", "density", "coverage", "reweighted ELBO",
        "reparameterisation", "variational lower bound",
    ],
)  # fmt: skip
def test_the_papers_names_of_things_are_in_the_glossary(word):
    assert word.lower() in GLOSSARY.lower()


def test_the_glossary_names_flags_and_commands_that_are_there():
    commands = leaf_commands()
    flags = {flag for command in commands.values() for parameter in command.params for flag in parameter.opts}
    named = re.findall(r"`(?:vqtool ([a-z -]+?) ?)?(--[a-z-]+|(?<=[a-z]))(?: [a-z-]+)?`", GLOSSARY)
    assert len(named) > 40
    for words, flag in named:
        assert not flag or flag in flags, flag
        assert not words or words == "codebook" or words in commands, words


def code_blocks(text):
    """The Python blocks of a document."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def examples_of_contributing():
    """File of the package, its text, the list that its name goes into, and the lines that are typed then."""
    section = CONTRIBUTING.split("\n## Adding a denoiser")[1].split("\n## ")[0]
    for part in section.split("\n### ")[1:]:
        (code,) = code_blocks(part)
        where, _, text = code.partition("\n")
        listed, file = re.search(r'Add `"toy"` to `(\w+)` in `([\w/.]+)`', part).groups()
        yield where.removeprefix("# "), text, listed, file, re.findall(r"^    vqtool (.*)$", part, flags=re.MULTILINE)


DRIVER = """
import shlex, sys
from vqtool.cli.main import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["vqtool", *shlex.split(line)]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, line
"""


def test_each_example_of_contributing_is_one_file_and_one_name_and_runs(tmp_path):
    shutil.copytree(ROOT / "vqtool", tmp_path / "tree" / "vqtool", ignore=shutil.ignore_patterns("__pycache__"))
    lines = ["encode imgs/ --size 16"]
    for where, text, listed, file, typed in examples_of_contributing():
        assert sum(bool(line.strip()) for line in text.splitlines()) <= 30
        (tmp_path / "tree" / where).write_text(text)
        names = (tmp_path / "tree" / file).read_text()
        changed = re.sub(rf"^({listed}\b[^=]*= \()", r'\1"toy", ', names, flags=re.MULTILINE)
        assert changed != names
        (tmp_path / "tree" / file).write_text(changed)
        lines += typed
    write_pictures(tmp_path / "imgs", 10)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"toy": Tokenizer(SIZES["vqvae-f8"]).state_dict()}, tmp_path / "checkpoints" / "toy.pt")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "tree"), "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input="\n".join(lines), cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"--toy-option +.*Cells a call", done.stdout)
    assert "toy-EfficientNetLite0" in (tmp_path / "scores.json").read_text()
    assert "toy-EfficientNetLite0" in (tmp_path / "compare.json").read_text()
    for made in ("toy.h5", "fixed.safetensors", "imported.safetensors"):
        assert (tmp_path / made).is_file()


PYTHON = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "vqtool").rglob("__init__.py")
    if "cli" not in path.parts
)


def test_the_examples_in_python_run_in_their_order(tmp_path):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "imgs" / name, 4, size=(64, 64))
    code = "\n".join(code_blocks(PYTHON))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "encode: 8 of 8 images" in done.stdout
    for made in ("copies/metadata.jsonl", "decoded", "samples", "prior.safetensors", "refitted.safetensors"):
        assert (tmp_path / made).exists(), made


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_document(package):
    module = importlib.import_module(package)
    here = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == package)
    names = {*getattr(module, "__all__", here)}
    sections = re.split(r"^### ", PYTHON, flags=re.MULTILINE)
    text = next((part for part in sections if part.startswith(f"`{package}`\n")), "")
    listed = {*re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)}
    listed |= {*re.findall(r"`(\w+)`", "".join(re.findall(r"^Constants and types: .*$", text, flags=re.MULTILINE)))}
    assert listed == {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", ["README.md", "docs/python.md", "docs/sampling.md", "docs/codebooks.md"])
def test_what_documents_name_of_the_package_is_there_after_import_vqtool(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    code = "import vqtool\n" + "\n".join(sorted({*re.findall(r"\bvqtool\.[a-zA-Z_.]+[a-zA-Z_]\b(?!/)", text)}))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLING = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
PAGES = {  # those whose lines need nothing but what a prior in codes of one's own leaves
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("codebooks", "fine-tuning", "gpu")
}
SHORTER = {  # what the tests add to a line of a document, so that it takes less time
    "train-prior": ("--steps", 2, "--size", "tiny"),
    "sample": ("-n", 2, "--steps", 2),
    "inpaint": ("--steps", 2),
    "vary": ("--steps", 2),
    "outpaint": ("--steps", 2),
    "codebook finetune": ("--steps", 2, "--size", 32, "-b", 2),
    "compare": ("-n", 2, "--seeds", 0, "--steps", 1, "--sampler", "purity"),
}


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def typed_lines(text):
    """The lines of a document that call vqtool, without their comments."""
    return [line.partition("  #")[0].strip() for line in re.findall(r"^    (vqtool .*)$", text, flags=re.MULTILINE)]


def type_line(vqtool, line, folder, shorter=SHORTER):
    """Run a line in this process, the commands of a pipe one after the other."""
    source = None
    for args in commands_in(re.sub(r" --minutes \d+", "", line) if shorter else line):
        more = shorter.get(" ".join(args[:2]), shorter.get(args[0], ()))
        if "--from" in args:  # whose size stays
            more = more[:2]
        result = vqtool(*args, *more, stdin=source)
        assert (result.code, "nothing to guide" in result.err) == (0, False), f"{line}\n{result.err}"
        source = folder / "pipe"
        source.write_bytes(result.data)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder, the current one, with a folder of captioned pictures."""
    path = tmp_path / "work"
    write_pictures(path / "imgs", 18, size=(64, 64))
    for i in range(18):
        (path / "imgs" / f"{i:02d}.txt").write_text(f"noise {i}")
    monkeypatch.chdir(path)
    return path


PATH = typed_lines(section(README, "Your own pictures"))
OWN_CODES = (
    "vqtool codebook refit imgs/ -f",
    "vqtool encode imgs/ -t tokenizer.safetensors -o tok.h5 -f",
    "vqtool train-prior --resume auto",
)


@pytest.mark.slow
def test_the_lines_of_the_readme_and_of_the_page_on_sampling_can_be_typed_twice(vqtool, tmp_path, work):
    assert [line.split()[1] for line in PATH] == ["encode", "train-prior", "sample", "show", "eval"]
    lines = [*PATH, *typed_lines(section(SAMPLING, "Editing")), *typed_lines(section(SAMPLING, "Measured"))]
    assert len(lines) == 11
    assert not any("--cfg-scale" in line for line in PATH)  # of a folder without captions it would be warned about
    for line in lines + lines:
        type_line(vqtool, line, tmp_path)
    assert len([*(work / "decoded").glob("*.png")]) == 2
    assert len([*(work / "halves").glob("*.png")]) == 18


@pytest.mark.slow
def test_the_lines_of_pages_can_be_typed_twice_after_a_training_in_codes_of_ones_own(vqtool, tmp_path, work):
    pages = [line for text in PAGES.values() for line in typed_lines(text) if not line.endswith("\\")]
    assert len(pages) == 19
    for line in [*OWN_CODES, *pages, *pages]:
        if " prune " in line:  # of codes that were fitted to so few vectors none is out of use
            assert "there is nothing to prune" in vqtool(*line.split()[1:]).err
        else:
            type_line(vqtool, line, tmp_path)
    for made in ("finetuned", "own", "tuned", "new.prior", "new-tuned"):
        assert (work / f"{made}.safetensors").is_file()


def test_the_path_of_the_readme_is_that_of_the_help(vqtool):
    text = vqtool("--help").out
    apple, *path = typed_lines(text)
    assert [apple] == typed_lines(section(README, "Try it"))
    assert path == typed_lines(section(README, "Your own pictures"))


@pytest.mark.slow
def test_the_first_line_of_the_readme_draws_what_it_says_in_an_empty_folder(vqtool, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (line,) = typed_lines(section(README, "Try it"))
    type_line(vqtool, line, tmp_path, shorter={})
    assert [path.name for path in work.iterdir()] == ["apple.png"]
    with Image.open("apple.png") as image:
        assert image.size == (64, 64)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    red = (pixels[:, 0] > 150) & (pixels[:, 1] < 110) & (pixels[:, 2] < 110)
    assert red.mean() > 0.1


@pytest.mark.slow
def test_the_python_block_of_the_readme_runs_twice(tmp_path):
    write_pictures(tmp_path / "imgs", 12, size=(64, 64))
    (code,) = code_blocks(README)
    code = code.replace("minutes=10", "steps=2")
    assert "steps=2" in code
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


EVALUATION = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


class Lengths:
    """Stands in for CLIP: pictures by their brightness, captions by their length."""

    name, digest = "Lengths", "0"

    def pictures(self, images):
        return torch.nn.functional.normalize(torch.from_numpy(images.mean((2, 3)) + 1.0), dim=1)

    def texts(self, captions):
        return torch.nn.functional.normalize(torch.tensor([[len(c), 1.0, 1.0] for c in captions]).double(), dim=1)


@pytest.mark.slow
def test_the_lines_of_the_page_on_scores_can_be_typed(vqtool, work, monkeypatch):
    monkeypatch.setattr(metrics.features, "load_features", lambda *_, **__: SixNumbers())
    monkeypatch.setattr(texts, "load_encoder", lambda *_: Lengths())
    for line in ("encode imgs/ -o tok.h5", "head tok.h5 -n 8 -o s.h5", "decode s.h5 -o decoded/"):
        assert vqtool(*line.split()).code == 0
    for i, picture in enumerate(sorted(Path("decoded").glob("*.png"))):
        picture.with_suffix(".txt").write_text("a" * (i + 1))
    shutil.copytree("decoded", "other")
    lines = typed_lines(EVALUATION)
    assert len(lines) > 12
    for line in lines:
        type_line(vqtool, line, work)
    (code,) = code_blocks(EVALUATION)
    exec(f"import vqtool\n{code}", {})
