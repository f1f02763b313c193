"""What pyproject.toml cannot say: the README as a package index shows it.

An index has none of the repository's files. VQTOOL_URL says where they can be read, such as
https://example.org/vqtool/raw/v0.2.0, and links and pictures lead there. Nobody can know that address from a copy of
the repository: without it pictures give way to their descriptions and links to their texts, and none is broken.
"""

import os
import re
from pathlib import Path

from setuptools import setup

LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")


def description(text: str, url: str | None) -> str:
    """The README with links to files of the repository made absolute, or taken out."""
    if url is None:
        return LINK.sub(lambda link: f"*({link[2]}: {link[3]} in the source)*" if link[1] else link[2], text)
    return LINK.sub(lambda link: f"{link[1]}[{link[2]}]({url.rstrip('/')}/{link[3]})", text)


if __name__ == "__main__":
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=description(readme, os.environ.get("VQTOOL_URL")),
        long_description_content_type="text/markdown",
    )
