"""Text on a page."""

from html import escape


def show(text: object) -> str:
    """HTML that shows a text as it is, whatever it holds; characters that cannot be shown are escaped."""
    shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))
    return escape(shown, quote=True)
