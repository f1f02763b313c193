"""Options: stated once in a dataclass, checked when it is made, read from the source without an import."""

from dataclasses import dataclass

import pytest

from vqtool import options
from vqtool.errors import VqtoolError
from vqtool.options import Checked, Option, distribute, option, options_of, read_literal, read_names, read_options

TEXT = '''"""A strategy."""
from vqtool.options import Checked, option
NAMES = ("a", "b-c")

@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """What it can be told."""

    steps: int | None = option(None, "Denoiser calls.", shown="64", minimum=1)
    weight: float = option(1.5, "How much.", minimum=0)
    form: str = option("code", "Which.", choices=("code", "paper"))
    interval: tuple[float, float] = option((0.0, 1.0), "When.", minimum=0, maximum=1)
    note: str = "no option"
'''


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The same, imported."""

    steps: "int | None" = option(None, "Denoiser calls.", shown="64", minimum=1)
    weight: "float" = option(1.5, "How much.", minimum=0)
    form: "str" = option("code", "Which.", choices=("code", "paper"))
    interval: "tuple[float, float]" = option((0.0, 1.0), "When.", minimum=0, maximum=1)
    note: str = "no option"


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "PACKAGE", tmp_path)
    for cached in (options._parse, read_options, read_literal, read_names):
        cached.cache_clear()
    (tmp_path / "strategy.py").write_text(TEXT)
    yield tmp_path
    for cached in (options._parse, read_options, read_literal, read_names):
        cached.cache_clear()


def test_what_is_read_from_the_source_is_what_an_import_gives(source):
    assert read_options("strategy.py") == options_of(Options)
    assert [each.name for each in read_options("strategy.py")] == ["steps", "weight", "form", "interval"]
    assert read_options("strategy.py", "Nothing") == ()


def test_a_constant_is_read_without_an_import(source):
    assert read_literal("strategy.py", "NAMES") == ("a", "b-c")
    with pytest.raises(ValueError, match=r"strategy\.py assigns no literal to OTHERS"):
        read_literal("strategy.py", "OTHERS")


def test_the_options_of_a_base_are_read_wherever_it_stands(source):
    (source / "deep").mkdir()
    (source / "deep" / "base.py").write_text(
        "class Base:\n    a: int = option(1, 'First.')\n    b: int = option(2, 'Second.')\n"
    )
    (source / "above.py").write_text("from vqtool.deep.base import Base\nclass Options(Base):\n    pass\n")
    (source / "one.py").write_text(
        "from vqtool import above as up\nclass Mine(up.Options):\n    c: int = option(3, 'Third.')\n"
        "class Options(Mine):\n    b: int = option(5, 'Mine.')\n"
    )
    assert [(each.name, each.default) for each in read_options("one.py")] == [("a", 1), ("b", 5), ("c", 3)]


def test_choices_may_stand_elsewhere(source):
    (source / "a.py").write_text("SIZES: dict[str, int] = {'tiny': 1, **OTHERS, 'small': f(2)}\n")
    (source / "b.py").write_text("SIZES = ('small', 'huge')\n")
    assert Option(default="tiny", help="How large.", choices="*.py:SIZES").known == ("tiny", "small", "huge")
    with pytest.raises(ValueError, match=r"\*\.py has no names in NAMES_OF_ALL"):
        read_names("*.py", "NAMES_OF_ALL")


def test_options_go_where_they_are_known():
    @dataclass(frozen=True, kw_only=True)
    class Others(Checked):
        size: "str" = option("tiny", "How large.")

    assert distribute({"size": "base", "steps": 3}, Options, Others) == [Options(steps=3), Others(size="base")]
    with pytest.raises(TypeError, match="no options are called heft, sise; there are form, interval, note, size"):
        distribute({"heft": 1, "sise": 2}, Options, Others)


def test_an_option_that_is_no_literal_is_refused(source):
    (source / "wrong.py").write_text("class Options:\n    steps: int = option(DEFAULT, 'Calls.')\n")
    with pytest.raises(ValueError, match="malformed node"):
        read_options("wrong.py")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "`steps` 0: must be 1 or more"),
        ({"steps": 2**63}, "`steps` 9223372036854775808: whole numbers have to lie below 2**63"),
        ({"weight": -0.5}, "`weight` -0.5: must be 0 or more"),
        ({"weight": float("nan")}, "`weight` nan: must be 0 or more"),
        ({"weight": float("inf")}, "`weight` inf: must be 0 or more"),
        ({"form": "book"}, "`form` book: unknown; known are code, paper"),
        ({"interval": (0.2, 1.2)}, "`interval` 1.2: must be at least 0 and at most 1"),
    ],
)
def test_a_value_that_is_not_possible_is_refused_by_name(given, message):
    with pytest.raises(VqtoolError) as error:
        Options(**given)
    assert str(error.value) == message


def test_possible_values_pass():
    assert Options(steps=1, weight=0, form="paper", interval=(0, 1)).weight == 0
    assert Options(steps=2**63 - 1).steps == 2**63 - 1


@pytest.mark.parametrize(
    ("each", "text"),
    [
        (Option(default=None, help="", shown="64"), "64"),
        (Option(default=None, help=""), ""),
        (Option(default=0.5, help=""), "0.5"),
        (Option(default=(0.0, 1.0), help=""), "0,1"),
        (Option(default=True, help=""), "yes"),
        (Option(default="code", help=""), "code"),
    ],
)
def test_a_default_is_shown_as_people_read_it(each, text):
    assert each.default_text == text
