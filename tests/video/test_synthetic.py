from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kinema.errors import ConfigError
from kinema.video import synthetic
from kinema.video.manifest import SCHEMA
from kinema.video.synthetic import MOTIONS, SyntheticConfig, draw_clip, load_truth, make

SMALL = SyntheticConfig(num_train=9, num_validation=0, num_test=8)
TEXTURED = {"size": 96, "object_size": (20, 30), "background": "texture", "object": "texture"}


def decode(path: str) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[str, list[dict]]:
    root = str(tmp_path_factory.mktemp("known"))
    return root, pq.read_table(make(SMALL, root)).to_pylist()


def test_manifest_lists_balanced_splits(made) -> None:
    root, rows = made
    assert pq.read_table(f"{root}/manifest.parquet").schema.equals(SCHEMA)
    assert [row["split"] for row in rows] == ["train"] * 9 + ["test"] * 8
    assert sorted(row["label"] for row in rows if row["split"] == "test") == list(range(8))
    assert len({row["id"] for row in rows}) == 17
    assert {row["label_name"]: row["label"] for row in rows} == {
        name: label for label, name in enumerate(MOTIONS)
    }
    assert rows[0]["path"] == f"{root}/videos/train/right/train-000000.mp4"


def test_videos_are_h264_and_close_to_what_was_drawn(made) -> None:
    _, rows = made
    for row in rows[:4]:
        frames = decode(row["path"])
        drawn = draw_clip(SMALL, row["id"], row["label_name"]).frames
        assert frames.shape == drawn.shape == (8, 48, 48, 3)
        assert np.abs(frames.astype(float) - drawn).mean() < 6  # colour has half the resolution
        with av.open(row["path"]) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert container.streams.video[0].average_rate == SMALL.fps


def test_truth_is_that_of_the_drawing(made) -> None:
    root, rows = made
    truth = load_truth(root, "test", rows[-1]["id"])
    drawn = draw_clip(SMALL, rows[-1]["id"], rows[-1]["label_name"])
    np.testing.assert_array_equal(truth.boxes, drawn.boxes)
    np.testing.assert_array_equal(truth.masks, drawn.masks)
    np.testing.assert_array_equal(truth.camera, drawn.camera)
    assert truth.flow.dtype == np.float16
    assert np.abs(truth.flow - drawn.flow).max() < 0.002


def test_a_set_is_the_same_bytes_wherever_it_is_made(made, tmp_path: Path) -> None:
    _, rows = made
    again = pq.read_table(make(SMALL, str(tmp_path))).to_pylist()
    assert [row["digest"] for row in again] == [row["digest"] for row in rows]
    assert len({row["digest"] for row in rows}) == len(rows)


def test_a_finished_set_is_reused(made, monkeypatch) -> None:
    root, _ = made
    monkeypatch.setattr(synthetic, "draw_clip", None)
    assert make(SMALL, root) == f"{root}/manifest.parquet"


def test_an_interrupted_set_is_finished(tmp_path: Path, monkeypatch) -> None:
    root = str(tmp_path)
    rows = pq.read_table(make(SMALL, root)).to_pylist()
    Path(root, "manifest.parquet").unlink()
    Path(rows[3]["path"]).unlink()
    drawn = []

    def spy(config, clip_id, motion):
        drawn.append(clip_id)
        return draw_clip(config, clip_id, motion)

    monkeypatch.setattr(synthetic, "draw_clip", spy)
    assert pq.read_table(make(SMALL, root)).to_pylist() == rows
    assert drawn == [rows[3]["id"]]


def test_other_settings_in_the_same_folder_are_named(made) -> None:
    root, _ = made
    with pytest.raises(ConfigError, match="num_test: 8 there, 16 here") as error:
        make(SyntheticConfig(num_train=9, num_validation=0, num_test=16), root)
    assert root in str(error.value)
    assert "num_train" not in str(error.value)


