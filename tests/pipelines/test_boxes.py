"""Agreement with annotated boxes, and the boxes-only control, from settings to files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from matplotlib.image import imread

from kinema import geometry, storage
from kinema.config import load
from kinema.errors import ConfigError, ManifestError
from kinema.evaluation.statistics import bootstrap_interval
from kinema.figures.box_agreement import NUM_TILES, TILE_WIDTH, sheet, text_of, tile_rows
from kinema.motion.agreement import VideoBoxes
from kinema.motion.annotated import frame_boxes, read_boxes
from kinema.motion.box_formats import box_table
from kinema.motion.store import MotionStore
from kinema.pipelines.boxes import BoxAgreementExperiment, evaluate_boxes
from kinema.pipelines.boxes_only import BoxesOnlyExperiment, classify_boxes
from kinema.video.manifest import Manifest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

DEMO = Path(__file__).resolve().parents[2] / "experiments/demo"
SMALL = [
    "data.synthetic={num_train: 16, num_validation: 0, num_test: 8, size: 64}",
    "motion.flow={name: dis}",
    "extraction.num_cpus=1",  # to start a second actor takes longer than so few videos
]


def loaded(spec: type, tmp_path: Path, *settings: str) -> Any:
    return load(spec, DEMO / "base.yaml", [*SMALL, f"storage={tmp_path}", *settings])


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_agreement_with_the_true_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = loaded(BoxAgreementExperiment, tmp_path, "num_pictures=2")
    found = evaluate_boxes(experiment)
    (result,) = tmp_path.glob("box_agreement/*/agreement.json")
    assert json.loads(result.read_text()) == found
    assert found["listed"] == found["videos"] == 24
    assert found["failed"] == []

    expected = scores_by_hand(tmp_path, experiment)
    table = storage.read_table(f"{result.parent}/videos.parquet")
    rows = {row["id"]: row for row in table.to_pylist()}
    assert rows.keys() == expected.keys()
    for id, (motion, union) in expected.items():
        assert rows[id]["motion"] == pytest.approx(motion)
        assert rows[id]["union"] == pytest.approx(union)
    interval = bootstrap_interval([row["motion"] for row in rows.values()])
    assert found["iou"]["motion"]["value"] == pytest.approx(interval.value)
    assert found["iou"]["motion"]["low"] == pytest.approx(interval.low)
    assert found["iou"]["motion"]["value"] > found["iou"]["whole_frame"]["value"]
    assert found["iou"]["motion"]["value"] > found["iou"]["shuffled"]["value"]

    with (result.parent / "classes.csv").open(newline="") as file:
        classes = list(csv.DictReader(file))
    assert len(classes) == 8
    for row in classes:
        members = [r["motion"] for r in rows.values() if r["label_name"] == row["class"]]
        assert int(row["videos"]) == len(members) == 3
        assert float(row["motion"]) == pytest.approx(np.mean(members))
    best = max(rows, key=lambda id: rows[id]["motion"]).replace("/", "_")
    worst = min(rows, key=lambda id: rows[id]["motion"]).replace("/", "_")
    pictures = sorted(path.name for path in (result.parent / "pictures").iterdir())
    assert len(pictures) == 4
    assert f"best_1_{best}.png" in pictures
    assert f"worst_1_{worst}.png" in pictures
    assert imread(result.parent / "pictures" / pictures[0]).std() > 0.05
    assert "motion boxes" in capsys.readouterr().out

    assert evaluate_boxes(experiment) == found
    assert "24 done before, 0 to do" in capsys.readouterr().out


def scores_by_hand(
    root: Path, experiment: BoxAgreementExperiment
) -> dict[str, tuple[float, float]]:
    """Mean IoU, and IoU of the unions, of every video of the one set under `root`."""
    (uri,) = root.glob("synthetic/*/manifest.parquet")
    entries = Manifest.read(str(uri)).rows()
    truth = read_boxes(str(uri.with_name("boxes.parquet")))
    reader = MotionStore(str(root), experiment.motion).open([entry.id for entry in entries])
    found = {}
    for entry in entries:
        motion = reader.boxes(entry.id)
        true = frame_boxes(truth[entry.id], entry.frame_range()).boxes
        overlaps = []
        for frame, box in zip(motion.frames.tolist(), motion.boxes, strict=True):
            overlaps.append(0.0 if np.isnan(box).any() else float(geometry.iou(box, true[frame])))
        around = geometry.union(true[motion.frames])
        union = float(geometry.iou(geometry.union(motion.boxes), around))
        found[entry.id] = float(np.mean(overlaps)), union
    return found


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_control_writes_what_a_run_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = loaded(BoxesOnlyExperiment, tmp_path, "motion={flow: {name: annotated}, step: 1}")
    found = classify_boxes(experiment)
    (result,) = tmp_path.glob("boxes_only/*/result.json")
    assert json.loads(result.read_text()) == found
    assert (found["num_trained"], found["num_tested"], found["chance"]) == (16, 8, 1 / 8)
    predictions = storage.read_table(found["predictions"])
    assert predictions.column_names == ["id", "label", "predicted", "probabilities"]
    hits = [row["label"] == row["predicted"] for row in predictions.to_pylist()]
    assert np.mean(hits) == found["top1"]["value"]
    assert "linear classifier, 8 videos: split test, trained on 16" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_control_tests_every_group_by_the_others(tmp_path: Path) -> None:
    settings = ["motion={flow: {name: annotated}, step: 1}", "control.protocol=leave_one_group_out"]
    experiment = loaded(BoxesOnlyExperiment, tmp_path, *settings)
    with pytest.raises(ConfigError, match="24 videos have no group"):
        classify_boxes(experiment)
    (uri,) = map(str, tmp_path.glob("synthetic/*/manifest.parquet"))
    table = storage.read_table(uri)
    place = table.column_names.index("group")
    groups = pa.array([f"S{number % 3}" for number in range(len(table))])
    storage.write_table(uri, table.set_column(place, "group", groups))
    found = classify_boxes(experiment)
    assert (found["num_groups"], found["num_tested"], found["tested_on"]) == (3, 24, "all")
    tested = storage.read_table(found["predictions"])["id"].to_pylist()
    assert sorted(tested) == sorted(table["id"].to_pylist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["motion=null"], "motion: null"),
        (["motion.flow={name: annotated}"], "compared with themselves"),
        (["data.manifest=absent.parquet"], "boxes: give the table of annotated boxes"),
    ],
)
def test_nothing_to_compare_is_said_before_any_work(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_boxes(loaded(BoxAgreementExperiment, tmp_path, *settings))
    if "motion=null" in settings:
        with pytest.raises(ConfigError, match=message):
            classify_boxes(loaded(BoxesOnlyExperiment, tmp_path, *settings))


def test_boxes_of_other_videos_are_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "other.parquet")
    storage.write_table(uri, box_table({"elsewhere": np.array([[0.0, 1, 2, 3, 4]])}))
    with pytest.raises(ManifestError, match="none of its 1 videos is in the manifest"):
        evaluate_boxes(loaded(BoxAgreementExperiment, tmp_path, f"boxes={uri}"))


def test_a_sweeps_file_can_be_given() -> None:
    file = DEMO.parent / "real/iri_gesture.yaml"
    for spec in (BoxAgreementExperiment, BoxesOnlyExperiment):
        assert load(spec, file, []).motion is not None


def a_video(num_frames: int, every: int) -> VideoBoxes:
    """Found everywhere, annotated in each `every`-th frame, in frames of 64 x 640."""
    boxes = np.tile([0.0, 0.0, 320.0, 64.0], (num_frames, 1))
    annotated = boxes.copy()
    annotated[np.arange(num_frames) % every != 0] = np.nan
    return VideoBoxes("a", (64, 640), boxes, annotated)


def test_sheet_shows_annotated_frames_alone_and_fits_a_screen() -> None:
    video = a_video(100, 7)
    rows = tile_rows(video)
    assert len(rows) == len(set(rows)) == NUM_TILES
    assert (rows % 7 == 0).all()
    assert tile_rows(a_video(5, 3)).tolist() == [0, 3]
    frames = np.full((len(rows), 64, 640, 3), 90, dtype=np.uint8)
    picture = cv2.imdecode(np.frombuffer(sheet(frames, video, "title"), np.uint8), 1)
    assert picture.shape[1] == 4 * (TILE_WIDTH + 4)
    assert picture.shape[0] == 28 + 3 * (64 // 2 + 4)


def test_text_without_classes_and_with_too_many() -> None:
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    names = ("motion", "whole_frame", "equal_area", "union", "union_whole_frame")
    found = {
        "videos": 1,
        "listed": 2,
        "frames": 3,
        "failed": ["x"],
        "without_box": 0.25,
        "iou": dict.fromkeys(names, score) | {"shuffled": None},
    }
    text = text_of(found, [])
    assert "1 of 2 videos annotated, 3 frames; nothing found in 25.0%" in text
    assert "1 video failed" in text
    assert "boxes of other videos" in text
    row = {"videos": 1, "motion_low": 0, "motion_high": 1} | dict.fromkeys(
        [*names, "shuffled"], 0.5
    )
    many = text_of(found, [{"class": f"class {n}"} | row for n in range(100)])
    assert "... 76 more in classes.csv" in many
    assert "class 99" in many
