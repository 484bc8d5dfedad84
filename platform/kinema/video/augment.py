"""Spatial augmentation: every crop, flip and geometric operation is one `Transform`, so that boxes,
fields and tracks follow the pixels; colours change alike in all frames of a clip."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps
from pydantic import Field, NonNegativeInt, PositiveFloat

from kinema.config import Config
from kinema.geometry import Size, Transform

Frames = npt.NDArray[np.uint8]
Recolour = Callable[[Frames], Frames]
Probability = Annotated[float, Field(ge=0, le=1)]

MAX_LEVEL = 10
"""RandAugment's scale of magnitudes."""


class RandAugment(Config):
    """`num_ops` random operations per clip (timm's `rand-m7-n4-mstd0.5-inc1`, VideoMAE's recipe).

    Geometric operations are composed into the transform and so happen before the colour ones.
    """

    num_ops: NonNegativeInt = 4
    magnitude: float = Field(default=7, ge=0, le=MAX_LEVEL)
    magnitude_std: float = Field(default=0.5, ge=0)
    probability: Probability = Field(default=0.5, description="of each chosen operation")

    def draw(self, transform: Transform, rng: np.random.Generator) -> tuple[Transform, Recolour]:
        """Draw the operations; returns the longer transform and the change of colours."""
        colours: list[Callable[[Image.Image], Image.Image]] = []
        names = [*_GEOMETRIC, *_COLOUR]
        for choice in rng.integers(0, len(names), self.num_ops):
            level = float(np.clip(rng.normal(self.magnitude, self.magnitude_std), 0, MAX_LEVEL))
            sign, apply = (1.0 if rng.random() < 0.5 else -1.0), rng.random() < self.probability
            if not apply:
                continue
            name, strength = names[choice], level / MAX_LEVEL
            if name in _GEOMETRIC:
                transform = _GEOMETRIC[name](transform, sign * strength)
            else:
                colours.append(_COLOUR[name](strength, sign))
        return transform, _recolour(colours)


_GEOMETRIC: dict[str, Callable[[Transform, float], Transform]] = {
    "rotate": lambda t, s: t.rotate(30 * s),
    "shear_x": lambda t, s: t.shear(x=0.3 * s),
    "shear_y": lambda t, s: t.shear(y=0.3 * s),
    "translate_x": lambda t, s: t.translate(0.45 * s * t.size[1], 0),
    "translate_y": lambda t, s: t.translate(0, 0.45 * s * t.size[0]),
}
"""Operation by name: a transform and a signed strength in [-1, 1] -> a longer transform."""


def _enhance(
    kind: Callable[[Image.Image], ImageEnhance._Enhance],
) -> Callable[[float, float], Callable[[Image.Image], Image.Image]]:
    return lambda strength, sign: (
        lambda image: kind(image).enhance(max(0.1, 1 + 0.9 * sign * strength))
    )


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
    return image.point([min(255, i + amount) if i < 128 else i for i in range(256)] * 3)


_COLOUR: dict[str, Callable[[float, float], Callable[[Image.Image], Image.Image]]] = {
    "auto_contrast": lambda strength, sign: ImageOps.autocontrast,
    "equalize": lambda strength, sign: ImageOps.equalize,
    "invert": lambda strength, sign: ImageOps.invert,
    "posterize": lambda strength, sign: (
        lambda image: ImageOps.posterize(image, 4 - min(3, int(4 * strength)))
    ),
    "solarize": lambda strength, sign: (
        lambda image: ImageOps.solarize(image, 256 - int(256 * strength))
    ),
    "solarize_add": lambda strength, sign: lambda image: _solarize_add(image, int(110 * strength)),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
}
"""Operation by name: strength in [0, 1] and a sign -> a function of an RGB image."""


def _recolour(operations: list[Callable[[Image.Image], Image.Image]]) -> Recolour:
    def apply(frames: Frames) -> Frames:
        if not operations:
            return frames
        # One tall picture, so that operations that look at the whole image treat frames alike.
        count, height, width, _ = frames.shape
        image = Image.fromarray(frames.reshape(count * height, width, 3))
        for operation in operations:
            image = operation(image)
        return np.asarray(image).reshape(count, height, width, 3)

    return apply


