"""A run in this process, without Ray: golden losses, exact resume, and what is left behind.

The golden losses are the first ones of tiny runs. Where a change is meant to alter them, write them
anew with `KINEMA_RECORD_GOLDEN=1 pytest tests/test_trial.py` and say why in CHANGELOG.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kinema import storage
from kinema.config import load
from kinema.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteLossError,
    StoreError,
    VideoError,
)
from kinema.experiment import Experiment
from kinema.motion.extractor import FrameBoxes
from kinema.motion.parts import MotionRow, row_digest
from kinema.motion.store import MotionStore
from kinema.pipelines.prepare import prepare
from kinema.trial import check_clips, pretrained_uri, result, run_stages, run_uri, split
from kinema.video.manifest import Manifest
from kinema.video.synthetic import SyntheticConfig, load_truth, make

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY / "tests/golden"
TINY = [
    "model={embed_dim: 32, depth: 2, num_heads: 2}",
    "pretrain.decoder={embed_dim: 16, depth: 1, num_heads: 2}",
    "pretrain.epochs=2",
    "pretrain.optim.warmup_epochs=1",
    "pretrain.checkpoint_every=1",
    "pretrain.log_every=1",
    "pretrain.engine={global_batch_size: 8, micro_batch_size: 4}",
    "finetune.epochs=2",
    "finetune.checkpoint_every=1",
    "finetune.log_every=1",
    "finetune.engine={global_batch_size: 8, micro_batch_size: 4}",
    "finetune.optim.base_lr=1.6e-2",
    "finetune.optim.layer_decay=0.9",
]
MOFO = [
    "method=mofo",
    "mask={name: motion_box, mask_ratio: 0.75, inside_ratio: 0.5, overlap: centre}",
    "head={name: mca, heads: 2}",
]


PRETRAIN_ONCE = ["pretrain.epochs=1", "pretrain.optim.warmup_epochs=0"]
FINETUNE_ONCE = ["finetune.epochs=1", "finetune.optim.warmup_epochs=0"]
DROPS = "finetune.drop_path=0.3"
"""Makes a network draw at random, which a resumed run must do as the undisturbed one does."""


class Interrupted(Exception):
    """Stands for the death of the process."""


class Recorder:
    """Keeps metrics, and the training states under `folder` until there are `states_until_end`.

    From the `warning`-th logged step on, its machine is about to go.
    """

    def __init__(
        self,
        folder: Path,
        states_until_end: int = 99,
        resume: Path | None = None,
        warning: int = 10**9,
    ):
        self.warning, self.asked = warning, 0
        self.folder, self.left, self.resume = folder, states_until_end, resume
        self.resumed = resume
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.states: list[Path] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((step, dict(metrics)))

    def checkpoint(self, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        state = self.folder / f"state{len(self.states)}"
        state.mkdir(parents=True)
        save(state)
        self.states.append(state)
        if self.resumed is not None:  # Ray keeps the newest ones alone
            shutil.rmtree(self.resumed, ignore_errors=True)
        if len(self.states) == self.left:
            raise Interrupted

    def preempted(self) -> bool:
        self.asked += 1
        return self.asked >= self.warning

    def values(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.metrics if name in metrics]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A storage root with 48 + 8 + 8 clips and a motion store of their true boxes."""
    root = tmp_path_factory.mktemp("trial")
    uri = make(SyntheticConfig(num_train=48, num_validation=8, num_test=8), str(root / "videos"))
    motion = tiny(root, uri).motion
    assert motion is not None
    rows = []
    for entry in Manifest.read(uri).rows():
        boxes = load_truth(str(root / "videos"), entry.split, entry.id).boxes[:-1]
        count = len(boxes)
        frames = FrameBoxes(
            np.arange(count, dtype=np.int32), boxes.astype(np.float32), np.ones(count, np.float32)
        )
        rows.append(MotionRow(entry.id, "digest", 48, 48, count + 1, entry.fps, frames))
    store = MotionStore(str(root), motion, Manifest.read(uri).digest)
    store.write_part(rows, "000")
    store.write_index({row.id: row_digest(row.video_digest, motion) for row in rows})
    return root, uri


def tiny(root: Path, uri: str, *overrides: str) -> Experiment:
    settings = [*TINY, f"storage={root}", f"data.manifest={uri}", *overrides]
    return load(Experiment, REPOSITORY / "experiments/demo/base.yaml", settings).resolved()


