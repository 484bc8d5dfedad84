"""Masks that move through the clip: simulated motion and motion-guided masking (MGM, section 3).

Both move one window over the token grid, slot by slot. The dense ones hide a rectangle, the sparse
ones tokens drawn around its centre. Lengths are in tokens, x to the right and y down.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from kinema.masking.grid import Grid
from kinema.masking.rule import BoolArray, MaskRule, Ratio, floor_share

if TYPE_CHECKING:
    from kinema.motion.clip import ClipMotion, SlotField

Floats = npt.NDArray[np.float64]

_TIE = 9
"""Decimals of a token: distances that differ by less are equal, and chance decides."""


class MovingMask(MaskRule):
    """A window of `mask_ratio` of a slot that moves from slot to slot and changes its sides.

    The sides start at sqrt(mask_ratio) times the grid's. Their changes add up to nothing over the
    clip, but areas still differ, and a window of whole tokens rarely has the wanted area. So that
    every clip hides equally many, the dense mask moves the edges of all its rectangles by the same
    distance, at most about one token, until their tokens are as many as they must be.
    """

    mask_ratio: Ratio = Field(default=0.75, description="share of the tokens that is hidden")
    shape: Literal["dense", "sparse"] = Field(
        default="dense", description="a rectangle, or tokens drawn around its centre"
    )
    jitter: NonNegativeFloat = Field(
        default=1.0, description="deviation of the sides' change per slot, tokens; 0 = off"
    )
    spread: PositiveFloat = Field(
        default=0.5, description="sparse: deviation around the centre, as a share of the sides"
    )

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
        """Draw sides and path, then the tokens.

        Raises:
            ValueError: the mask needs a field of motion and `motion` holds none.
        """
        sides = self._sides(grid, rng)
        centres = self._path(grid, motion, image_size, sides, rng)
        if self.shape == "sparse":
            return self._draw_sparse(grid, centres, sides, rng)
        return self._draw_dense(grid, centres, sides, rng)

    @abstractmethod
    def _changes(self, count: int, rng: np.random.Generator) -> Floats:
        """How width and height change from slot to slot: (count, 2), before they are centred."""

    @abstractmethod
    def _path(
        self,
        grid: Grid,
        motion: ClipMotion | None,
        image_size: tuple[int, int],
        sides: Floats,
        rng: np.random.Generator,
    ) -> Floats:
        """Where the window's centre is in every slot: (slots, 2), the whole window on the grid."""

    def _sides(self, grid: Grid, rng: np.random.Generator) -> Floats:
        """Width and height in every slot: (slots, 2); their changes add up to zero (Eq. 5, 7)."""
        size = _size(grid)
        sides = np.tile(size * math.sqrt(self.mask_ratio), (grid.slots, 1))
        if grid.slots > 1:
            changes = self._changes(grid.slots - 1, rng)
            sides[1:] += np.cumsum(changes - changes.mean(axis=0), axis=0)
        return np.clip(sides, np.minimum(1.0, size), size)

    def _draw_dense(
        self, grid: Grid, centres: Floats, sides: Floats, rng: np.random.Generator
    ) -> BoolArray:
        """The tokens nearest to their slot's rectangle, by the distance from its edge."""
        away = np.abs(_token_centres(grid)[None] - centres[:, None]) - sides[:, None] / 2
        distance = np.round(away.max(axis=-1), _TIE).reshape(-1)
        order = np.lexsort((rng.random(grid.tokens), distance))
        return _chosen(order[: self.num_hidden(grid)], grid)

    def _draw_sparse(
        self, grid: Grid, centres: Floats, sides: Floats, rng: np.random.Generator
    ) -> BoolArray:
        """Equally many tokens of every slot, without replacement, by a Gaussian's density."""
        scaled = (_token_centres(grid)[None] - centres[:, None]) / (self.spread * sides[:, None])
        logits = -0.5 * (scaled**2).sum(axis=-1)
        # Adding Gumbel noise and taking the largest draws in proportion to exp(logits).
        keys = logits + rng.gumbel(size=logits.shape)
        per_slot = self.num_hidden(grid) // grid.slots
        order = np.argsort(-keys, axis=1)[:, :per_slot]
        return _chosen((order + np.arange(grid.slots)[:, None] * grid.positions).reshape(-1), grid)


