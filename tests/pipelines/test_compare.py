"""The comparison job on stored runs: names of runs, what is printed, what is drawn."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moving_square import write_manifest, write_video

from kinema import storage
from kinema.errors import KinemaError, StorageError
from kinema.evaluation.multiview import prediction_table
from kinema.pipelines.compare import CompareConfig, EpicConfig, combine_epic, compare_runs
from kinema.pipelines.predictions import find_predictions
from kinema.tracking import Tracker

IDS = ["v0", "v1", "v2", "v3"]


def store_run(
    root: Path,
    key: str,
    predicted: list[int],
    manifest: str | None = None,
    labels: Sequence[int] = (0, 0, 0, 0),
) -> str:
    """A run of the four videos."""
    table = prediction_table(IDS, np.array(labels, dtype=np.int64), np.eye(3)[predicted])
    folder = storage.join(str(root), "runs", key)
    storage.write_table(storage.join(folder, "predictions.parquet"), table)
    result = {"comparable": True} | ({} if manifest is None else {"manifest": manifest})
    storage.write_json(storage.join(folder, "result.json"), result)
    return folder


def test_two_runs_are_compared_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_video(tmp_path / f"{id}.mp4", step=2 + index) for index, id in enumerate(IDS)]
    manifest = write_manifest(tmp_path / "manifest.parquet", paths)
    store_run(tmp_path, "a" * 16, [0, 0, 0, 1], manifest)
    store_run(tmp_path, "b" * 16, [0, 1, 2, 1], manifest)
    output = tmp_path / "out"
    compare_runs(
        CompareConfig(run_a="aaaaaa", run_b="b" * 16, output=str(output), storage=str(tmp_path))
    )
    printed = capsys.readouterr().out
    assert "4 videos: both right 1, only A 2, only B 0, neither 1" in printed
    assert "McNemar's exact test: p = 0.5" in printed
    assert "Right only by A: 2 of 2 videos" in printed
    assert "right by B alone" in printed
    with (output / "videos.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == IDS
    sheet = cv2.imread(str(output / "only_a.png"))
    assert sheet is not None
    assert sheet.std() > 10
    assert not (output / "only_b.png").exists()


def test_runs_that_lack_videos_are_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_run(tmp_path, "a" * 16, [0, 0, 0, 1])
    lacking = store_run(tmp_path, "b" * 16, [0, 1, 2, 1])
    storage.write_json(storage.join(lacking, "result.json"), {"comparable": False})
    compare_runs(CompareConfig(run_a="aaaaaa", run_b="bbbbbb", storage=str(tmp_path)))
    marks = [line for line in capsys.readouterr().out.splitlines() if "NOT COMPARABLE" in line]
    assert marks == ["NOT COMPARABLE: bbbbbb could not read every video"]
    storage.write_json(storage.join(lacking, "result.json"), {"metrics": {}})  # says nothing of it
    compare_runs(CompareConfig(run_a="aaaaaa", run_b="bbbbbb", storage=str(tmp_path)))
    assert "NOT COMPARABLE" not in capsys.readouterr().out


def test_one_id_must_be_one_video(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{id}.mp4") for id in IDS]
    manifests = [
        write_manifest(tmp_path / f"{name}.parquet", paths) for name in ("one", "same", "other")
    ]
    rows = pq.read_table(manifests[2]).to_pylist()
    rows[3]["digest"] = "f" * 64
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(manifests[2])), manifests[2])
    one, same, other = (
        store_run(tmp_path, "abc"[place] * 16, [0, 0, place, 1], manifest)
        for place, manifest in enumerate(manifests)
    )
    output = str(tmp_path / "out")
    compare_runs(CompareConfig(run_a=one, run_b=same, output=output))
    with pytest.raises(KinemaError, match=r"1 of 4 ids name other videos in .*, such as v3: "):
        compare_runs(CompareConfig(run_a=one, run_b=other, output=output))
    with pytest.raises(KinemaError, match=r"1 of 4 ids name other videos in .*, such as v3: "):
        combine_epic(EpicConfig(verb_run=one, noun_run=other))


def test_output_is_below_the_root_and_checked_first(tmp_path: Path) -> None:
    a, b = (store_run(tmp_path, key * 16, [0, 0, 0, wrong]) for key, wrong in (("a", 1), ("b", 2)))
    compare_runs(CompareConfig(run_a=a, run_b=b, storage=str(tmp_path)))
    assert len(list((tmp_path / "comparisons").glob("*/videos.csv"))) == 1
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(StorageError, match=r"output .*file/x cannot be written"):
        compare_runs(CompareConfig(run_a=a, run_b=b, output=f"{blocked}/x"))
    with pytest.raises(KinemaError, match=r"nothing to compare: .* hold the same predictions"):
        compare_runs(CompareConfig(run_a=a, run_b=f"{a}/predictions.parquet"))


def test_a_table_of_something_else_is_told(tmp_path: Path) -> None:
    wrong = str(tmp_path / "wrong.parquet")
    storage.write_table(wrong, pa.table({"id": ["v0"], "path": ["v0.mp4"]}))
    with pytest.raises(KinemaError, match="holds no predictions: it has no column 'label'"):
        find_predictions(wrong, str(tmp_path))


def test_a_run_goes_by_path_key_or_mlflow_id(tmp_path: Path) -> None:
    folder = store_run(tmp_path, "abc123" + "0" * 10, [0, 0, 0, 0])
    tracker = Tracker(str(tmp_path), "study")
    run_id = tracker.run("abc123" + "0" * 10, "trial")
    tracker.finish(run_id, "FINISHED")
    below = "runs/abc1230000000000"
    for name in (folder, f"{folder}/predictions.parquet", "abc123", run_id, below):
        assert find_predictions(name, str(tmp_path)).uri == f"{folder}/predictions.parquet"
    store_run(tmp_path, "abc123" + "1" * 10, [0, 0, 0, 0])
    with pytest.raises(KinemaError, match="beginning of several runs"):
        find_predictions("abc123", str(tmp_path))
    with pytest.raises(KinemaError, match="no run 'nothing'"):
        find_predictions("nothing", str(tmp_path))
    with pytest.raises(KinemaError, match="at least 6 characters"):
        find_predictions("abc", str(tmp_path))
    (tmp_path / "pretrained/e0c0de0000000000").mkdir(parents=True)
    with pytest.raises(KinemaError, match="'e0c0de' is an encoder"):
        find_predictions("e0c0de", str(tmp_path))
    with pytest.raises(KinemaError, match="does not exist"):
        find_predictions(f"{tmp_path}/absent.parquet", str(tmp_path))


def test_thumbnails_need_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (store_run(tmp_path, key * 16, [0, 0, 0, wrong]) for key, wrong in (("a", 1), ("b", 2)))
    compare_runs(CompareConfig(run_a=a, run_b=b, output=str(tmp_path / "out")))
    assert "give manifest=" in capsys.readouterr().out


def epic_manifest(path: Path, columns: dict[str, list[int]]) -> str:
    """A manifest of the four videos with the annotated verbs and nouns."""
    uri = write_manifest(path, [write_video(path.parent / f"{id}.mp4") for id in IDS])
    table = pq.read_table(uri)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.int64()))
    pq.write_table(table, uri)
    return uri


def test_verbs_and_nouns_are_combined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = epic_manifest(tmp_path / "m.parquet", {"verb": [0, 1, 2, 0], "noun": [1, 0, 2, 2]})
    verb = store_run(tmp_path, "a" * 16, [0, 1, 2, 1], manifest, labels=[0, 1, 2, 0])
    noun = store_run(tmp_path, "b" * 16, [1, 1, 0, 2], manifest, labels=[1, 0, 2, 2])
    combine_epic(EpicConfig(verb_run=verb, noun_run=noun))
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["verb"].startswith("75.0%")
    assert lines["noun"].startswith("50.0%")
    assert lines["action"].startswith("25.0%")
    assert "NOT" not in lines
    for pair, wrong in (((noun, verb), "verb"), ((verb, verb), "noun")):
        with pytest.raises(KinemaError, match=rf"no {wrong} classifier: the label of 3 of 4 vid"):
            combine_epic(EpicConfig(verb_run=pair[0], noun_run=pair[1]))


def test_runs_that_are_not_of_epic_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = epic_manifest(tmp_path / "m.parquet", {})
    other = store_run(tmp_path, "a" * 16, [0, 1, 2, 1], manifest)
    with pytest.raises(KinemaError, match=r"has no column 'verb'"):
        combine_epic(EpicConfig(verb_run=other, noun_run=other))
    unknown = store_run(tmp_path, "b" * 16, [0, 0, 0, 1])
    combine_epic(EpicConfig(verb_run=unknown, noun_run=unknown))
    assert "names no manifest, so its labels may not be verbs" in capsys.readouterr().out