class SpatialAugment(Config):
    """What every augmentation has: a random mirror image, off unless asked for."""

    flip_probability: Probability = Field(
        default=0.0, description="of a horizontal mirror image; keep 0 where left and right matter"
    )

    @abstractmethod
    def crop(self, size: Size, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """A crop x0, y0, x1, y1 in whole source pixels of a frame of `size` (H, W)."""

    def draw(
        self, source_size: Size, output_size: Size, rng: np.random.Generator
    ) -> tuple[Transform, Recolour | None]:
        """Draw the transform of one clip, and how its colours change."""
        transform = Transform.identity(source_size).crop(self.crop(source_size, rng))
        transform = transform.resize(output_size)
        if rng.random() < self.flip_probability:
            transform = transform.hflip()
        return transform, None


class MultiScaleCrop(SpatialAugment):
    """Crop of a random scale at one of 13 fixed places (TSN; VideoMAE's pretraining)."""

    name: Literal["multi_scale_crop"] = "multi_scale_crop"
    scales: tuple[PositiveFloat, ...] = (1.0, 0.875, 0.75, 0.66)
    max_distort: NonNegativeInt = Field(
        default=1, description="steps by which the scales of height and width may differ"
    )

    def crop(self, size: Size, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """See `SpatialAugment.crop`."""
        height, width = size
        sides = [max(1, int(min(height, width) * scale)) for scale in self.scales]
        pairs = [
            (h, w)
            for i, h in enumerate(sides)
            for j, w in enumerate(sides)
            if abs(i - j) <= self.max_distort
        ]
        h, w = pairs[rng.integers(len(pairs))]
        quarter_x, quarter_y = (width - w) // 4, (height - h) // 4
        steps = [(x, y) for x in (0, 2, 4) for y in (0, 2, 4)] + [(1, 1), (3, 1), (1, 3), (3, 3)]
        x, y = steps[rng.integers(len(steps))]
        left, top = min(x * quarter_x, width - w), min(y * quarter_y, height - h)
        return (left, top, left + w, top + h)


class RandomResizedCrop(SpatialAugment):
    """Crop of random area and aspect, then RandAugment (VideoMAE's finetuning)."""

    name: Literal["random_resized_crop"] = "random_resized_crop"
    scale: tuple[Probability, Probability] = (0.08, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    rand_augment: RandAugment = RandAugment()

    def crop(self, size: Size, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """See `SpatialAugment.crop`; after ten misses the largest central crop that is allowed."""
        height, width = size
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = np.exp(rng.uniform(np.log(self.ratio[0]), np.log(self.ratio[1])))
            w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                return (left, top, left + w, top + h)
        aspect = float(np.clip(width / height, *self.ratio))
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - w) // 2, (height - h) // 2
        return (left, top, left + w, top + h)

    def draw(
        self, source_size: Size, output_size: Size, rng: np.random.Generator
    ) -> tuple[Transform, Recolour | None]:
        """Crop and mirror, then RandAugment's operations."""
        transform, _ = super().draw(source_size, output_size, rng)
        return self.rand_augment.draw(transform, rng)


class CentreCrop(SpatialAugment):
    """The central square, as in evaluation; for small studies and controls."""

    name: Literal["centre_crop"] = "centre_crop"

    def crop(self, size: Size, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """See `SpatialAugment.crop`; nothing is drawn."""
        return _square(size, 0.5)


Augment = Annotated[MultiScaleCrop | RandomResizedCrop | CentreCrop, Field(discriminator="name")]
"""Every spatial augmentation there is, told apart by `name`."""


def sample_transform(
    config: MultiScaleCrop | RandomResizedCrop | CentreCrop,
    source_size: Size,
    output_size: Size,
    rng: np.random.Generator,
) -> tuple[Transform, Recolour | None]:
    """Draw the augmentation of one clip.

    Args:
        config: which.
        source_size: (H, W) of the decoded frames.
        output_size: (h, w) of the network's input.
        rng: where all randomness comes from.

    Returns:
        The transform, and a function of frames (T, h, w, 3) uint8 that changes colours, or None.
    """
    return config.draw(source_size, output_size, rng)


def evaluation_transform(
    source_size: Size, output_size: Size, crop_index: int = 0, num_crops: int = 1
) -> Transform:
    """Square crop `crop_index` of `num_crops`, evenly spread along the longer side.

    One crop is the central one. Equal to resizing the short side first (VideoMAE), with one
    resampling instead of two.
    """
    place = 0.5 if num_crops == 1 else crop_index / (num_crops - 1)
    return Transform.identity(source_size).crop(_square(source_size, place)).resize(output_size)


def _square(size: Size, place: float) -> tuple[float, float, float, float]:
    """The largest square of a frame, at `place` in [0, 1] along the longer side."""
    height, width = size
    side = min(height, width)
    left, top = int((width - side) * place), int((height - side) * place)
    return (left, top, left + side, top + side)
