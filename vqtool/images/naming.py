"""Names for files that are made from ids: an id may come from anybody's file, a name must stay in its folder."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_LONGEST = 120  # bytes of UTF-8; leaves room for a number and an extension in the 255 that file systems allow
_NAMELESS = "image"
_FORBIDDEN = frozenset('<>:"/\\|?*')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def safe_name(id: str) -> str:
    """Make the stem of a file name out of any id.

    Separators, control characters, blanks and what Windows forbids become "_"; nothing leads that hides a file or
    looks like an option; a name that Windows reserves begins with "_"; a long one is cut and ends in a digest.

    Returns:
        1 to 120 bytes of UTF-8. Ids that differ may give the same name: see `UniqueNames`.
    """
    text = unicodedata.normalize("NFC", id)
    text = "".join("_" if _is_forbidden(character) else character for character in text)
    text = text.lstrip("._-~").rstrip("._") or _NAMELESS
    if _RESERVED.fullmatch(text):
        text = f"_{text}"
    data = text.encode()
    if len(data) > _LONGEST:
        digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        text = f"{data[: _LONGEST - 9].decode('utf-8', 'ignore')}-{digest}"
    return text


class UniqueNames:
    """Safe names that stay apart, also where upper and lower case are the same: a, A-2, a-3.

    The names depend on the ids and their order alone.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}  # the last number given to a name

    def __call__(self, id: str) -> str:
        """The safe name of the next id."""
        stem = name = safe_name(id)
        key = _fold(stem)
        while _fold(name) in self._taken:
            number = self._numbers.get(key, 1) + 1
            self._numbers[key] = number
            name = f"{stem}-{number}"
        self._taken.add(_fold(name))
        return name


def _is_forbidden(character: str) -> bool:
    """Separators, blanks, and all of Unicode's class C: control, format (such as right-to-left marks), surrogates."""
    return character in _FORBIDDEN or character.isspace() or unicodedata.category(character).startswith("C")


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())
