"""The layout of style and package: names match files, imports point up, every command has help, examples and a test."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_lines import commands_in, examples, leaf_commands, parse, root_command
from typer.testing import CliRunner

import vqtool
from vqtool import denoisers, metrics, samplers
from vqtool.cli import help
from vqtool.cli.main import COMMANDS, app
from vqtool.diffusion import kernels
from vqtool.tokenizers import quantizers

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vqtool"
PIPELINE = "images -> tokenizer -> token grids -> prior -> sampler -> token grids -> tokenizer -> images -> metrics"

# Data flows from top to bottom; a package imports only what stands above it.
LAYERS = (
    "errors", "version", "signals", "trust", "captions", "extras", "options", "checks", "registry", "rng", "products",
    "distributed", "progress", "tally", "hdf5", "urls", "cluster", "inputs", "locks", "outputs", "artifacts",
    "runtimes", "grids", "inspection", "images", "shards", "tokenizers", "codebooks", "conditions", "diffusion",
    "denoisers", "adapters", "priors", "samplers", "interop", "training", "metrics", "cli",
)  # fmt: skip
INTERFACES = ("__init__", "__main__")  # of the package: above nothing, so they may import anything
NOT_COMMANDS = {  # in cli/
    "__init__", "main", "flags", "help", "options", "console", "inputs", "training", "sampling", "editing",
}  # fmt: skip
MAX_LINES = 400  # of a module: past that, look for the second idea


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    """The module or package directly below vqtool/ that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The full names of what a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_module_has_its_place_in_the_layers():
    assert {layer(path) for path in modules()} - set(INTERFACES) == set(LAYERS)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_up(path):
    if layer(path) in INTERFACES:
        return
    allowed = {*LAYERS[: LAYERS.index(layer(path)) + 1]}
    for name in imports(path):
        if name.startswith("vqtool."):
            assert name.split(".")[1] in allowed, f"{name_of(path)} imports {name}, which stands below it"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_libraries_are_imported_only_where_they_belong(path):
    tops = {name.split(".")[0] for name in imports(path)}
    assert "click" not in tops, "typer brings its own click"
    if layer(path) != "cli":
        assert not tops & {"typer", "rich"}
    if layer(path) != "conditions":
        assert not tops & {"tokenizers", "sentencepiece"}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_modules_are_documented_short_and_without_assert(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text, "a module opens with a docstring"
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    assert len(text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    ("package", "names", "others"),
    [
        ("samplers", samplers.NAMES, {"drawing", "editing", "estimates", "masks", "runs", "shards", "trajectories"}),
        ("denoisers", denoisers.NAMES, set()),
        (
            "metrics",
            metrics.NAMES,
            {
                "cache",
                "card",
                "dual_encoder",
                "evaluation",
                "exhibits",
                "galleries",
                "judges",
                "likelihood",
                "neighbours",
                "pairs",
                "pictures",
                "plots",
                "reconstruction",
                "reference",
                "report",
                "results",
                "saved",
                "score",
                "sides",
                "similarity",
                "saving",
                "text",
                "tokens",
            },
        ),
        ("metrics/features", metrics.features.NAMES, {"options", "resizing"}),
        ("diffusion/kernels", tuple(kernels.KERNELS), set()),
        ("tokenizers/quantizers", quantizers.NAMES, set()),
    ],
)
def test_registered_names_are_those_of_the_files(package, names, others):
    files = {path.stem for path in (PACKAGE / package).glob("*.py") if not path.stem.startswith("_")}
    assert files == {name.replace("-", "_") for name in names} | others


@pytest.mark.parametrize("name", samplers.NAMES)
def test_the_docstring_of_a_sampler_says_what_it_costs_and_where_it_is_from(name):
    text = samplers.find(name).__doc__ or ""
    for part in ("When to use", "Cost", "Source"):
        assert part in text


def test_the_commands_are_those_of_the_files():
    paths = [*(PACKAGE / "cli").glob("*.py"), *(path.parent for path in (PACKAGE / "cli").glob("*/__init__.py"))]
    stems = {
        path.stem for path in paths if not path.stem.startswith("_") or path.stem == "__init__"
    } - NOT_COMMANDS  # a command of several, such as codebook, is a package
    files = {stem.rstrip("_").replace("_", "-") for stem in stems}  # import_.py: `import` is a word of Python
    assert files == {name.replace(" ", "-") for name in COMMANDS}
    assert root_command().list_commands(None) == [*COMMANDS]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_file_of_tests(name):
    assert (ROOT / "tests" / "cli" / f"test_{re.sub('[ -]', '_', name)}.py").is_file()


@pytest.mark.parametrize("words", leaf_commands())
def test_the_help_of_a_command_is_one_imperative_line_and_examples_that_parse(words):
    text = leaf_commands()[words].help
    first, blank, *_ = [*text.splitlines(), "", ""]
    assert re.fullmatch(r"[A-Z][a-z-]*([^s\W]|ss) .+\.", first), "one line, in the imperative, with a full stop"
    assert not blank
    lines = examples(text)
    assert lines
    assert any(parse(args) == words for line in lines for args in commands_in(line))
    for line in lines:
        for args in commands_in(line):
            assert parse(args)


@pytest.mark.parametrize("words", leaf_commands())
def test_every_option_of_a_command_says_what_it_does(words):
    for parameter in leaf_commands()[words].params:
        assert getattr(parameter, "help", None), f"vqtool {words}: {parameter.name} has no help"


SCREEN = (24, 100)  # lines and columns of a terminal


@pytest.mark.parametrize("words", sorted(leaf_commands()))
def test_the_flags_of_every_day_come_first_and_fit_a_screen(words, monkeypatch):
    lines, columns = SCREEN
    monkeypatch.setenv("COLUMNS", str(columns))
    text = CliRunner().invoke(app, [*words.split(), "--help"]).output.splitlines()
    titles = {match[1]: number for number, line in enumerate(text) if (match := re.match(r"╭─ (.+?) ─+╮", line))}
    panels = [title for title in titles if title != "Arguments"]
    known = [title for title in (*help.PANELS, *map(help.advanced, help.PANELS)) if title in panels]
    assert [title for title in panels if not title.startswith(("Sampler", "Quantizer"))] == known
    ends = [number for number, line in enumerate(text) if line.startswith("╰")]
    every_day = [title for title in panels if title in help.PANELS]
    assert every_day == panels[: len(every_day)]
    if every_day:
        assert min(end for end in ends if end > titles[every_day[-1]]) < lines, "\n".join(text)


@pytest.mark.parametrize(
    "args", [["encode"], ["encode", "imgs/", "--no-such-option"], ["nothing"], ["show", "-n", "x"]]
)
def test_a_wrong_command_line_does_not_parse(args):
    with pytest.raises(Exception, match=r"(?i)missing|no such|valid"):
        parse(args)


def test_command_lines_are_found_in_pipes_and_beside_other_programs():
    found = list(commands_in('cat a | run vqtool sample -n "$num" | vqtool decode -o x/ 2>/dev/null && ls # vqtool x'))
    assert found == [["sample", "-n", "1"], ["decode", "-o", "x/"]]


@pytest.mark.parametrize("name", vqtool.__all__)
def test_the_python_interface_can_be_imported(name):
    value = getattr(vqtool, name)
    assert isinstance(value, str) or value.__doc__


def test_an_unknown_name_of_the_python_interface_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vqtool.no_such_name


def test_the_pipeline_is_described_alike_everywhere():
    assert PIPELINE in vqtool.__doc__
    assert PIPELINE in root_command().help
    assert PIPELINE in (ROOT / "README.md").read_text(encoding="utf-8")


OTHER_TESTS = {"docs", "layout", "old", "hostile", "recipes", "release", "scripts"}  # of what stands beside the package


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=name_of)
def test_tests_follow_the_packages(path):
    package = path.parent.relative_to(ROOT / "tests")
    assert (PACKAGE / package).is_dir()
    if package == Path():
        stem = path.stem.removeprefix("test_")
        assert stem in LAYERS or stem.partition("_")[0] in OTHER_TESTS


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=name_of)
def test_every_package_can_be_imported_alone(path):
    name = ".".join(path.parent.relative_to(ROOT).parts)
    assert importlib.import_module(name).__doc__