class SMMMask(MovingMask):
    """Simulated motion: the window drifts at a random speed, motion is not read (MGM, 3.2, Eq. 5).

    The paper gives no distributions. Here the speed is uniform up to `max_speed` in any direction,
    with normal `noise` on every step; the window stops at the edges of the grid.
    """

    name: Literal["smm"] = "smm"
    max_speed: NonNegativeFloat = Field(default=1.0, description="tokens per slot")
    noise: NonNegativeFloat = Field(default=0.25, description="deviation of a step, tokens")

    def _changes(self, count: int, rng: np.random.Generator) -> Floats:
        """One change for both sides (Eq. 5)."""
        return np.repeat(rng.normal(0, self.jitter, (count, 1)), 2, axis=1)

    def _path(
        self,
        grid: Grid,
        motion: ClipMotion | None,
        image_size: tuple[int, int],
        sides: Floats,
        rng: np.random.Generator,
    ) -> Floats:
        """See `MovingMask._path`."""
        return _drift(grid, sides, self.max_speed, self.noise, rng)


class MGMMask(MovingMask):
    """The window follows the strongest motion (MGM, section 3.3, Eq. 6 and 7).

    The first slot's window is at random, as in the paper. A slot in which nothing moves keeps the
    centre of the one before; a clip in which nothing moves at all is masked as by simulated motion,
    and counted as `fallback`.
    """

    name: Literal["mgm"] = "mgm"
    guide: Literal["vectors", "flow", "vectors_or_flow"] = Field(
        default="vectors",
        description="the codec's motion vectors; stored optical flow; or flow for those videos "
        "whose codec gives no vectors",
    )
    first_slot: Literal["random", "motion"] = "random"
    topk: PositiveInt = Field(
        default=1, description="cells whose mean position is the centre of motion"
    )

    @property
    def needs(self) -> frozenset[str]:
        """Vectors or flow, by `guide`."""
        return frozenset(self.guide.split("_or_"))

    def _changes(self, count: int, rng: np.random.Generator) -> Floats:
        """Width and height change on their own (Eq. 7)."""
        return rng.normal(0, self.jitter, (count, 2))

    def _path(
        self,
        grid: Grid,
        motion: ClipMotion | None,
        image_size: tuple[int, int],
        sides: Floats,
        rng: np.random.Generator,
    ) -> Floats:
        """See `MovingMask._path`."""
        if motion is None or motion.field is None:
            raise ValueError("the mgm mask needs the clip's field of motion, got None")
        if motion.field.still:
            return _drift(grid, sides, SMMMask().max_speed, SMMMask().noise, rng)
        scale = _size(grid) / np.array([image_size[1], image_size[0]])
        free = _size(grid) - sides[0]
        centres = [sides[0] / 2 + rng.random(2) * free]
        for slot in range(grid.slots):
            peak = self._peak(motion.field, slot)
            if slot == 0 and self.first_slot == "motion" and peak is not None:
                centres[0] = peak * scale
            if slot > 0:
                centres.append(centres[-1] if peak is None else peak * scale)
        return _on_grid(np.stack(centres), sides, grid)

    def _peak(self, field: SlotField, slot: int) -> Floats | None:
        """Mean position of the `topk` cells that move most, in pixels; None where nothing moves."""
        magnitude = field.magnitude[slot]
        strongest = np.argsort(-magnitude, kind="stable")[: self.topk]
        strongest = strongest[magnitude[strongest] > 0]
        return None if len(strongest) == 0 else np.asarray(field.points[strongest].mean(axis=0))


def _drift(
    grid: Grid, sides: Floats, max_speed: float, noise: float, rng: np.random.Generator
) -> Floats:
    """A path from a random place at a random velocity: (slots, 2)."""
    centres = np.empty((grid.slots, 2))
    centres[0] = sides[0] / 2 + rng.random(2) * (_size(grid) - sides[0])
    angle, speed = rng.uniform(0, 2 * math.pi), rng.uniform(0, max_speed)
    velocity = speed * np.array([math.cos(angle), math.sin(angle)])
    for slot in range(1, grid.slots):
        step = velocity + rng.normal(0, noise, 2)
        centres[slot] = _on_grid(centres[slot - 1] + step, sides[slot], grid)
    return centres


def _on_grid(centres: Floats, sides: Floats, grid: Grid) -> Floats:
    """Centres (..., 2) moved so that their windows lie on the grid."""
    return np.clip(centres, sides / 2, _size(grid) - sides / 2)


def _size(grid: Grid) -> Floats:
    return np.array([grid.width, grid.height], dtype=np.float64)


def _token_centres(grid: Grid) -> Floats:
    """(positions, 2) x, y."""
    x, y = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def _chosen(tokens: npt.NDArray[np.intp], grid: Grid) -> BoolArray:
    mask = np.zeros(grid.tokens, dtype=np.bool_)
    mask[tokens] = True
    return mask.reshape(grid.slots, grid.positions)
