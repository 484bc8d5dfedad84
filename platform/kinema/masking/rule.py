"""What every mask has in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from kinema.config import Config
from kinema.errors import ConfigError
from kinema.masking.grid import Grid

if TYPE_CHECKING:
    from kinema.motion.clip import ClipMotion

Ratio = Annotated[float, Field(ge=0, le=1)]
BoolArray = npt.NDArray[np.bool_]

# Products such as 0.29 * 100 fall just below the integer they mean.
_ROUNDING_SLACK = 1e-9


def floor_share(ratio: float, total: int) -> int:
    """floor(ratio * total), where a product within 1e-9 of the next integer counts as it."""
    return min(total, math.floor(ratio * total + _ROUNDING_SLACK))


def round_share(ratio: float, total: int) -> int:
    """ratio * total rounded to the nearest integer, halves up, with the same slack."""
    return min(total, math.floor(ratio * total + 0.5 + _ROUNDING_SLACK))


class MaskRule(Config):
    """What every mask has: the share of tokens it hides, what it reads, and a way to draw it."""

    mask_ratio: Ratio = Field(default=0.9, description="share of the tokens that is hidden")

    @property
    def needs(self) -> frozenset[str]:
        """What it reads of a clip's motion: `boxes`, `flow`, `vectors`, or nothing."""
        return frozenset()

    @abstractmethod
    def num_hidden(self, grid: Grid) -> int:
        """Hidden tokens of every clip on this grid."""

    @abstractmethod
    def sample(
        self,
        grid: Grid,
        motion: ClipMotion | None,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> BoolArray:
        """Draw the mask of one clip.

        Args:
            grid: the token grid.
            motion: the clip's motion, in pixels of the network input; only masks that `need`
                something read it.
            image_size: (height, width) of the network input in pixels.
            rng: where all randomness comes from.

        Returns:
            bool (slots, positions), True = hidden, with exactly `num_hidden(grid)` True.
        """

    def check(self, grid: Grid) -> None:
        """Refuse a grid on which training would be meaningless.

        Raises:
            ConfigError: no token stays visible, or none is hidden.
        """
        hidden = self.num_hidden(grid)
        if 0 < hidden < grid.tokens:
            return
        what = "hides none" if hidden == 0 else "leaves none visible"
        raise ConfigError(
            [
                f"mask.mask_ratio: {self.mask_ratio} {what} of the {grid.tokens} tokens of a"
                f" {grid} grid (slots x height x width); use another ratio or a finer grid"
            ]
        )


def choose(
    candidates: npt.NDArray[np.intp], count: int, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """`count` different candidates, each set equally likely."""
    return rng.choice(candidates, size=count, replace=False)
