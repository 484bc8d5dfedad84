"""One drawn clip with its exact truth: a disc that moves over a background seen by a camera.

Every frame is drawn by inverse warping: a frame's pixel centre is taken through the camera's
similarity to the world, where textures are sampled. So boxes, masks and flow are known without
error. World coordinates are the pixels of frame 0; pixel i covers [i, i + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

TEXTURE_SIGMAS = (1.0, 2.5, 6.0)
"""World pixels. Nothing finer than the pixel grid can carry, so frames warp into each other."""
TEXTURE_RESOLUTION = 2


@dataclass(frozen=True)
class Texture:
    """A picture in the plane: `pixels` (h, w, 3) float32 from `corner`, `resolution` per px."""

    pixels: Image
    corner: tuple[float, float]
    resolution: int

    def sample(self, points: Floats) -> Image:
        """Colours (H, W, 3) at `points` (H, W, 2); mirrored beyond the picture's edges."""
        at = (points - np.array(self.corner)) * self.resolution - 0.5
        at = at.astype(np.float32)
        colours = cv2.remap(
            self.pixels, at[..., 0], at[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
        )
        return np.asarray(colours, dtype=np.float32)


@dataclass(frozen=True)
class Camera:
    """Constant pan in world px per frame and constant zoom (share of growth per frame)."""

    pan: tuple[float, float]
    zoom: float
    size: int

    def matrix(self, frame: int) -> Floats:
        """(3, 3) similarity from pixels of `frame` to world coordinates."""
        scale = float(np.exp(-self.zoom * frame))
        shift = self.size / 2 * (1 - scale) + np.array(self.pan) * frame
        return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]])


@dataclass(frozen=True)
class Disc:
    """A disc in the world: centre and radius in px at frame 0, colours in its own coordinates."""

    centre: tuple[float, float]
    radius: float
    velocity: tuple[float, float]
    texture: Texture

    def centre_at(self, frame: int) -> Floats:
        """World coordinates (2,) of the centre."""
        return np.asarray(np.array(self.centre) + np.array(self.velocity) * frame)


@dataclass(frozen=True)
class Scene:
    """What is filmed. Later discs cover earlier ones; the last one is the object."""

    background: Texture
    discs: tuple[Disc, ...]
    camera: Camera


@dataclass(frozen=True)
class DrawnClip:
    """A clip and its truth.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        boxes: (T, 4) float64 xyxy of the object, half-open pixels.
        masks: (T, H, W) bool, pixels whose centre the object covers.
        flow: (T - 1, H, W, 2) float32, displacement in px of every pixel to the next frame.
        camera: (T, 3, 3) float64, pixels of each frame -> pixels of frame 0 of a fixed scene.
    """

    frames: npt.NDArray[np.uint8]
    boxes: Floats
    masks: npt.NDArray[np.bool_]
    flow: npt.NDArray[np.float32]
    camera: Floats


def draw(scene: Scene, num_frames: int) -> DrawnClip:
    """Draw `num_frames` frames of a scene."""
    drawn = [_draw_frame(scene, frame) for frame in range(num_frames)]
    masks = np.stack([mask for _, mask in drawn])
    return DrawnClip(
        frames=np.stack([image for image, _ in drawn]),
        boxes=np.stack([_box(scene, frame) for frame in range(num_frames)]),
        masks=masks,
        flow=np.stack([_flow(scene, frame, masks[frame]) for frame in range(num_frames - 1)]),
        camera=np.stack([scene.camera.matrix(frame) for frame in range(num_frames)]),
    )


def smooth_texture(
    rng: np.random.Generator,
    corner: tuple[float, float],
    side: float,
    sigma: float,
    level: tuple[float, float] = (90, 165),
    contrast: float = 1.0,
) -> Texture:
    """Colour noise blurred with a Gaussian of `sigma` px, square of `side` px.

    Each channel's mean is drawn from the range `level`; a `contrast` of 1 is a deviation of 35.
    """
    count = int(np.ceil(side))
    noise, mean = _noise(rng, count, sigma), rng.uniform(*level, 3)
    pixels = _contrast(noise, mean, deviation=35.0 * contrast)
    return Texture(pixels, corner, 1)


