"""Known-answer videos: classes told apart by motion alone, with exact boxes, masks and flow.

A disc moves over a background in one of eight directions, each a class, while the camera pans and
zooms and distractors lie still in the scene. Size, colours, textures, camera and the place where
the disc starts are drawn without knowing the class, so the first frame says nothing about it, and
under a moving camera only motion relative to the background does.

Every clip depends on the seed and its own id alone. `<root>` holds `synthetic.json` (the settings),
`manifest.parquet`, `boxes.parquet` (true boxes as annotations),
`videos/<split>/<class>/<id>.mp4` (H.264) and `truth/<split>/<id>.npz`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from kinema import storage
from kinema.config import Config, fingerprint
from kinema.errors import ConfigError, StorageError
from kinema.randomness import keyed_rng
from kinema.video import manifest, scene
from kinema.video.encode import encode

# Raise by hand when unchanged settings give other clips, drawn or encoded.
SYNTHETIC_VERSION = 2
MANIFEST_FILE = "manifest.parquet"

DIAGONAL = math.sqrt(0.5)
MOTIONS: dict[str, tuple[float, float]] = {
    "right": (1.0, 0.0),
    "down_right": (DIAGONAL, DIAGONAL),
    "down": (0.0, 1.0),
    "down_left": (-DIAGONAL, DIAGONAL),
    "left": (-1.0, 0.0),
    "up_left": (-DIAGONAL, -DIAGONAL),
    "up": (0.0, -1.0),
    "up_right": (DIAGONAL, -DIAGONAL),
}
"""Class name -> direction in the world, x to the right and y down. The label is the position."""

STATIC = "static"
Split = Literal["train", "validation", "test"]


class SyntheticConfig(Config):
    """The known-answer set. The defaults can be learned in minutes on a few cores."""

    num_train: int = Field(1024, ge=0)
    num_validation: int = Field(128, ge=0)
    num_test: int = Field(256, ge=0)
    size: int = Field(48, ge=48, le=224, multiple_of=2, description="side of the frames, px")
    num_frames: int = Field(8, ge=2)
    fps: int = Field(12, ge=1)
    object_size: tuple[float, float] = Field((10, 14), description="range of the diameter, px")
    speed: tuple[float, float] = Field((1.2, 2.0), description="range in the scene, px per frame")
    camera_pan: float = Field(1.0, ge=0, description="largest camera motion, px per frame")
    camera_zoom: float = Field(0.0, ge=0, lt=0.1, description="largest growth per frame, a share")
    num_distractors: int = Field(1, ge=0)
    background: Literal["smooth", "texture"] = "smooth"
    background_sigma: tuple[float, float] = Field(
        (8, 14), description="blur of a smooth background, px"
    )
    background_level: tuple[float, float] = Field(
        (90, 165), description="range of a smooth background's mean; dark ones set objects off"
    )
    background_contrast: float = Field(
        1.0, gt=0, le=3, description="contrast of a smooth background; 1 = a deviation of 35 of 255"
    )
    object: Literal["plain", "texture"] = "plain"
    static_share: float = Field(
        0.0, ge=0, le=1, description="share of clips in which nothing moves; they have no label"
    )
    crf: int = Field(12, ge=0, le=51, description="H.264 quality, 0 is lossless")
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("object_size", "speed", "background_sigma", "background_level"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: {low}..{high} is no range above 0")
        fastest = _fastest(self, self.object_size[1] / 2, self.camera_pan, self.camera_zoom)
        if fastest < self.speed[0]:
            raise ValueError(
                f"speed: at {self.speed[0]} px per frame the largest object leaves the frame "
                f"within {self.num_frames} frames; at most {fastest:.2f} is possible: lower speed, "
                "object_size, camera_pan, camera_zoom or num_frames, or raise size"
            )
        return self


@dataclass(frozen=True)
class Truth:
    """What is known about one clip. Boxes are NaN in a clip in which nothing moves.

    Attributes:
        boxes: (T, 4) float64 xyxy of the moving object, half-open pixels.
        masks: (T, H, W) bool, the object, moving or not.
        flow: (T - 1, H, W, 2) float16, px to the next frame.
        camera: (T, 3, 3) float64, pixels of each frame -> pixels of frame 0.
    """

    boxes: npt.NDArray[np.float64]
    masks: npt.NDArray[np.bool_]
    flow: npt.NDArray[np.float16]
    camera: npt.NDArray[np.float64]


def make(config: SyntheticConfig, root: str) -> str:
    """Write the set under `root`, or finish or reuse the one there, and return its manifest's URI.

    Raises:
        ConfigError: `root` holds a set made with other settings.
        StorageError: `root` cannot be written, or holds a damaged description.
    """
    root = storage.absolute(root)  # the manifest must be readable from any folder
    manifest_uri = storage.join(root, MANIFEST_FILE)
    _claim(config, root)
    boxes_uri = storage.join(root, "boxes.parquet")
    if storage.exists(manifest_uri) and storage.exists(boxes_uri):
        return manifest_uri
    rows = [_write_clip(config, root, split, index) for split, index in _clips(config)]
    storage.write_table(boxes_uri, _box_table(root, rows))
    storage.write_table(manifest_uri, pa.Table.from_pylist(rows, schema=manifest.SCHEMA))
    return manifest_uri


def load_truth(root: str, split: str, clip_id: str) -> Truth:
    """The truth of one clip of a set made under `root`."""
    with storage.open_input(_truth_uri(root, split, clip_id)) as file, np.load(file) as arrays:
        shape = tuple(int(length) for length in arrays["mask_shape"])
        masks = np.unpackbits(arrays["masks"], count=math.prod(shape)).reshape(shape)
        return Truth(arrays["boxes"], masks.astype(np.bool_), arrays["flow"], arrays["camera"])


def draw_clip(config: SyntheticConfig, clip_id: str, motion: str) -> scene.DrawnClip:
    """The frames and truth of one clip before it is encoded.

    Args:
        config: of the set.
        clip_id: everything but the direction is drawn from the seed and this.
        motion: a key of `MOTIONS`, or `static`.
    """
    rng = keyed_rng(config.seed, "synthetic", clip_id)
    radius = rng.uniform(*config.object_size) / 2
    pan = rng.uniform(0, config.camera_pan) * _direction(rng)
    zoom = rng.uniform(-config.camera_zoom, config.camera_zoom)
    fastest = _fastest(config, radius, float(np.abs(pan).max()), zoom)
    speed = rng.uniform(config.speed[0], min(config.speed[1], fastest))
    start = config.size / 2 + rng.uniform(-1, 1, 2) * _room(config, radius, speed, pan, zoom)
    background = _background(config, rng)
    colour = background.pixels.mean(axis=(0, 1)).astype(np.float64)
    textures = [
        scene.make_texture(config.object, rng, config.object_size[1] + 4, colour)
        for _ in range(config.num_distractors + 1)
    ]
    distractors = [_distractor(config, rng, texture) for texture in textures[1:]]
    still = motion == STATIC
    direction = (0.0, 0.0) if still else MOTIONS[motion]
    moving = scene.Disc(
        (float(start[0]), float(start[1])),
        radius,
        (speed * direction[0], speed * direction[1]),
        textures[0],
    )
    camera_pan = (0.0, 0.0) if still else (float(pan[0]), float(pan[1]))
    camera = scene.Camera(camera_pan, 0.0 if still else zoom, config.size)
    drawn = scene.Scene(background, (*distractors, moving), camera)
    return scene.draw(drawn, config.num_frames)


def _scales(config: SyntheticConfig, zoom: float) -> npt.NDArray[np.float64]:
    """World px per frame px of every frame."""
    return np.asarray(np.exp(-zoom * np.arange(config.num_frames)))


def _fastest(config: SyntheticConfig, radius: float, pan: float, zoom: float) -> float:
    """The highest speed at which a disc that starts in the middle stays in view, px per frame.

    Args:
        config: size and number of frames.
        radius: of the disc, px.
        pan: the camera's motion along the worse axis, px per frame.
        zoom: growth per frame.
    """
    reach = (config.size / 2 * _scales(config, zoom) - radius)[1:]
    return float((reach / np.arange(1, config.num_frames)).min()) - pan


def _room(
    config: SyntheticConfig,
    radius: float,
    speed: float,
    pan: npt.NDArray[np.float64],
    zoom: float,
) -> npt.NDArray[np.float64]:
    """How far from the middle, (2,) px, a disc may start and stay in view in every direction.

    The range is the same for every class: were it not, the first frame would tell the class.
    """
    frames = np.arange(config.num_frames)[:, None]
    reach = (config.size / 2 * _scales(config, zoom) - radius)[:, None]
    return np.asarray(np.maximum((reach - (speed + np.abs(pan)) * frames).min(axis=0), 0.0))


def _direction(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    angle = rng.uniform(0, 2 * math.pi)
    return np.array([math.cos(angle), math.sin(angle)])


def _background(config: SyntheticConfig, rng: np.random.Generator) -> scene.Texture:
    """A picture that covers what any camera of this set can see."""
    widest = config.size * math.exp(config.camera_zoom * (config.num_frames - 1))
    side = widest + 2 * config.camera_pan * (config.num_frames - 1) + 4
    corner = ((config.size - side) / 2,) * 2
    if config.background == "smooth":
        sigma = rng.uniform(*config.background_sigma)
        return scene.smooth_texture(
            rng, corner, side, sigma, config.background_level, config.background_contrast
        )
    return scene.fine_texture(rng, corner, side)


def _distractor(
    config: SyntheticConfig, rng: np.random.Generator, texture: scene.Texture
) -> scene.Disc:
    radius = rng.uniform(*config.object_size) / 2
    x, y = rng.uniform(radius, config.size - radius, 2)
    return scene.Disc((x, y), radius, (0.0, 0.0), texture)


def _clips(config: SyntheticConfig) -> Iterator[tuple[Split, int]]:
    counts: dict[Split, int] = {
        "train": config.num_train,
        "validation": config.num_validation,
        "test": config.num_test,
    }
    return ((split, index) for split, count in counts.items() for index in range(count))


def _motion(config: SyntheticConfig, split: str, index: int) -> str:
    """Classes in turn, so that every split is balanced; static clips are drawn among them."""
    still = keyed_rng(config.seed, "synthetic", split, index, STATIC).random()
    return STATIC if still < config.static_share else list(MOTIONS)[index % len(MOTIONS)]


def _write_clip(config: SyntheticConfig, root: str, split: Split, index: int) -> dict[str, Any]:
    """Write one clip unless it is there, and return its manifest row."""
    clip_id = f"{split}-{index:06d}"
    motion = _motion(config, split, index)
    path = storage.join(root, "videos", split, motion, f"{clip_id}.mp4")
    truth = _truth_uri(root, split, clip_id)
    if not (storage.exists(path) and storage.exists(truth)):
        drawn = draw_clip(config, clip_id, motion)
        storage.write_bytes(truth, _pack(drawn, moving=motion != STATIC))
        storage.write_bytes(path, encode(drawn.frames, config.fps, config.crf))
    return {
        "id": clip_id,
        "path": path,
        "split": split,
        "label": None if motion == STATIC else list(MOTIONS).index(motion),
        "label_name": None if motion == STATIC else motion,
        "width": config.size,
        "height": config.size,
        "num_frames": config.num_frames,
        "fps": float(config.fps),
        "codec": "h264",
        "digest": storage.content_digest(path),
    }


def _box_table(root: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The true boxes of all clips in the form of `motion.annotated`."""
    names = ("id", "frame", "left", "top", "right", "bottom")
    truths = ((row["id"], load_truth(root, row["split"], row["id"]).boxes) for row in rows)
    found = [
        (id, frame, *(float(edge) for edge in box))
        for id, boxes in truths
        for frame, box in enumerate(boxes)
        if not np.isnan(box).any()
    ]
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in found])


