"""Every mask, as a frozen config that draws itself. True = hidden.

All samples of a batch must hide equally many tokens, so `num_hidden` depends on the grid alone and
`sample` meets it exactly, whatever the motion.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from kinema.masking.grid import Grid, Overlap, inside_positions
from kinema.masking.moving import MGMMask, SMMMask
from kinema.masking.rule import BoolArray, MaskRule, Ratio, choose, floor_share, round_share

if TYPE_CHECKING:
    from kinema.motion.clip import ClipMotion


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
        positions = choose(np.arange(grid.positions), self.num_hidden(grid) // grid.slots, rng)
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
        mask[choose(np.arange(grid.tokens), self.num_hidden(grid), rng)] = True
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
        mask[choose(np.arange(grid.slots), self.num_hidden(grid) // grid.positions, rng)] = True
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
        surplus = choose(np.arange(top, top + height), height * width - count, rng)
        hidden[surplus, edge] = False
        return _tube(np.flatnonzero(hidden), grid)


class CubeMask(MaskRule):
    """Cuboids of space and time at random places until enough is hidden (MaskFeat, section 4.1).

    A cuboid spans any number of slots, covers `min_area` to `max_area` of a slot, and is at most
    1 / `min_aspect` times as high as wide, or as wide as high. The last one is cut at random.
    """

    name: Literal["cube"] = "cube"
    mask_ratio: Ratio = Field(default=0.4, description="share of the tokens that is hidden")
    min_area: Ratio = Field(default=0.08, description="of a cuboid, as a share of a slot")
    max_area: Ratio = Field(default=0.4, description="of a cuboid, as a share of a slot")
    min_aspect: float = Field(default=0.3, gt=0, le=1)

    @model_validator(mode="after")
    def _check_areas(self) -> Self:
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area} exceeds max_area {self.max_area}")
        return self

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
        """Draw cuboids, each around a token that is still visible; motion is not read."""
        mask = np.zeros((grid.slots, grid.height, grid.width), dtype=np.bool_)
        missing = self.num_hidden(grid)
        while missing > 0:
            cuboid = self._cuboid(grid, rng, at=int(rng.choice(np.flatnonzero(~mask))))
            fresh = np.flatnonzero(cuboid & ~mask)
            fresh = choose(fresh, missing, rng) if len(fresh) > missing else fresh
            mask.reshape(-1)[fresh] = True
            missing -= len(fresh)
        return mask.reshape(grid.slots, grid.positions)

    def _cuboid(self, grid: Grid, rng: np.random.Generator, at: int) -> BoolArray:
        """A random cuboid that holds the token `at`, cut to the grid."""
        area = rng.uniform(self.min_area, self.max_area) * grid.positions
        aspect = math.exp(rng.uniform(math.log(self.min_aspect), -math.log(self.min_aspect)))
        wanted = (
            float(rng.integers(1, grid.slots + 1)),
            math.sqrt(area * aspect),
            math.sqrt(area / aspect),
        )
        cuboid = np.zeros((grid.slots, grid.height, grid.width), dtype=np.bool_)
        place = []
        for length, size, centre in zip(
            wanted, cuboid.shape, np.unravel_index(at, cuboid.shape), strict=True
        ):
            side = min(max(round(length), 1), size)
            start = int(np.clip(centre - rng.integers(side), 0, size - side))
            place.append(slice(start, start + side))
        cuboid[tuple(place)] = True
        return cuboid


class MotionBoxMask(MaskRule):
    """Tube mask that hides a set share of the positions inside the motion box (MOFO, section 3.2).

    `inside_ratio` of the positions inside the box are hidden, the rest of the `mask_ratio` outside.
    With an inside ratio below the mask ratio, as in the paper (0.75 and 0.9), motion is hidden
    *less* than background. Ratio r is feasible up to about (positions - hidden) / (1 - r) inside
    positions.
    """

    name: Literal["motion_box"] = "motion_box"
    inside_ratio: Ratio = Field(
        default=0.75, description="share of the positions in the box that is hidden"
    )
    overlap: Overlap = Field(
        default="overlap",
        description="a position is inside when it overlaps the box, or by its centre",
    )

    @property
    def needs(self) -> frozenset[str]:
        """The clip's motion box."""
        return frozenset({"boxes"})

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
            ValueError: `motion` holds no boxes.
        """
        if motion is None or motion.boxes is None:
            raise ValueError("the motion_box mask needs the clip's motion box, got None")
        inside = inside_positions(grid, motion.boxes.box, image_size, self.overlap)
        num_hidden_inside, _ = self.quota(int(inside.sum()), grid.positions)
        num_hidden_outside = self.num_hidden(grid) // grid.slots - num_hidden_inside
        positions = np.concatenate(
            [
                choose(np.flatnonzero(inside), num_hidden_inside, rng),
                choose(np.flatnonzero(~inside), num_hidden_outside, rng),
            ]
        )
        return _tube(positions, grid)


Mask = Annotated[
    TubeMask | RandomMask | FrameMask | BlockMask | CubeMask | MotionBoxMask | SMMMask | MGMMask,
    Field(discriminator="name"),
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


def _tube(positions: npt.NDArray[np.intp], grid: Grid) -> BoolArray:
    """The same hidden positions in every slot."""
    mask = np.zeros((grid.slots, grid.positions), dtype=np.bool_)
    mask[:, positions] = True
    return mask