@pytest.mark.parametrize("method", ["videomae", "mofo"])
def test_losses_are_those_on_record(method: str, videos: tuple[Path, str], tmp_path: Path) -> None:
    root, uri = videos
    experiment = tiny(root, uri, *(MOFO if method == "mofo" else []))
    recorder = Recorder(tmp_path)
    outcome = run_stages(experiment, uri, recorder)
    losses = recorder.values("pretrain/loss") + recorder.values("finetune/loss")
    assert len(losses) == 24  # 2 stages, 2 epochs, 6 steps
    # MLflow has one value of a name at a step, and both stages count their steps from 0.
    named = [(name, step) for step, metrics in recorder.metrics for name in metrics]
    assert len(set(named)) == len(named)
    for name in ("perf/clips_per_second", "perf/finetune_clips_per_second"):
        assert min(recorder.values(name)) > 0
    file = GOLDEN / f"{method}.txt"
    if os.environ.get("KINEMA_RECORD_GOLDEN"):
        file.write_text("".join(f"{loss:.7f}\n" for loss in losses))
    np.testing.assert_allclose(losses, np.loadtxt(file), rtol=1e-3)
    assert recorder.values("mask/realised_ratio") == pytest.approx([27 / 36] * 12)

    digest = Manifest.read(uri).digest
    assert result(experiment, digest) == outcome
    assert outcome["tested_on"] == "test"
    assert outcome["num_tested"] == 8
    assert outcome["comparable"]
    predictions = pq.read_table(Path(run_uri(experiment, digest)) / "predictions.parquet")
    hits = np.equal(predictions["label"], predictions["predicted"])
    assert outcome["metrics"]["test/top1"] == pytest.approx(hits.mean())


def test_stages_in_bf16_give_nearly_the_losses_on_record(
    videos: tuple[Path, str], tmp_path: Path
) -> None:
    root, uri = videos
    engines = [
        f"{part}.engine.{setting}"
        for part in ("pretrain", "finetune")
        for setting in ("precision=bf16", "zero_stage=1")
    ]
    recorder = Recorder(tmp_path)
    outcome = run_stages(tiny(root, uri, *MOFO, *engines), uri, recorder)
    losses = recorder.values("pretrain/loss") + recorder.values("finetune/loss")
    np.testing.assert_allclose(losses, np.loadtxt(GOLDEN / "mofo.txt"), rtol=0.03)
    assert outcome["num_tested"] == 8


def test_interrupted_run_ends_as_if_undisturbed(videos: tuple[Path, str], tmp_path: Path) -> None:
    _, uri = videos
    whole = Recorder(tmp_path / "whole")
    expected = run_stages(tiny(tmp_path / "a", uri, "motion=null", DROPS), uri, whole)

    experiment = tiny(tmp_path / "b", uri, "motion=null", DROPS)
    recorders = [Recorder(tmp_path / "first", 1)]  # ends within pretraining
    with pytest.raises(Interrupted):
        run_stages(experiment, uri, recorders[-1])
    recorders.append(Recorder(tmp_path / "second", 2, recorders[0].states[-1]))  # within finetuning
    with pytest.raises(Interrupted):
        run_stages(experiment, uri, recorders[-1])
    recorders.append(Recorder(tmp_path / "third", 99, recorders[1].states[-1]))
    outcome = run_stages(experiment, uri, recorders[-1])

    assert outcome["metrics"] == expected["metrics"]
    assert outcome["pretrain"] == expected["pretrain"]
    for name in ("pretrain/loss", "finetune/loss", "pretrain/lr", "finetune/lr"):
        parts = [value for recorder in recorders for value in recorder.values(name)]
        assert parts == whole.values(name), name


def test_a_warned_run_saves_at_once_and_ends_as_if_undisturbed(
    videos: tuple[Path, str], tmp_path: Path
) -> None:
    _, uri = videos
    whole = Recorder(tmp_path / "whole")
    expected = run_stages(tiny(tmp_path / "a", uri, "motion=null"), uri, whole)

    # After 9 of 12 steps: the second state, within the second epoch, and nothing more is lost.
    experiment = tiny(tmp_path / "b", uri, "motion=null")
    warned = Recorder(tmp_path / "warned", states_until_end=2, warning=9)
    with pytest.raises(Interrupted):
        run_stages(experiment, uri, warned)
    again = Recorder(tmp_path / "again", resume=warned.states[-1])
    outcome = run_stages(experiment, uri, again)

    assert len(warned.values("pretrain/loss")) == 9
    assert warned.values("pretrain/loss") + again.values("pretrain/loss") == whole.values(
        "pretrain/loss"
    )
    assert outcome["pretrain"] == pytest.approx(expected["pretrain"], rel=1e-12)
    assert outcome["metrics"] == expected["metrics"]