def _truth_uri(root: str, split: str, clip_id: str) -> str:
    return storage.join(root, "truth", split, f"{clip_id}.npz")


def _pack(drawn: scene.DrawnClip, moving: bool) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(
        file,
        boxes=drawn.boxes if moving else np.full_like(drawn.boxes, np.nan),
        masks=np.packbits(drawn.masks),
        mask_shape=np.array(drawn.masks.shape),
        flow=drawn.flow.astype(np.float16),
        camera=drawn.camera,
    )
    return file.getvalue()


def _claim(config: SyntheticConfig, root: str) -> None:
    """Write the set's description, or check that the one there is ours."""
    uri = storage.join(root, "synthetic.json")
    ours = {
        "fingerprint": fingerprint(config, SYNTHETIC_VERSION),
        "version": SYNTHETIC_VERSION,
        "settings": config.model_dump(mode="json"),
    }
    if not storage.exists(uri):
        storage.write_json(uri, ours)
        return
    theirs = storage.read_json(uri)
    if not isinstance(theirs, dict) or ours.keys() - theirs.keys():
        raise StorageError(f"{uri}: not the description of a known-answer set; remove {root}")
    if theirs["fingerprint"] != ours["fingerprint"]:
        raise ConfigError(_changes(theirs, ours), f"{root} holds another known-answer set")


def _changes(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """One line per setting that differs, and what to do."""
    there, here = theirs["settings"], ours["settings"]
    lines = [
        f"{key}: {there[key]} there, {here[key]} here"
        for key in here
        if key in there and there[key] != here[key]
    ]
    if theirs["version"] != ours["version"]:
        lines.append(f"version: {theirs['version']} there, {ours['version']} here")
    return [*lines, "choose another folder, or remove this one to make the set again"]
