"""A test over the cluster: each video once on any number of workers, killed or not; coverage."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient

from kinema import storage
from kinema.config import load
from kinema.errors import ConfigError, KinemaError, WeightsError
from kinema.models.classifier import Classifier, PlainHead
from kinema.models.weights import save_weights
from kinema.pipelines import evaluate as module
from kinema.pipelines.evaluate import (
    EvaluateExperiment,
    Judged,
    evaluate,
    evaluate_prepared,
    text_of,
)
from kinema.pipelines.prepare import Prepared
from kinema.video.manifest import Manifest
from kinema.video.synthetic import SyntheticConfig, make

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

BASE = Path(__file__).resolve().parents[2] / "experiments/demo/base.yaml"
NUM_VIDEOS = 7


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A manifest with seven test videos of eight classes."""
    config = SyntheticConfig(num_train=8, num_validation=0, num_test=8, num_frames=8)
    root = tmp_path_factory.mktemp("clips")
    manifest = Manifest.read(make(config, str(root)))
    table = manifest.table.slice(0, 8 + NUM_VIDEOS)
    uri = str(root / "seven.parquet")
    Manifest(table).write(uri)
    return uri


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    experiment = load(EvaluateExperiment, BASE)
    path = str(tmp_path_factory.mktemp("weights") / "best.safetensors")
    save_weights(Classifier(experiment.model, PlainHead(init_scale=1.0), 8), PlainHead(), path)
    return path


def run(clips: str, classifier: str, root: Path, *overrides: str) -> Judged:
    experiment = load(
        EvaluateExperiment,
        BASE,
        [
            f"data.manifest={clips}",
            f"checkpoint={classifier}",
            f"storage={root}",
            "motion=null",
            "evaluation.num_clips=2",
            "evaluation.num_crops=3",
            *overrides,
        ],
    ).resolved()
    return evaluate_prepared(experiment, Prepared(clips, Manifest.read(clips)))


def rows(tested: Judged) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in tested.evaluation.predictions.to_pylist()}


def check_same(one: Judged, other: Judged) -> None:
    """Each video once, and the same numbers to the last bit."""
    assert len(one.evaluation.predictions) == NUM_VIDEOS
    assert rows(one).keys() == rows(other).keys()
    assert len(rows(one)) == NUM_VIDEOS
    for id, row in rows(one).items():
        assert len(row["view_logits"]) == 2 * 3 * 8
        np.testing.assert_array_equal(row["view_logits"], rows(other)[id]["view_logits"])


@pytest.fixture(scope="module")
def alone(clips: str, classifier: str, cluster: None, tmp_path_factory: Any) -> Judged:
    """The test on one worker."""
    return run(clips, classifier, tmp_path_factory.mktemp("alone"), "reading.num_cpus=1")


@pytest.mark.ray
def test_what_a_given_classifier_was_trained_with_is_not_claimed(
    classifier: str, alone: Judged
) -> None:
    client = MlflowClient(f"sqlite:///{Path(alone.folder).parents[1]}/mlflow.db")
    (study,) = client.search_experiments(filter_string="name LIKE 'demo%'")
    (tested,) = client.search_runs([study.experiment_id])
    assert tested.info.run_name == f"test {Path(classifier).parent.name}"
    assert tested.data.params["checkpoint"] == classifier
    assert tested.data.tags["method"] == "custom"
    sections = {name.partition(".")[0] for name in tested.data.params}
    assert not sections & {"mask", "target", "pretrain", "finetune", "seed"}
    assert {"model", "head", "sampling", "evaluation"} <= sections


@pytest.mark.ray
def test_asking_again_reads_what_is_there(
    clips: str, classifier: str, alone: Judged, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(alone.folder).parents[1]
    # whatever the given classifier was made from
    check_same(run(clips, classifier, root, "pretrain=null", "encoder=gone.safetensors"), alone)
    assert "7 videos, 7 done before, 0 to do" in capsys.readouterr().out


@pytest.mark.ray
def test_two_workers_of_which_one_is_killed_change_nothing(
    clips: str, classifier: str, alone: Judged, tmp_path: Path
) -> None:
    """SIGKILL to an actor once the first part is written."""
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not storage.list_files(str(tmp_path / "readouts"), ".parquet"):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        for process in psutil.process_iter(["name", "cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if "VideoActor" in line and "ray::" in line and process.ppid() in family:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return

    import ray

    raylets = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"]
    session = ray._private.worker._global_node.get_session_dir_path()
    family = {p.pid for p in raylets if any(session in part for part in p.cmdline())}
    watcher = threading.Thread(target=kill)
    watcher.start()
    tested = run(clips, classifier, tmp_path, "reading.num_cpus=2")
    watcher.join()
    assert killed, "no worker was killed: the test shows nothing"
    check_same(tested, alone)
    assert tested.evaluation.comparable
    assert tested.result["metrics"]["test/coverage"] == 1.0
    for name in ("predictions.parquet", "result.json", "classes.csv", "confusion.png"):
        assert storage.exists(storage.join(tested.folder, name))


@pytest.mark.ray
def test_a_damaged_video_is_named_and_the_number_not_comparable(
    clips: str, classifier: str, alone: Judged, tmp_path: Path
) -> None:
    table = Manifest.read(clips).table
    damaged = table["id"][-1].as_py()
    paths = table["path"].to_pylist()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(paths[-1]).read_bytes()[:300])
    index = table.schema.get_field_index("path")
    table = table.set_column(index, "path", [[*paths[:-1], str(broken)]])
    uri = str(tmp_path / "manifest.parquet")
    Manifest(table).write(uri)
    tested = run(uri, classifier, tmp_path, "reading.num_cpus=1")
    assert tested.evaluation.coverage == 6 / 7
    assert not tested.evaluation.comparable
    assert tested.evaluation.failures.keys() == {damaged}
    text = text_of(tested)
    assert text.startswith(f"NOT COMPARABLE: 1 video could not be read\n  - {damaged}: ")
    assert f"\nconfusion   {tested.folder}/confusion.png\n" in text
    for id, row in rows(tested).items():
        np.testing.assert_array_equal(row["view_logits"], rows(alone)[id]["view_logits"])


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["checkpoint=absent/best.safetensors"], "no classifier at"),
        (["checkpoint={}", "compute.use_gpu=true"], "test asks for .* has no GPU"),
    ],
)
def test_what_cannot_be_tested_is_told_before_motion_is_extracted(
    clips: str,
    classifier: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    reason: str,
) -> None:
    monkeypatch.setattr(module, "extract_motion", lambda *_, **__: pytest.fail("extracted"))
    given = [
        f"data.manifest={clips}",
        f"storage={tmp_path}",
        "head={name: mca, heads: 2}",
        *(setting.format(classifier) for setting in settings),
    ]
    with pytest.raises(KinemaError, match=reason):
        evaluate(load(EvaluateExperiment, BASE, given))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_missing_classifier_and_an_empty_split_are_told(
    clips: str, classifier: str, tmp_path: Path
) -> None:
    with pytest.raises(KinemaError, match=r"no classifier at .*jobs/finetune.py"):
        run(clips, str(tmp_path / "absent.safetensors"), tmp_path)
    with pytest.raises(ConfigError, match="split validation: cannot be tested on"):
        run(clips, classifier, tmp_path, "split=validation")
    with pytest.raises(WeightsError, match=r"embed_dim: \d+ in the file, 64 in the model"):
        run(clips, classifier, tmp_path, "model.embed_dim=64")
    assert not (tmp_path / "readouts").exists()