def test_the_first_frame_does_not_depend_on_the_class() -> None:
    cfg = SyntheticConfig(camera_zoom=0.01, speed=(0.8, 2.0))
    for clip_id in ("a", "b", "c"):
        clips = [draw_clip(cfg, clip_id, motion) for motion in MOTIONS]
        firsts = [clip.frames[0] for clip in clips]
        assert all((first == firsts[0]).all() for first in firsts)
        assert all((clip.camera == clips[0].camera).all() for clip in clips)
        assert len({clip.frames[-1].tobytes() for clip in clips}) == len(MOTIONS)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10_000),
    st.sampled_from(list(MOTIONS)),
    st.sampled_from([0.0, 0.005, 0.01]),
    st.integers(4, 10),
)
def test_the_object_stays_in_view(index, motion, zoom, num_frames) -> None:
    cfg = SyntheticConfig(num_frames=num_frames, camera_zoom=zoom, speed=(0.5, 3.0))
    boxes = draw_clip(cfg, f"clip-{index}", motion).boxes
    assert boxes.min() >= -1e-6
    assert boxes.max() <= cfg.size + 1e-6


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from(list(MOTIONS)))
def test_class_speed_and_camera_are_within_the_settings(index, motion) -> None:
    cfg = SyntheticConfig()
    clip = draw_clip(cfg, f"clip-{index}", motion)
    background = clip.flow[0][~clip.masks[0]].mean(axis=0)
    assert np.linalg.norm(background) <= cfg.camera_pan + 1e-3
    relative = clip.flow[0][clip.masks[0]].mean(axis=0) - background
    speed = np.linalg.norm(relative)
    assert cfg.speed[0] - 1e-3 <= speed <= cfg.speed[1] + 1e-3
    assert relative / speed == pytest.approx(MOTIONS[motion], abs=1e-3)
    sides = clip.boxes[:, 2:] - clip.boxes[:, :2]
    assert 10 <= sides.min() <= sides.max() <= 14


def test_directions_are_eight_units_apart_by_45_degrees() -> None:
    angles = np.rad2deg([np.arctan2(y, x) for x, y in MOTIONS.values()]) % 360
    assert angles == pytest.approx(np.arange(8) * 45)
    assert np.linalg.norm(list(MOTIONS.values()), axis=1) == pytest.approx(np.ones(8))


def test_zoom_and_distractors_and_textures_are_drawn() -> None:
    cfg = SyntheticConfig(**TEXTURED, camera_zoom=0.05, num_distractors=3, camera_pan=0)
    clip = draw_clip(cfg, "a", "up")
    assert clip.camera[-1][0, 0] != pytest.approx(1, abs=1e-3)
    fewer = draw_clip(SyntheticConfig(**TEXTURED, num_distractors=0), "a", "up")
    assert clip.frames.std() > 20
    assert (clip.frames[0] != fewer.frames[0]).any()


def test_static_clips_have_no_motion_no_box_and_no_label(tmp_path: Path) -> None:
    cfg = SyntheticConfig(num_train=12, num_validation=0, num_test=0, static_share=0.5)
    rows = pq.read_table(make(cfg, str(tmp_path))).to_pylist()
    still = [row for row in rows if row["label"] is None]
    assert 2 <= len(still) <= 10
    truth = load_truth(str(tmp_path), "train", still[0]["id"])
    assert np.isnan(truth.boxes).all()
    assert truth.masks.any()
    assert np.abs(truth.flow).max() < 1e-3
    frames = decode(still[0]["path"]).astype(float)
    assert np.abs(frames - frames[0]).max() < 12


@pytest.mark.parametrize(
    ("settings_", "complaint"),
    [
        ({"speed": (3, 4)}, "at most 1.43 is possible"),
        ({"object_size": (14, 10)}, "object_size: 14.0..10.0 is no range"),
        ({"size": 49}, "multiple of 2"),
        ({"size": 226}, "less than or equal to 224"),
    ],
)
def test_impossible_settings_are_refused(settings_, complaint) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SyntheticConfig(**settings_)
