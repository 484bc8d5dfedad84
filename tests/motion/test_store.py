from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinema.errors import StoreError, VideoError
from kinema.motion import parts, store
from kinema.motion.extractor import FrameBoxes, MotionConfig
from kinema.motion.fields import FieldConfig
from kinema.motion.flow import DIS, TVL1
from kinema.motion.parts import SCHEMA, MotionRow, row_digest
from kinema.motion.store import MotionStore

CFG = MotionConfig(flow=DIS())

D, OTHER = row_digest("d", CFG), row_digest("other", CFG)


def row(video: str, count: int = 4, digest: str = "d") -> MotionRow:
    rng = np.random.default_rng(len(video) + count)
    boxes = rng.uniform(0, 100, (count, 4)).astype(np.float32)
    boxes[1] = np.nan
    frames = FrameBoxes(
        np.arange(count, dtype=np.int32), boxes, rng.uniform(0, 3, count).astype(np.float32)
    )
    return MotionRow(video, digest, 320, 240, count + 1, 29.97, frames)


@pytest.fixture
def filled(tmp_path: Path) -> MotionStore:
    motion = MotionStore(str(tmp_path), CFG)
    motion.write_part([row("a"), row("b", 6)], "000")
    motion.write_part([row("c", 3)], "001")
    return motion


def test_boxes_come_back_exactly_and_no_motion_is_null(filled: MotionStore) -> None:
    reader = filled.open(["a", "b", "c"])
    assert len(reader) == 3
    for video, count in (("a", 4), ("b", 6), ("c", 3)):
        stored, made = reader.boxes(video), row(video, count).boxes
        for name in ("frames", "boxes", "peaks"):
            one, other = getattr(stored, name), getattr(made, name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    table = pq.read_table(filled.parts()[0])
    assert table.schema.equals(SCHEMA)
    assert table.column("boxes")[0].as_py()[1] is None


def test_a_video_without_any_motion_comes_back(tmp_path: Path) -> None:
    still = FrameBoxes(
        np.arange(2, dtype=np.int32), np.full((2, 4), np.nan, np.float32), np.zeros(2, np.float32)
    )
    motion = MotionStore(str(tmp_path), CFG)
    motion.write_part([MotionRow("still", "d", 8, 8, 3, 25.0, still)], "000")
    assert np.isnan(motion.open(["still"]).boxes("still").boxes).all()


def test_existing_maps_ids_to_digests(filled: MotionStore, tmp_path: Path) -> None:
    assert filled.existing() == {video: {D} for video in "abc"}
    assert MotionStore(str(tmp_path / "empty"), CFG).existing() == {}


def test_row_digest_follows_video_parameters_and_version(monkeypatch) -> None:
    base = row_digest("d", CFG)
    assert row_digest("e", CFG) != base
    assert row_digest("d", MotionConfig(flow=DIS(), sigma=0.03)) != base
    monkeypatch.setattr(parts, "EXTRACTOR_VERSION", 99)
    assert row_digest("d", CFG) != base


def test_stores_of_other_parameters_or_versions_do_not_meet(tmp_path: Path, monkeypatch) -> None:
    places = {MotionStore(str(tmp_path), cfg).uri for cfg in (CFG, MotionConfig(), CFG)}
    monkeypatch.setattr(store, "STORE_VERSION", 99)
    places.add(MotionStore(str(tmp_path), CFG).uri)
    assert len(places) == 3


def test_drop_rewrites_only_the_parts_concerned(filled: MotionStore) -> None:
    first, second = (Path(part) for part in filled.parts())
    before = second.stat().st_mtime_ns, second.read_bytes()
    assert filled.drop([("a", D), ("b", "another"), ("unknown", D)]) == 1
    assert filled.existing().keys() == {"b", "c"}
    assert (second.stat().st_mtime_ns, second.read_bytes()) == before
    np.testing.assert_array_equal(filled.open(["b"]).boxes("b").boxes, row("b", 6).boxes.boxes)
    assert filled.drop([("b", D)]) == 1
    assert not first.exists()


def test_a_part_written_again_replaces_itself(filled: MotionStore) -> None:
    filled.write_part([row("c", 5)], "001")
    assert len(filled.open(["c"]).boxes("c").frames) == 5
    assert not [file for file in Path(filled.uri).iterdir() if "tmp" in file.name]


def test_missing_videos_are_counted_and_named(filled: MotionStore) -> None:
    wanted = ["a", *(f"x{i}" for i in range(7))]
    with pytest.raises(StoreError, match=r"7 of 8 videos .* x0, x1, x2, x3, x4, \.\.\.") as error:
        filled.open(wanted)
    assert "python jobs/extract_motion.py" in str(error.value)


def test_reading_a_video_the_reader_was_not_opened_for(filled: MotionStore) -> None:
    with pytest.raises(StoreError, match=r"b: .*not opened"):
        filled.open(["a"]).boxes("b")


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no motion store; run python jobs/extract_motion\.py"):
        MotionStore(str(tmp_path), CFG).open(["a"])


def test_other_parameters_are_named(filled: MotionStore, tmp_path: Path) -> None:
    other = MotionConfig(flow=DIS(preset="fast"), sigma=0.03)
    with pytest.raises(StoreError, match="other parameters") as error:
        MotionStore(str(tmp_path), other).open(["a"])
    assert "motion.sigma: 0.02 there, 0.03 here" in str(error.value)
    assert 'motion.flow.preset: "medium" there, "fast" here' in str(error.value)
    assert "min_motion" not in str(error.value)


def test_the_nearest_of_several_stores_is_named(filled: MotionStore, tmp_path: Path) -> None:
    MotionStore(str(tmp_path), MotionConfig(flow=TVL1(tau=0.1))).write_part([row("a")], "000")
    with pytest.raises(StoreError) as error:
        MotionStore(str(tmp_path), MotionConfig(flow=DIS(), std_factor=2)).open(["a"])
    assert "motion.std_factor" in str(error.value)
    assert "motion.flow" not in str(error.value)


def test_a_description_that_does_not_fit_its_folder(filled: MotionStore) -> None:
    description = Path(filled.uri, "store.json")
    description.write_text(description.read_text().replace("0.02", "0.07"))
    with pytest.raises(StoreError, match=r"motion\.sigma: 0\.07 there"):
        filled.open(["a"])
    with pytest.raises(StoreError, match="other parameters"):
        filled.write_part([row("d")], "002")
    description.write_text("{")
    with pytest.raises(StoreError, match=r"store\.json: damaged"):
        filled.open(["a"])


@pytest.mark.parametrize("damage", ["truncated", "emptied", "other columns"])
def test_a_damaged_part_is_named(filled: MotionStore, damage: str) -> None:
    part = Path(filled.parts()[1])
    if damage == "other columns":
        pq.write_table(pa.table({"id": ["c"], "row_digest": [3]}), part)
    else:
        data = part.read_bytes()
        part.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    with pytest.raises(StoreError, match=r"part-001\.parquet: damaged"):
        filled.existing()


def test_a_part_damaged_after_opening_is_named(filled: MotionStore) -> None:
    reader = filled.open(["c"])
    Path(filled.parts()[1]).write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"part-001\.parquet: damaged"):
        reader.boxes("c")


