"""Dense flow: what is kept of it, and what a reader gets back from Parquet."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.errors import StoreError
from kinema.motion.extractor import FrameBoxes, MotionConfig, extract_motion
from kinema.motion.field_store import FRAMES_PER_GROUP
from kinema.motion.fields import UNITS, FieldCollector, FieldConfig, FlowRun, StoredFields
from kinema.motion.flow import DIS, Flow, Grey
from kinema.motion.parts import MotionRow, row_digest
from kinema.motion.store import MotionStore
from kinema.video.synthetic import SyntheticConfig, draw_clip

CONFIG = MotionConfig(flow=DIS(), fields=FieldConfig())


class KnownFlow:
    """An estimator that knows: frames hold their number, the flow is a function of both."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.pairs = flow, []

    def __call__(self, prev: Grey, following: Grey) -> Flow:
        self.pairs.append((int(prev[0, 0]), int(following[0, 0])))
        return self.flow


def collected(flow: Flow, cfg: FieldConfig, num_frames: int = 3) -> StoredFields:
    collector = FieldCollector(cfg, KnownFlow(flow))
    for number in range(num_frames):
        collector.add(np.full(flow.shape[:2], number, np.uint8))
    found = collector.collected((1.0, 1.0), flow.shape[:2])
    assert found is not None
    return found


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), cell=st.sampled_from([1, 2, 4, 8]))
def test_cells_hold_the_mean_flow_within_half_a_unit(seed: int, cell: int) -> None:
    flow = np.random.default_rng(seed).normal(0, 3, (32, 48, 2)).astype(np.float32)
    cfg = FieldConfig(cell=cell, median=False, stabilise=False)
    run = collected(flow, cfg).decode()
    expected = flow.reshape(32 // cell, cell, 48 // cell, cell, 2).mean(axis=(1, 3))
    assert run.cell == (cell, cell)
    np.testing.assert_allclose(run.flow[0], expected, atol=0.5 / UNITS + 1e-4)


def test_components_beyond_the_limit_are_cut_and_counted() -> None:
    flow = np.zeros((16, 16, 2), np.float32)
    flow[:4, :, 0], flow[4:6, :, 1] = 25.0, -21.0
    fields = collected(flow, FieldConfig(cell=1, median=False, stabilise=False))
    assert fields.clipped == pytest.approx([6 / 16] * 2)
    assert fields.decode().flow[0].max() == 20
    assert fields.decode().flow[0].min() == -20


def test_the_median_removes_single_outliers() -> None:
    flow = np.ones((16, 16, 2), np.float32)
    flow[8, 8] = 15.0
    kept, dropped = (
        collected(flow, FieldConfig(cell=1, median=median, stabilise=False)).decode().flow[0]
        for median in (False, True)
    )
    assert kept[8, 8, 0] == 15
    assert (dropped == 1).all()


@pytest.mark.parametrize("stride", [1, 3])
def test_every_frame_starts_a_field_that_ends_stride_frames_later(stride: int) -> None:
    estimate = KnownFlow(np.zeros((8, 8, 2), np.float32))
    collector = FieldCollector(FieldConfig(stride=stride, stabilise=False), estimate)
    for number in range(7):
        collector.add(np.full((8, 8), number, np.uint8))
    assert estimate.pairs == [(i, i + stride) for i in range(7 - stride)]
    fields = collector.collected((1.0, 1.0), (8, 8))
    assert fields is not None
    assert fields.frames.tolist() == list(range(7 - stride))


def test_flow_with_the_camera_is_the_sum_of_both_for_a_pan() -> None:
    camera = np.array([[1, 0, -2.0], [0, 1, 1.0], [0, 0, 1]])
    flow = np.full((1, 4, 6, 2), (3.0, 0.5), np.float32)
    run = FlowRun(np.arange(1), flow, camera[None], (10.0, 10.0))
    np.testing.assert_allclose(run.raw(), np.broadcast_to([1.0, 1.5], (1, 4, 6, 2)))


def test_source_pixels_are_those_of_the_file() -> None:
    values = np.full((2, 2, 3, 4), UNITS, np.int16)
    camera = np.array([[1, 0, 5.0], [0, 1, 0], [1e-3, 0, 1]])
    fields = StoredFields(
        np.arange(2, dtype=np.int32), values, np.stack([camera] * 2), np.zeros(2, np.float32),
        scale=(2.0, 3.0), size=(36, 32),
    )  # fmt: skip
    run = fields.decode()
    assert run.flow[0, 0, 0].tolist() == [2, 3]
    assert run.cell == (8.0, 12.0)
    point = np.array([10.0, 6.0, 1.0])  # reduced (5, 2)
    moved = camera @ [5, 2, 1]
    expected = moved[:2] / moved[2] * [2, 3]
    got = run.cameras[0] @ point
    np.testing.assert_allclose(got[:2] / got[2], expected)


def random_fields(seed: int, count: int) -> StoredFields:
    rng = np.random.default_rng(seed)
    return StoredFields(
        frames=np.arange(5, 5 + count, dtype=np.int32),
        values=rng.integers(-640, 640, (count, 2, 7, 9)).astype(np.int16),
        cameras=np.eye(3) + rng.normal(0, 0.01, (count, 3, 3)),
        clipped=rng.random(count).astype(np.float32),
        scale=(1.5, 1.25),
        size=(35, 54),
    )


def row(name: str, fields: StoredFields | None) -> MotionRow:
    boxes = FrameBoxes(np.zeros(1, np.int32), np.zeros((1, 4), np.float32), np.ones(1, np.float32))
    return MotionRow(name, "digest", 54, 35, 100, 25.0, boxes, fields)


@pytest.fixture
def videos(tmp_path: Path) -> tuple[MotionStore, dict[str, StoredFields]]:
    store = MotionStore(str(tmp_path), CONFIG)
    fields = {name: random_fields(i, 20 + 40 * i) for i, name in enumerate("abcd")}
    store.write_part([row(name, fields[name]) for name in "ab"], "000")
    store.write_part([row(name, fields[name]) for name in "cd"], "001")
    return store, fields


def assert_same(got: StoredFields, expected: StoredFields, keep: slice) -> None:
    for name in ("frames", "values", "cameras", "clipped"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name)[keep])
    assert (got.scale, got.size) == (expected.scale, expected.size)