def test_what_a_network_drops_is_not_the_same_at_every_step(
    videos: tuple[Path, str], tmp_path: Path
) -> None:
    _, uri = videos
    losses = []
    for name, settings in {"drops": [DROPS], "again": [DROPS], "other": [DROPS, "seed=1"]}.items():
        recorder = Recorder(tmp_path / name)
        experiment = tiny(tmp_path / name, uri, "motion=null", "pretrain=null", *settings)
        run_stages(experiment, uri, recorder)
        losses.append(recorder.values("finetune/loss"))
    assert losses[0] == losses[1] != losses[2]


def test_pretraining_needs_no_clips_to_test_on(videos: tuple[Path, str], tmp_path: Path) -> None:
    _, uri = videos
    table = Manifest.read(uri).select("train").table
    labels = table.schema.get_field_index("label")
    table = table.set_column(labels, "label", pa.nulls(len(table), pa.int32()))
    alone = str(tmp_path / "alone.parquet")
    Manifest(table).write(alone)
    experiment = tiny(tmp_path, alone, "motion=null", *PRETRAIN_ONCE, "finetune=null")
    outcome = run_stages(experiment, alone, Recorder(tmp_path / "states"))
    assert storage.exists(outcome["encoder"])
    assert "held_out/loss" not in outcome["pretrain"]


def test_a_plain_head_reads_and_loses_no_motion(videos: tuple[Path, str], tmp_path: Path) -> None:
    _, uri = videos
    experiment = tiny(tmp_path, uri, *PRETRAIN_ONCE, *FINETUNE_ONCE)
    assert experiment.motion is not None
    assert not experiment.reads_motion
    outcome = run_stages(experiment, uri, Recorder(tmp_path / "states"))  # there is no store
    assert outcome["comparable"]
    assert outcome["left_out"] == {}


def test_finished_pretraining_is_found_by_its_key(videos: tuple[Path, str], tmp_path: Path) -> None:
    _, uri = videos
    first, second = Recorder(tmp_path / "1"), Recorder(tmp_path / "2")
    run_stages(tiny(tmp_path, uri, "motion=null"), uri, first)
    run_stages(tiny(tmp_path, uri, "motion=null", *FINETUNE_ONCE), uri, second)
    assert len(first.values("pretrain/loss")) == 12
    assert second.values("pretrain/loss") == []
    assert len(second.values("finetune/loss")) == 6


