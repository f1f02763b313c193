"""Which grids the images of a tokenizer become: by its factor, or for a single size, as one row."""

from vqtool.errors import MismatchError, VqtoolError, size_text
from vqtool.tokenizers.magvit2 import Magvit2Config
from vqtool.tokenizers.maskgit import MaskgitConfig
from vqtool.tokenizers.titok import TitokConfig
from vqtool.tokenizers.vqgan import VqganConfig
from vqtool.tokenizers.vqvae import VqVaeConfig

NetworkConfig = VqVaeConfig | VqganConfig | MaskgitConfig | Magvit2Config | TitokConfig


def find_grid_size(config: NetworkConfig, image_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) cells of images of (h, w) pixels; errors as for `Tokenizer.grid_size`."""
    if isinstance(config, TitokConfig):
        if image_size != config.only_size:
            raise VqtoolError(
                f"images of {size_text(image_size)} do not fit this tokenizer, which knows those of "
                f"{size_text(config.only_size)} pixels alone"
            )
        return 1, config.num_tokens
    (height, width), factor = image_size, config.factor
    if height % factor or width % factor or not height or not width:
        near = [max(1, round(side / factor)) * factor for side in image_size]
        raise VqtoolError(
            f"images of {height}x{width} do not fit a tokenizer with factor {factor}: "
            f"both sides must be multiples of {factor}, e.g. {near[0]}x{near[1]}"
        )
    return height // factor, width // factor


def find_image_size(config: NetworkConfig, grid_size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) pixels of grids of (H, W) cells; errors as for `Tokenizer.image_size`."""
    if not isinstance(config, TitokConfig):
        return grid_size[0] * config.factor, grid_size[1] * config.factor
    if grid_size != (1, config.num_tokens):
        raise MismatchError(
            f"grids of {size_text(grid_size)} tokens do not fit a tokenizer whose images are {config.num_tokens} "
            "tokens in one row"
        )
    return config.only_size
