"""Pictures of clips: they show the boxes, masks and tracks they are given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from kinema.figures.clips import clip_figure
from kinema.models.targets import HOGTarget, PixelTarget
from kinema.models.trajectory import TrajectoryTarget
from kinema.models.vit import ViTConfig
from kinema.motion.clip import ClipBoxes, ClipMotion, SlotField
from kinema.training.batch import Sample

VIT = ViTConfig(embed_dim=16, depth=1, num_heads=2, image_size=32, num_frames=4, patch_size=8)


def sample(**more: object) -> Sample:
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 255, (3, 4, 32, 32), dtype=np.uint8)
    mask = np.zeros((2, 16), dtype=bool)
    mask[0, :5], mask[1, 3:8] = True, True
    return Sample("clip#0.0", 0, clip, mask.reshape(-1), **more)  # type: ignore[arg-type]


def pixels(axis) -> np.ndarray:
    return np.ma.filled(axis.images[-1].get_array().astype(float), np.nan)


def corners(box: Rectangle) -> list[float]:
    return [*box.get_xy(), *np.add(box.get_xy(), (box.get_width(), box.get_height()))]


def test_rows_are_frame_and_box_motion_visible_and_target() -> None:
    boxes = np.array([[4.0, 4.0, 20.0, 28.0], [8.0, 0.0, 16.0, 8.0]])
    points = np.stack(np.meshgrid(np.arange(4, 32, 8), np.arange(4, 32, 8)), -1).reshape(-1, 2)
    field = SlotField(points.astype(float), np.arange(32.0).reshape(2, 16))
    union = np.array([4.0, 0.0, 20.0, 28.0])
    seen = ClipMotion(ClipBoxes(union, boxes, False), field)
    given = sample(statistics={"inside_ratio": 0.25, "inside_share": 0.5, "clipped_share": 1.0})
    figure = clip_figure(given, seen, PixelTarget(), VIT)
    assert figure.get_suptitle() == (
        "clip#0.0\nhidden: 31.2%, inside the clip's box 25.0%; the box holds 50.0% of the tokens;"
        " the asked share does not fit"
    )
    axes = np.array(figure.axes).reshape(4, 2)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == [
        "frame, boxes", "motion to 31.0 px", "visible", "target: pixel",
    ]  # fmt: skip
    for slot in range(2):
        own, whole = [p for p in axes[0, slot].patches if isinstance(p, Rectangle)]
        (masked,) = [p for p in axes[2, slot].patches if isinstance(p, Rectangle)]
        styles = [box.get_linestyle() for box in (own, whole, masked)]
        assert styles == ["solid", "dashed", "dashed"]
        assert corners(own) == boxes[slot].tolist()
        assert corners(whole) == corners(masked) == union.tolist()
        np.testing.assert_array_equal(pixels(axes[1, slot]), field.magnitude[slot].reshape(4, 4))
        assert axes[1, slot].images[-1].get_clim() == (0, 31)
        assert axes[1, slot].images[-1].get_extent() == [0, 32, 32, 0]
        assert (axes[1, slot].get_xlim(), axes[1, slot].get_ylim()) == ((0, 32), (32, 0))
        frame = given.clip[:, 2 * slot].transpose(1, 2, 0)
        hidden = given.mask.reshape(2, 4, 4)[slot].repeat(8, 0).repeat(8, 1)
        np.testing.assert_array_equal(pixels(axes[2, slot])[~hidden], frame[~hidden])
        assert np.abs(pixels(axes[2, slot])[hidden] - 128).max() < 40
        target = pixels(axes[3, slot])
        assert (target[~hidden] == 1).all()
        assert np.corrcoef(target[hidden].ravel(), frame[hidden].ravel())[0, 1] > 0.9


def test_a_target_without_pixels_is_drawn_by_its_strength() -> None:
    given = sample()
    figure = clip_figure(given, ClipMotion(), HOGTarget(), VIT)
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == [
        "frame", "motion: none read", "visible", "target: hog",
    ]  # fmt: skip
    for slot in range(2):
        strength = pixels(figure.axes[6 + slot])
        np.testing.assert_array_equal(np.isnan(strength), ~given.mask.reshape(2, 4, 4)[slot])


def test_flow_is_drawn_where_the_mask_saw_no_field() -> None:
    calls = []

    def estimator(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        calls.append((first, last))
        return np.full((32, 32, 2), 3.0, np.float32)

    figure = clip_figure(sample(), ClipMotion(), PixelTarget(), VIT, estimator)
    assert len(calls) == 2
    assert [axis.get_ylabel() for axis in figure.axes[:4:2]] == ["frame", "motion to 4.2 px"]
    assert figure.get_suptitle() == "clip#0.0\nhidden: 31.2%"
    assert pixels(figure.axes[2])[0, 0] == pytest.approx(np.hypot(3, 3))
    assert not [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]


def test_tracks_of_hidden_tokens_that_count_are_lines() -> None:
    target = TrajectoryTarget(length=3, features=("position",))
    rng = np.random.default_rng(1)
    valid = rng.random((2, 64)) > 0.4
    motion = {
        "tracks/positions": rng.random((2, 64, 4, 2)).astype(np.float32) * 32,
        "tracks/displacements": rng.random((2, 64, 3, 2)).astype(np.float32),
        "tracks/valid": valid,
    }
    given = sample(motion=motion)
    figure = clip_figure(given, ClipMotion(), target, VIT)
    for slot in range(2):
        lines = [c for c in figure.axes[6 + slot].collections if isinstance(c, LineCollection)]
        hidden = given.mask.reshape(2, 16)[slot].repeat(4)
        assert len(lines[0].get_segments()) == (valid[slot] & hidden).sum()
