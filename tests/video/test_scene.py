from __future__ import annotations

import cv2
import numpy as np
import pytest

from kinema import geometry
from kinema.video import scene


def film(background: str, zoom: float = 0.01, pan=(0.6, -0.4), size: int = 96) -> scene.DrawnClip:
    rng = np.random.default_rng(3)
    side = size + 60.0
    corner = (-30.0, -30.0)
    if background == "smooth":
        backdrop = scene.smooth_texture(rng, corner, side, 10)
    else:
        backdrop = scene.fine_texture(rng, corner, side)
    away = np.array([128.0, 128.0, 128.0])
    still, moving = (scene.make_texture("texture", rng, 40, away) for _ in range(2))
    discs = (
        scene.Disc((25.0, 70.0), 12.0, (0.0, 0.0), still),
        scene.Disc((45.0, 45.0), 14.0, (1.5, 1.1), moving),
    )
    drawn = scene.Scene(backdrop, discs, scene.Camera(pan, zoom, size))
    return scene.draw(drawn, 6)


def warp_errors(clip: scene.DrawnClip) -> list[float]:
    """Mean grey-level error of each frame against its successor pulled back by the true flow."""
    size = clip.frames.shape[1]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    errors = []
    for t, flow in enumerate(clip.flow):
        u, v = x + flow[..., 0], y + flow[..., 1]
        pulled = cv2.remap(clip.frames[t + 1], u, v, cv2.INTER_CUBIC).astype(float)
        mask = clip.masks[t].astype(np.uint8)
        near = cv2.dilate(mask, np.ones((9, 9))) != cv2.erode(mask, np.ones((9, 9)))
        seen = (u > 2) & (v > 2) & (u < size - 3) & (v < size - 3) & ~near
        errors.append(float(np.abs(pulled - clip.frames[t])[seen].mean()))
    return errors


@pytest.mark.parametrize("background", ["smooth", "texture"])
@pytest.mark.parametrize("zoom", [0.0, 0.02, -0.02])
def test_true_flow_carries_each_frame_into_the_next(background: str, zoom: float) -> None:
    clip = film(background, zoom)
    assert max(warp_errors(clip)) < 1.5
    wrong = scene.DrawnClip(clip.frames, clip.boxes, clip.masks, clip.flow + 0.5, clip.camera)
    assert min(warp_errors(wrong)) > 1.3 * max(warp_errors(clip))


def test_flow_of_the_object_is_its_motion_minus_the_pan() -> None:
    clip = film("smooth", zoom=0.0)
    assert clip.flow[0][clip.masks[0]] == pytest.approx(
        np.array([[0.9, 1.5]]).repeat(clip.masks[0].sum(), axis=0), abs=1e-4
    )
    assert clip.flow[0][~clip.masks[0]].mean(axis=0) == pytest.approx([-0.6, 0.4], abs=1e-4)


def test_boxes_surround_the_masks() -> None:
    clip = film("texture")
    for box, mask in zip(clip.boxes, clip.masks, strict=True):
        rows, columns = np.nonzero(mask)
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(box - drawn).max() < 1
        assert geometry.area(box) * np.pi / 4 == pytest.approx(mask.sum(), rel=0.02)


def test_camera_takes_every_frame_to_the_first() -> None:
    clip = film("texture", zoom=0.02)
    first, last = clip.frames[0], clip.frames[-1]
    to_last = np.linalg.inv(clip.camera[-1])
    y, x = np.mgrid[40:60, 70:90] + 0.5
    at = np.stack([x, y, np.ones_like(x)], axis=-1) @ to_last.T
    u, v = (at[..., 0] - 0.5).astype(np.float32), (at[..., 1] - 0.5).astype(np.float32)
    error = np.abs(cv2.remap(last, u, v, cv2.INTER_CUBIC).astype(float) - first[40:60, 70:90])
    assert error.mean() < 2
    assert np.abs(last[40:60, 70:90].astype(float) - first[40:60, 70:90]).mean() > 10


def test_later_discs_cover_earlier_ones() -> None:
    rng = np.random.default_rng(0)
    red = scene.Texture(np.full((40, 40, 3), (255, 0, 0), np.float32), (-20, -20), 1)
    blue = scene.Texture(np.full((40, 40, 3), (0, 0, 255), np.float32), (-20, -20), 1)
    discs = tuple(scene.Disc((24.0, 24.0), 8.0, (0.0, 0.0), colour) for colour in (red, blue))
    camera = scene.Camera((0.0, 0.0), 0.0, 48)
    drawn = scene.Scene(scene.smooth_texture(rng, (0, 0), 48, 8), discs, camera)
    assert scene.draw(drawn, 2).frames[0, 24, 24].tolist() == [0, 0, 255]


def test_a_plain_object_can_be_told_from_what_is_behind_it() -> None:
    rng = np.random.default_rng(0)
    behind = np.array([120.0, 120.0, 120.0])
    colours = [scene.plain_texture(rng, (0, 0), 4, behind).pixels[0, 0] for _ in range(200)]
    assert np.linalg.norm(np.array(colours) - behind, axis=1).min() > 40
