"""Every mask, as a frozen config that draws itself. True = hidden.

All samples of a batch must hide equally many tokens, so `num_hidden` depends on the grid alone and
`sample` meets it exactly, whatever the motion.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from kinema.config import Config
from kinema.errors import ConfigError
from kinema.masking.grid import Grid, Overlap, inside_positions

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

    needs: ClassVar[frozenset[str]] = frozenset()
    """What must be in the motion store: `boxes`, or nothing."""

    mask_ratio: Ratio = Field(default=0.9, description="share of the tokens that is hidden")

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


class TubeMask(MaskRule):
    """The same random positions hidden in every slot (VideoMAE, section 3.3)."""

    name: Literal["tube"] = "tube"

    def num_hidden(self, grid: Grid) -> int:
        """slots * floor(mask_ratio * positions)."""
        return grid.slots * floor_share(self.mask_ratio, grid.positions)

    def sample(
        self,
        grid: Grid,
        motion: ClipMotion | None,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> BoolArray:
        """Draw one set of positions for all slots; motion is not read."""
        positions = _choose(np.arange(grid.positions), self.num_hidden(grid) // grid.slots, rng)
        return _tube(positions, grid)


class RandomMask(MaskRule):
    """Tokens hidden independently over space and time (MAE-ST, Feichtenhofer et al. 2022)."""

    name: Literal["random"] = "random"

    def num_hidden(self, grid: Grid) -> int:
        """floor(mask_ratio * tokens)."""
        return floor_share(self.mask_ratio, grid.tokens)

    def sample(
        self,
        grid: Grid,
        motion: ClipMotion | None,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> BoolArray:
        """Draw tokens from the whole clip; motion is not read."""
        mask = np.zeros(grid.tokens, dtype=np.bool_)
        mask[_choose(np.arange(grid.tokens), self.num_hidden(grid), rng)] = True
        return mask.reshape(grid.slots, grid.positions)


class FrameMask(MaskRule):
    """Whole slots hidden (VideoMAE's frame masking ablation)."""

    name: Literal["frame"] = "frame"

    def num_hidden(self, grid: Grid) -> int:
        """positions * floor(mask_ratio * slots)."""
        return grid.positions * floor_share(self.mask_ratio, grid.slots)

    def sample(
        self,
        grid: Grid,
        motion: ClipMotion | None,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> BoolArray:
        """Draw slots; motion is not read."""
        mask = np.zeros((grid.slots, grid.positions), dtype=np.bool_)
        mask[_choose(np.arange(grid.slots), self.num_hidden(grid) // grid.positions, rng)] = True
        return mask


class BlockMask(MaskRule):
    """One rectangle at a random place, the same in every slot (MGM, Table 4e, "random block").

    The rectangle has the grid's aspect as nearly as whole positions allow. Where its area exceeds
    the count, random positions of its first or last column stay visible.
    """

    name: Literal["block"] = "block"

    def num_hidden(self, grid: Grid) -> int:
        """slots * floor(mask_ratio * positions)."""
        return grid.slots * floor_share(self.mask_ratio, grid.positions)

    def sample(
        self,
        grid: Grid,
        motion: ClipMotion | None,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> BoolArray:
        """Draw the rectangle's place; motion is not read."""
        count = self.num_hidden(grid) // grid.slots
        if count == 0:
            return _tube(np.arange(0), grid)
        height = round(math.sqrt(count * grid.height / grid.width))
        height = min(max(height, math.ceil(count / grid.width)), grid.height)
        width = math.ceil(count / height)
        top = rng.integers(grid.height - height + 1)
        left = rng.integers(grid.width - width + 1)
        hidden = np.zeros((grid.height, grid.width), dtype=np.bool_)
        hidden[top : top + height, left : left + width] = True
        edge = left if rng.random() < 0.5 else left + width - 1
        surplus = _choose(np.arange(top, top + height), height * width - count, rng)
        hidden[surplus, edge] = False
        return _tube(np.flatnonzero(hidden), grid)


class MotionBoxMask(MaskRule):
    """Tube mask that hides a set share of the positions inside the motion box (MOFO, section 3.2).

    `inside_ratio` of the positions inside the box are hidden, the rest of the `mask_ratio` outside.
    With an inside ratio below the mask ratio, as in the paper (0.75 and 0.9), motion is hidden
    *less* than background. Ratio r is feasible up to about (positions - hidden) / (1 - r) inside
    positions.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})

    name: Literal["motion_box"] = "motion_box"
    inside_ratio: Ratio = Field(
        default=0.75, description="share of the positions in the box that is hidden"
    )
    overlap: Overlap = Field(
        default="overlap",
        description="a position is inside when it overlaps the box, or by its centre",
    )

    def num_hidden(self, grid: Grid) -> int:
        """slots * floor(mask_ratio * positions)."""
        return grid.slots * floor_share(self.mask_ratio, grid.positions)

    def quota(self, num_inside: int, positions: int) -> tuple[int, bool]:
        """Hidden positions inside the box, and whether `inside_ratio` had to be clipped.

        round(inside_ratio * num_inside), halves up, raised when the positions outside cannot supply
        the rest of the mask and lowered when the box asks for more than the whole mask.
        """
        hidden = floor_share(self.mask_ratio, positions)
        wanted = round_share(self.inside_ratio, num_inside)
        least = max(0, hidden - (positions - num_inside))
        most = min(num_inside, hidden)
        realised = min(max(wanted, least), most)
        return realised, realised != wanted

    def sample(
        self,
        grid: Grid,
        motion: ClipMotion | None,
        image_size: tuple[int, int],
        rng: np.random.Generator,
    ) -> BoolArray:
        """Draw positions inside and outside the clip's box, the same for every slot.

        Raises:
            ValueError: `motion` is None.
        """
        if motion is None:
            raise ValueError("the motion_box mask needs the clip's motion box, got None")
        inside = inside_positions(grid, motion.box, image_size, self.overlap)
        num_hidden_inside, _ = self.quota(int(inside.sum()), grid.positions)
        num_hidden_outside = self.num_hidden(grid) // grid.slots - num_hidden_inside
        positions = np.concatenate(
            [
                _choose(np.flatnonzero(inside), num_hidden_inside, rng),
                _choose(np.flatnonzero(~inside), num_hidden_outside, rng),
            ]
        )
        return _tube(positions, grid)


Mask = Annotated[
    TubeMask | RandomMask | FrameMask | BlockMask | MotionBoxMask, Field(discriminator="name")
]
"""Every mask there is, told apart by `name`."""


def mask_statistics(mask: BoolArray, inside: BoolArray) -> dict[str, float]:
    """What a drawn mask really hides, for logging.

    Args:
        mask: bool (slots, positions), True = hidden.
        inside: bool (positions,) or (slots, positions), True = inside the motion box.

    Returns:
        `mask_ratio`, hidden share of all tokens; `inside_ratio`, hidden share of the tokens inside
        the box, NaN when there are none; `inside_share`, share of the tokens that is inside.
    """
    inside = np.broadcast_to(inside, mask.shape)
    return {
        "mask_ratio": float(mask.mean()),
        "inside_ratio": float(mask[inside].mean()) if inside.any() else math.nan,
        "inside_share": float(inside.mean()),
    }


def _choose(
    candidates: npt.NDArray[np.intp], count: int, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """`count` different candidates, each set equally likely."""
    return rng.choice(candidates, size=count, replace=False)


def _tube(positions: npt.NDArray[np.intp], grid: Grid) -> BoolArray:
    """The same hidden positions in every slot."""
    mask = np.zeros((grid.slots, grid.positions), dtype=np.bool_)
    mask[:, positions] = True
    return mask
