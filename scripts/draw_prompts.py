"""Draw the README's sheet of 32 prompts with the built-in prior, seed i for prompt i: neither is chosen.

The prompts of the first two rows are captions of pictures that the prior was trained on, those of the last two of none.

    python scripts/draw_prompts.py                               # docs/prompts.png
    python scripts/draw_prompts.py --prior FILE -o sheet.png     # another prior, in another file
    python scripts/draw_prompts.py --pictures build/pictures     # first compares with the captions that are there
"""

import argparse
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import torch

import vqtool
from vqtool.distributed import choose_device
from vqtool.errors import VqtoolError
from vqtool.images import to_uint8
from vqtool.images.preview import preview_grid, save_image
from vqtool.tokenizers import tokenizer_of

ROOT = Path(__file__).resolve().parents[1]
TRAINED = (
    "a red apple", "a green apple", "blue heart, 3d style", "a butterfly", "an octopus", "a rocket", "a sunflower",
    "a strawberry", "a snowman", "a frog", "a guitar", "a crown", "a skull", "the flag of japan", "a cup of coffee",
    "a 3d picture of a cat",
)  # fmt: skip
NEVER_SEEN = (
    "a penguin", "a unicorn", "a blue apple", "a red fish", "a green cat", "a purple star", "a blue rose", "a red frog",
    "a green star", "a yellow car", "a red tree", "a purple butterfly", "a blue strawberry", "a cat with a crown",
    "a rocket in the snow", "purple apple, 3d style",
)  # fmt: skip
COLUMNS = 8
CFG_SCALE = 3.0


def read_captions(archive: Path) -> set[str]:
    """All captions in a tar of pictures that scripts/prepare_pictures.py made."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile("metadata.jsonl")
        rows = [json.loads(line) for line in file.read().decode().splitlines()] if file else []
    return {caption for row in rows for caption in row["text"]}


def check_captions(folder: Path) -> None:
    """Compare the prompts with the captions of the training pictures.

    Raises:
        VqtoolError: one stands in the wrong rows.
    """
    known = read_captions(folder / "emoji.tar.gz") | read_captions(folder / "clipart.tar.gz")
    wrong = [prompt for prompt in TRAINED if prompt not in known] + [prompt for prompt in NEVER_SEEN if prompt in known]
    if wrong:
        raise VqtoolError(f"{folder}: these prompts stand in the wrong rows: {', '.join(wrong)}")


def draw(prior: vqtool.Prior, prompts: Sequence[str]) -> torch.Tensor:
    """(N, H, W) tokens, prompt i with seed i."""
    grids = []
    for seed, prompt in enumerate(prompts):
        condition = vqtool.condition(prior, captions=[prompt])
        how = {"sampler": "purity", "cfg_scale": CFG_SCALE, "condition": condition}
        grids.append(vqtool.sample(prior, 1, seed=seed, **how))
        print(f"{seed + 1} of {len(prompts)}: {prompt}", file=sys.stderr)
    return torch.cat(grids)


def main() -> int:
    """Draw the sheet that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--prior", default="builtin", help="default: the one inside the package")
    parser.add_argument("--pictures", type=Path, help="where emoji.tar.gz and clipart.tar.gz of the training lie")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "prompts.png", help="default: in docs/")
    options = parser.parse_args()
    prompts = [*TRAINED, *NEVER_SEEN]
    try:
        if options.pictures is not None:
            check_captions(options.pictures)
        prior = vqtool.load_prior(options.prior).to(choose_device("auto"))
        tokenizer = tokenizer_of(prior.grid_spec, options.prior).to(prior.device)
        images = to_uint8(tokenizer.decode(draw(prior, prompts).to(prior.device)))
        save_image(preview_grid(images, prompts, columns=COLUMNS), options.output, force=True)
    except (VqtoolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}: prior {prior.fingerprint}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
