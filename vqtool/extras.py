"""How to install what vqtool can do without: the command for the place that this copy came from."""

import json
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import unquote, urlsplit


def install_command(extra: str) -> str:
    """The `pip install` that adds an extra, such as "eval", to this copy of vqtool.

    A checkout, a wheel file and a repository are named as pip recorded them when it installed this copy; a copy that
    pip did not install is named by its folder, and one from a package index by its name alone.
    """
    try:
        text = metadata.distribution("vqtool").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return f"pip install {quote(f'{Path(__file__).parents[1]}[{extra}]')}"
    return f"pip install {_requirement(extra, json.loads(text))}" if text else f"pip install 'vqtool[{extra}]'"


def _requirement(extra: str, origin: dict[str, Any]) -> str:
    """What to install again; see packaging.python.org, "direct URL data structure"."""
    url = str(origin["url"])
    if "dir_info" in origin:
        folder = quote(f"{unquote(urlsplit(url).path)}[{extra}]")
        return f"-e {folder}" if origin["dir_info"].get("editable") else folder
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    return quote(f"vqtool[{extra}] @ {url}")