def test_videos_without_motion_are_left_out_or_reported(
    videos: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, uri = videos
    experiment = tiny(tmp_path, uri, *MOFO, *FINETUNE_ONCE)
    digest = Manifest.read(uri).digest
    full = MotionStore(str(root), experiment.motion, digest)
    here = MotionStore(str(tmp_path), experiment.motion, digest)
    lost = {"train-000003", "validation-000002", "test-000001"}
    shutil.copytree(full.uri, here.uri)
    assert here.drop((video, row_digest("digest", experiment.motion)) for video in lost) == 3
    with pytest.raises(StoreError, match="3 of 64 videos have no motion in it: test-000001"):
        run_stages(experiment, uri, Recorder(tmp_path / "states"))
    here.write_failures((video, f"{video}.mp4", "damaged") for video in sorted(lost))
    recorder = Recorder(tmp_path / "states")
    outcome = run_stages(experiment, uri, recorder)
    assert "2 training or validation videos without motion left out" in capsys.readouterr().out
    assert len(recorder.values("pretrain/loss")) == 2 * (47 // 8)
    assert outcome["num_tested"] == 7
    assert not outcome["comparable"]
    assert outcome["failures"] == {"test-000001": "test-000001.mp4: damaged"}
    assert outcome["left_out"] == {
        id: f"{id}.mp4: damaged" for id in ("train-000003", "validation-000002")
    }

    shutil.rmtree(here.uri)  # they are mended, and the encoder lies there without them
    shutil.copytree(full.uri, here.uri)
    resumed = Recorder(tmp_path / "resumed", resume=recorder.states[-1])
    with pytest.raises(CheckpointError, match=r"made on other clips .* folder under train/"):
        run_stages(experiment, uri, resumed)


def test_nothing_to_train_or_test_on_is_an_error(videos: tuple[Path, str]) -> None:
    root, uri = videos
    manifest = Manifest.read(uri)
    with pytest.raises(ConfigError, match="no clips in split 'train'"):
        split(tiny(root, uri), manifest.select("test"))
    with pytest.raises(ConfigError, match=r"neither a 'validation' nor .* test_share=0\.2"):
        split(tiny(root, uri), manifest.select("train"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pretrain.clip_share=0.1"], r"pretrain\.engine\.global_batch_size 8 exceeds the 5 tr"),
        (["finetune.engine.global_batch_size=64"], r"finetune\.engine.* 64 exceeds the 48 tr"),
    ],
)
def test_too_few_clips_are_told_before_anything_starts(
    videos: tuple[Path, str], tmp_path: Path, settings: list[str], message: str
) -> None:
    _, uri = videos
    experiment = tiny(tmp_path, uri, *settings)
    with pytest.raises(ConfigError, match=message):
        prepare([experiment], check_clips)
    assert not (tmp_path / "motion").exists()
    check_clips(tiny(tmp_path, uri), Manifest.read(uri))


@pytest.mark.parametrize("role", ["train", "validation", "test"])
def test_clips_without_a_label_are_not_tested_on(
    videos: tuple[Path, str], tmp_path: Path, role: str
) -> None:
    _, uri = videos
    rows = pq.read_table(uri).to_pylist()
    for row in rows:
        if row["split"] == role:
            row["label"] = None
    count = sum(row["label"] is None for row in rows)
    unlabelled = str(tmp_path / "unlabelled.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(uri)), unlabelled)
    experiment = tiny(tmp_path, unlabelled, "motion=null")
    with pytest.raises(ConfigError, match=rf"{count} clips without a label, .*such as {role}-0000"):
        run_stages(experiment, unlabelled, Recorder(tmp_path / "states"))


def test_states_of_what_was_removed_are_not_gone_on_from(
    videos: tuple[Path, str], tmp_path: Path
) -> None:
    _, uri = videos
    digest = Manifest.read(uri).digest
    experiment = tiny(tmp_path, uri, "motion=null")
    first = Recorder(tmp_path / "first")
    run_stages(experiment, uri, first)
    shutil.rmtree(run_uri(experiment, digest))
    again = Recorder(tmp_path / "again", resume=first.states[-1])
    with pytest.raises(CheckpointError, match=r"best\.safetensors is gone; remove .* train/"):
        run_stages(experiment, uri, again)

    shutil.rmtree(pretrained_uri(experiment, digest))  # so what was finetuned from it is no use
    anew = Recorder(tmp_path / "anew", resume=first.states[-1])
    run_stages(experiment, uri, anew)
    assert [len(anew.values(f"{stage}/loss")) for stage in ("pretrain", "finetune")] == [12, 12]

    alone = tiny(tmp_path, uri, "motion=null", "finetune=null")
    run_stages(alone, uri, Recorder(tmp_path / "alone"))
    assert result(alone, digest) is not None
    shutil.rmtree(pretrained_uri(alone, digest))
    assert result(alone, digest) is None


def test_a_held_out_clip_that_cannot_be_read_is_told_before_the_training(
    videos: tuple[Path, str], tmp_path: Path
) -> None:
    _, uri = videos
    rows = pq.read_table(uri).to_pylist()
    damaged = tmp_path / "damaged.mp4"
    damaged.write_text("no video")
    for row in rows:
        row["path"] = str(damaged if row["id"] == "validation-000003" else row["path"])
    manifest = str(tmp_path / "manifest.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(uri)), manifest)
    recorder = Recorder(tmp_path / "states")
    with pytest.raises(VideoError, match=r"damaged\.mp4"):
        run_stages(tiny(tmp_path, manifest, "motion=null"), manifest, recorder)
    assert not recorder.metrics


def test_encoder_lies_under_its_key(videos: tuple[Path, str], tmp_path: Path) -> None:
    _, uri = videos
    experiment = tiny(tmp_path, uri, "motion=null", "finetune=null")
    outcome = run_stages(experiment, uri, Recorder(tmp_path / "states"))
    folder = pretrained_uri(experiment, Manifest.read(uri).digest)
    assert outcome["encoder"] == f"{folder}/encoder.safetensors"
    assert Path(outcome["encoder"]).exists()
    assert "metrics" not in outcome


def test_loss_that_is_not_finite_stops_and_keeps_the_batch(
    videos: tuple[Path, str], tmp_path: Path
) -> None:
    _, uri = videos
    experiment = tiny(tmp_path, uri, "motion=null", "pretrain.optim.base_lr=1e30")
    with pytest.raises(NonFiniteLossError, match=r"pretrain: loss or .* is not finite at step \d+"):
        run_stages(experiment, uri, Recorder(tmp_path / "states"))
    (kept,) = tmp_path.glob("pretrained/*/nonfinite/pretrain-step*-rank0.pt")
    batches = torch.load(kept, weights_only=True)
    assert [batch["clip"].shape for batch in batches] == [(4, 3, 8, 48, 48)] * 2
    assert all("#" in key for batch in batches for key in batch["keys"])
