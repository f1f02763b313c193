"""What a user says about sources of images: which pictures, how they get to a size, where their words stand."""

from dataclasses import dataclass

from vqtool.errors import VqtoolError
from vqtool.options import Checked, option


@dataclass(frozen=True, kw_only=True)
class SourceOptions(Checked):
    """Which pictures of a source are taken, how they are brought to a size, and where their words come from."""

    fit: str | None = option(
        None,
        "Cut pictures to the size, lay them on white, or stretch them.",
        shown="what loses least",
        choices=("crop", "pad", "stretch"),
    )
    captions: str | None = option(None, "none, or FILE[:COLUMN]: csv, jsonl, parquet, COCO.")
    labels: str | None = option(None, "none, folder (class folders), or FILE[:COLUMN].")
    caption_lines: str = option(
        "all",
        "Of a .txt of several lines: all as one caption, the first, or each as a caption.",
        choices=("all", "first", "each"),
        advanced=True,
    )
    split: str | None = option(None, "train, val or test: a folder above the classes.")
    include: str | None = option(None, "Take files that match only, such as '*.jpg,a/*'.", advanced=True)
    exclude: str | None = option(None, "Leave out files that match.", advanced=True)
    allow_truncated: bool = option(False, "Take what is there of a tar that ends early.", advanced=True)


DEFAULTS = SourceOptions()


def given(options: SourceOptions) -> dict[str, object]:
    """Those that differ from the defaults."""
    return {name: value for name, value in vars(options).items() if value != getattr(DEFAULTS, name)}


def refuse_for_grids(options: SourceOptions, source: object) -> None:
    """Raise where options of images are given for token grids.

    Raises:
        VqtoolError: names one that is given.
    """
    for name in given(options):
        raise VqtoolError(f"`{name}` is for images, but {source} holds token grids")