def test_fields_come_back_as_they_were(videos) -> None:
    store, fields = videos
    reader = pickle.loads(pickle.dumps(store.open("abcd")))
    for name, expected in fields.items():
        assert_same(reader._fields.stored(name, 0, 10_000), expected, slice(None))
    assert_same(reader._fields.stored("d", 40, 50), fields["d"], slice(35, 46))
    assert_same(reader._fields.stored("d", 500, 510), fields["d"], slice(-1, None))
    run = reader.flow("c", 10, 12)
    np.testing.assert_allclose(run.flow, fields["c"].decode().flow[5:8])


def test_a_clip_reads_its_own_row_groups_alone(videos, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = videos
    reader = store.open("abcd")
    asked: list[list[int]] = []
    read = pq.ParquetFile.read_row_groups

    def spy(self, groups, columns=None, **options):
        asked.append(list(groups))
        return read(self, groups, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", spy)
    reader.flow("d", 5 + FRAMES_PER_GROUP, 5 + FRAMES_PER_GROUP + 3)
    (groups,) = asked
    groups_of_c = -(-100 // FRAMES_PER_GROUP)
    assert groups == [groups_of_c + 1]  # d's second stretch, none of c's


def test_dropped_videos_lose_their_flow_and_the_others_keep_theirs(videos) -> None:
    store, fields = videos
    digest = row_digest("digest", CONFIG)
    assert store.drop((name, digest) for name in "ac") == 2
    reader = store.open("bd")
    assert_same(reader._fields.stored("b", 0, 999), fields["b"], slice(None))
    with pytest.raises(StoreError, match="2 of 2 videos have no motion in it"):
        store.open("ac")
    assert store.drop([("b", digest)]) == 1
    assert len(store.field_files()) == 1


def test_two_videos_of_one_id_have_their_own_flow(videos, tmp_path: Path) -> None:
    _, fields = videos
    one, other = (MotionStore(str(tmp_path), CONFIG, manifest) for manifest in ("one", "other"))
    one.write_index(dict.fromkeys("abcd", row_digest("digest", CONFIG)))
    mine = random_fields(9, 30)
    other.write_part([replace(row("a", mine), video_digest="another")], "002")
    other.write_index({"a": row_digest("another", CONFIG)})
    assert_same(one.open("a")._fields.stored("a", 0, 999), fields["a"], slice(None))
    assert_same(other.open("a")._fields.stored("a", 0, 999), mine, slice(None))


def test_damaged_and_missing_flow_is_named(videos) -> None:
    store, _ = videos
    first, second = store.field_files()
    reader = store.open("abcd")
    Path(first).write_bytes(b"PAR1 nonsense")
    with pytest.raises(StoreError, match=r"fields-000\.parquet: damaged"):
        reader.flow("a", 0, 3)
    with pytest.raises(StoreError, match=r"fields-000\.parquet: damaged"):
        store.open("a")
    Path(first).unlink()
    with pytest.raises(StoreError, match="2 videos have boxes but no dense flow, first a"):
        store.open("abcd")
    assert second == store.field_files()[0]


def test_a_store_of_boxes_alone_says_that_it_has_no_flow(tmp_path: Path) -> None:
    store = MotionStore(str(tmp_path), MotionConfig(flow=DIS()))
    store.write_part([row("a", None)], "000")
    with pytest.raises(StoreError, match="a: the motion store holds no dense flow"):
        store.open("a").flow("a", 0, 5)


def test_extraction_shares_flow_and_keeps_the_boxes() -> None:
    config = SyntheticConfig(size=64, num_frames=5)
    frames = draw_clip(config, "clip", "right").frames
    alone = extract_motion(frames, MotionConfig(flow=DIS()))
    both = extract_motion(frames, CONFIG)
    np.testing.assert_array_equal(alone.boxes.boxes, both.boxes.boxes)
    assert alone.fields is None
    assert both.fields is not None
    assert both.fields.frames.tolist() == [0, 1, 2, 3]
    assert both.fields.values.shape == (4, 2, 16, 16)
    apart = extract_motion(frames, MotionConfig(flow=DIS(), step=2, fields=FieldConfig(stride=2)))
    assert apart.boxes.frames.tolist() == [0, 2]
    assert apart.fields is not None
    assert apart.fields.frames.tolist() == [0, 1, 2]