def test_two_videos_of_one_id_need_their_manifest(filled: MotionStore, tmp_path: Path) -> None:
    one, other = (MotionStore(str(tmp_path), CFG, manifest) for manifest in ("one", "other"))
    one.write_index(dict.fromkeys("abc", D))
    other.write_part([row("a", 9, digest="other")], "002")
    other.write_index({"a": row_digest("other", CFG)})
    assert one.existing() == other.existing() == {**filled.existing(), "a": {D, OTHER}}
    assert len(one.open("abc").boxes("a").frames) == 4
    assert len(other.open("a").boxes("a").frames) == 9
    with pytest.raises(StoreError, match="1 of 2 videos have no motion in it: b"):
        other.open("ab")
    with pytest.raises(StoreError, match=r"part-002\.parquet: a is also in another part"):
        filled.open("a")
    with pytest.raises(StoreError, match=r"index-third\.parquet is missing: run .*extract_motion"):
        MotionStore(str(tmp_path), CFG, "third").open("a")


def test_what_another_manifest_uses_is_not_dropped(filled: MotionStore, tmp_path: Path) -> None:
    one, other = (MotionStore(str(tmp_path), CFG, manifest) for manifest in ("one", "other"))
    one.write_index(dict.fromkeys("ab", D))
    other.write_index({"a": D})
    assert one.drop([("a", D), ("b", D)]) == 1
    assert len(other.open("a")) == 1


def test_failures_are_those_of_the_manifest(filled: MotionStore, tmp_path: Path) -> None:
    one, other = (MotionStore(str(tmp_path), CFG, manifest) for manifest in ("one", "other"))
    one.write_failures([("a", "/one/a.mp4", "damaged")])
    other.write_failures([])
    assert one.failures().keys() == {"a"}
    assert not other.failures()


def test_a_reader_is_pickled_without_what_it_read(filled: MotionStore) -> None:
    reader = filled.open(["a", "b", "c"])
    size = len(pickle.dumps(reader))
    reader.boxes("a")
    assert len(pickle.dumps(reader)) == size
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.boxes("b").boxes, reader.boxes("b").boxes)


def test_rows_without_the_flow_that_is_asked_for_are_not_written(tmp_path: Path) -> None:
    asking = MotionStore(str(tmp_path), MotionConfig(fields=FieldConfig()))
    with pytest.raises(ValueError, match="part 003: 0 of 1 rows have dense flow"):
        asking.write_part([row("a")], "003")


def test_failures_are_a_table_beside_the_parts(filled: MotionStore) -> None:
    filled.write_failures([("x", "/videos/x.mp4", "no video stream")])
    assert pq.read_table(filled.failures_uri).to_pylist() == [
        {"id": "x", "path": "/videos/x.mp4", "why": "no video stream"}
    ]
    assert filled.existing().keys() == {"a", "b", "c"}


def test_failed_videos_are_known_and_raise_when_asked_for(filled: MotionStore) -> None:
    filled.write_failures([("x", "/videos/x.mp4", "no video stream"), ("y", "/y.mp4", "damaged")])
    reader = pickle.loads(pickle.dumps(filled.open(["a", "x"])))
    assert set(reader.failed) == {"x"}
    assert len(reader.boxes("a").frames) > 0
    with pytest.raises(VideoError, match=r"/videos/x\.mp4: no video stream"):
        reader.boxes("x")
    with pytest.raises(StoreError, match="1 of 2 videos have no motion in it: z"):
        filled.open(["x", "z"])
