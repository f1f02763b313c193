"""Command lines of vqtool in help texts, shell scripts and documents: found, and parsed without being run."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import typer

from vqtool.cli.main import app

Args = list[str]
WRAPPERS = {"run", "make", "once", "train", "time", "exec", "then", "do", "else", "if", "!"}  # what may begin a command
CHANGES_THE_SHELL = {"--install-completion", "--show-completion"}  # acts while it is parsed


@cache
def root_command() -> Any:
    """The vqtool command with all sub-commands."""
    return typer.main.get_command(app)


def leaf_commands() -> dict[str, Any]:
    """Every command that does something: its words, such as "codebook refit" -> the command."""
    found = {}
    left = [("", root_command())]
    while left:
        words, command = left.pop()
        if hasattr(command, "list_commands"):
            names = command.list_commands(None)
            left += [(f"{words} {name}".strip(), command.get_command(None, name)) for name in names]
        else:
            found[words] = command
    return dict(sorted(found.items()))


def parse(args: Args) -> str:
    """Parse arguments as `vqtool` would, without running anything; the words of the command that was found.

    Raises:
        Exception: of the command-line library, if vqtool would exit with a usage error.
    """
    command, name, words, context = root_command(), "vqtool", [], None
    try:
        while True:
            # resilient_parsing=False: missing, unknown and malformed parameters raise.
            context = command.make_context(name, list(args), parent=context)
            if not hasattr(command, "resolve_command"):
                return " ".join(words)
            kept = "_protected_args" if hasattr(context, "_protected_args") else "protected_args"  # by click's version
            name, command, args = command.resolve_command(context, getattr(context, kept) + context.args)
            words.append(name)
    except typer.Exit:  # --help, --version
        return " ".join(words)


def examples(help_text: str) -> list[str]:
    """The lines of the `Examples:` block of a command's help."""
    _, _, block = help_text.partition("Examples:")
    return [line.strip() for line in block.splitlines() if line.strip()]


def commands_in(line: str) -> Iterator[Args]:
    """The arguments of each `vqtool` on one shell line, unless they are those of the script."""
    if re.search(r'vqtool "\$@"', line):
        return
    line = re.sub(r"\d*>>?\s*(&\d|\S+)", " ", line)  # redirections
    line = re.sub(r'"?\$\{\w+\[@\]\}"?', " ", line)  # arrays of further options
    line = re.sub(r"\$(\w+|\{[^}]*\})", "1", line)  # variables: 1 is a number and a path
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    segment: Args = []
    for token in [*lexer, "|"]:
        if set(token) <= set("();<>|&"):
            yield from _arguments(segment)
            segment = []
        else:
            segment.append(token)


def _arguments(segment: Args) -> Iterator[Args]:
    if "vqtool" not in segment:
        return
    position = segment.index("vqtool")
    before, after = segment[:position], segment[position + 1 :]
    begins = not before or before[0] in WRAPPERS or "=" in before[0]  # NAME=value vqtool ...
    if (begins or before[-1] == "-m") and not CHANGES_THE_SHELL & set(after):
        yield after


def commands_in_script(text: str) -> Iterator[tuple[str, Args]]:
    """Each line of a shell script that calls vqtool, also in comments `#   vqtool ...`, and its arguments."""
    for line in _filled_in(re.sub(r"\\\n\s*", "", text)).splitlines():
        bare = re.sub(r"^\s*#\s{2,}(?=vqtool )", "", line).strip()
        if not bare.startswith("#") and "vqtool" in bare:
            for args in commands_in(bare):
                yield bare, args


def _filled_in(script: str) -> str:
    """A shell script with what its arrays are last said to hold in their places, and no arguments of its own."""
    found = re.findall(r"(\w+)\+?=\(([^()]*)\)", script)
    arrays = {name: " ".join(held.split()) for name, held in found if held.strip()}
    filled = re.sub(r'"\$\{(\w+)\[@\]\}"', lambda match: arrays.get(match[1], ""), script)
    return re.sub(r'(?<!vqtool )"\$(@|\{@[^}]*\})"', " ", filled)


def commands_in_markdown(text: str) -> Iterator[tuple[str, Args]]:
    """Each line of the code blocks of a document that calls vqtool, and its arguments."""
    fenced = re.findall(r"^```(?:sh|bash|shell|console|text)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4,}((?:\$ )?vqtool .*)$", re.sub(r"\\\n\s*", "", outside), flags=re.MULTILINE)
    for block in [*fenced, *indented]:
        yield from commands_in_script(re.sub(r"^\$ ", "", block, flags=re.MULTILINE))