def fine_texture(rng: np.random.Generator, corner: tuple[float, float], side: float) -> Texture:
    """Colour noise with detail at every scale of `TEXTURE_SIGMAS`, square of `side` px."""
    count = int(np.ceil(side)) * TEXTURE_RESOLUTION
    layers = [_noise(rng, count, sigma * TEXTURE_RESOLUTION) for sigma in TEXTURE_SIGMAS]
    pixels = _contrast(np.sum(layers, axis=0), mean=rng.uniform(70, 185, 3), deviation=40.0)
    return Texture(pixels, corner, TEXTURE_RESOLUTION)


def plain_texture(
    rng: np.random.Generator, corner: tuple[float, float], side: float, apart_from: Floats
) -> Texture:
    """One colour: of a few drawn ones the farthest from `apart_from`, so that it can be seen."""
    colours = rng.uniform(0, 255, (4, 3))
    colour = colours[np.linalg.norm(colours - apart_from, axis=1).argmax()]
    count = int(np.ceil(side))
    return Texture(np.full((count, count, 3), colour, dtype=np.float32), corner, 1)


def make_texture(
    kind: Literal["plain", "texture"],
    rng: np.random.Generator,
    side: float,
    apart_from: Floats,
) -> Texture:
    """An object's colours around its own centre."""
    corner = (-side / 2, -side / 2)
    if kind == "plain":
        return plain_texture(rng, corner, side, apart_from)
    return fine_texture(rng, corner, side)


def _noise(rng: np.random.Generator, count: int, sigma: float) -> Image:
    """(count, count, 3) float32, zero mean and unit deviation per channel."""
    noise = rng.standard_normal((count, count, 3), dtype=np.float32)
    blurred = np.asarray(cv2.GaussianBlur(noise, (0, 0), sigma, borderType=cv2.BORDER_REFLECT))
    centred = blurred - blurred.mean(axis=(0, 1))
    return np.asarray(centred / np.maximum(centred.std(axis=(0, 1)), 1e-6), dtype=np.float32)


def _contrast(noise: Image, mean: Floats, deviation: float) -> Image:
    scaled = noise / max(float(noise.std()), 1e-6) * deviation + mean
    return np.clip(scaled, 0, 255).astype(np.float32)


def _pixel_centres(size: int) -> Floats:
    centres = np.arange(size) + 0.5
    return np.stack(np.meshgrid(centres, centres), axis=-1)


def _to_world(scene: Scene, frame: int) -> Floats:
    """World coordinates (H, W, 2) of every pixel centre of a frame."""
    matrix = scene.camera.matrix(frame)
    return _pixel_centres(scene.camera.size) @ matrix[:2, :2].T + matrix[:2, 2]


def _draw_frame(scene: Scene, frame: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """The picture and the mask of its last disc."""
    points = _to_world(scene, frame)
    scale = scene.camera.matrix(frame)[0, 0]
    image = scene.background.sample(points)
    mask = np.zeros(points.shape[:2], dtype=np.bool_)
    for disc in scene.discs:
        local = points - disc.centre_at(frame)
        inside = (disc.radius - np.linalg.norm(local, axis=-1)) / scale  # frame px, > 0 inside
        cover = np.clip(inside + 0.5, 0, 1).astype(np.float32)[..., None]
        image = image * (1 - cover) + disc.texture.sample(local) * cover
        mask = inside > 0
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask


def _box(scene: Scene, frame: int) -> Floats:
    disc, matrix = scene.discs[-1], scene.camera.matrix(frame)
    centre = (disc.centre_at(frame) - matrix[:2, 2]) / matrix[0, 0]
    radius = disc.radius / matrix[0, 0]
    return np.concatenate([centre - radius, centre + radius])


def _flow(scene: Scene, frame: int, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """World points move with what covers them; the next camera says where they are seen."""
    moved = _to_world(scene, frame) + np.where(mask[..., None], scene.discs[-1].velocity, 0.0)
    following = scene.camera.matrix(frame + 1)
    seen = (moved - following[:2, 2]) / following[0, 0]
    return np.asarray(seen - _pixel_centres(scene.camera.size), dtype=np.float32)
