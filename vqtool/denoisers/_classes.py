"""What networks on masked grids of one class have in common, which are told the class by a row, and no time."""

from dataclasses import dataclass

from torch import Tensor, nn

from vqtool.denoisers import Denoiser, EncodedCondition

INITIAL_SCALE = 0.02  # std of fresh weights


@dataclass(frozen=True)
class ClassConfig:
    """What such a network is built from, and what its own kind adds."""

    codebook_size: int
    grid_size: tuple[int, int]  # (H, W) cells of the training grids
    num_steps: int  # T of the kernel; the network is not told t
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    num_classes: int = 0  # 0: no class condition

    def __post_init__(self) -> None:
        if not self.num_heads or self.width % self.num_heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.num_heads} heads")


class ClassNetwork(Denoiser):
    """A network that is told a class by one more row, and no time."""

    sees_time = False
    classes: nn.Embedding  # the last row is the null class
    positions: nn.Parameter
    head: nn.Linear

    def initialise(self) -> None:
        """Fresh weights, with which all tokens are equally likely."""
        for part in self.modules():
            if isinstance(part, nn.Embedding | nn.Linear):
                nn.init.trunc_normal_(part.weight, std=INITIAL_SCALE)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        nn.init.trunc_normal_(self.positions, std=INITIAL_SCALE)
        nn.init.zeros_(self.head.weight)

    @property
    def null_weights(self) -> tuple[tuple[str, int | None], ...]:
        """The last row of the classes."""
        return (("classes.weight", -1),) if self.config.num_classes else ()

    def encode_condition(self, condition: Tensor) -> EncodedCondition:
        """The rows of (B,) classes, num_classes for none; or of (B, 0) nothing."""
        if condition.ndim == 2:
            condition = condition.new_zeros(len(condition))
        return EncodedCondition(self.classes(condition))

    def class_row(self, x_t: Tensor, condition: Tensor | EncodedCondition | None) -> Tensor:
        """(B, 1, D), of the class that is given, else of none."""
        if condition is None:
            condition = x_t.new_full((x_t.shape[0],), self.config.num_classes)
        encoded = self.encode_condition(condition) if isinstance(condition, Tensor) else condition
        if encoded.embedding is None:
            raise ValueError("this network was made for a class, and none is given")
        return encoded.embedding[:, None]
