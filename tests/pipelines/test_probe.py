"""A probe from experiment to result: known answers, groups, and what is found again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from in_process import read_out, without_cluster

from kinema import storage
from kinema.config import load
from kinema.errors import ConfigError, KinemaError, StorageError, WeightsError
from kinema.models.classifier import Classifier, PlainHead
from kinema.models.vit import Encoder
from kinema.models.weights import save_weights
from kinema.pipelines import probe as module
from kinema.pipelines.prepare import check_encoders, prepare_manifest
from kinema.pipelines.probe import Asked, ProbeExperiment, probe, probe_experiment
from kinema.pipelines.readout import Readout
from kinema.pipelines.single import run_experiment, unread_lines
from kinema.pipelines.study import encoder_note
from kinema.video.manifest import Manifest

BASE = Path(__file__).resolve().parents[2] / "experiments/demo/base.yaml"
TINY = [
    "motion=null",
    "model={embed_dim: 16, depth: 1, num_heads: 2}",
    "data.synthetic={num_train: 48, num_validation: 0, num_test: 24}",
]


def experiment(root: Path, *overrides: str) -> ProbeExperiment:
    return load(ProbeExperiment, BASE, [*TINY, f"storage={root}", *overrides]).resolved()


def asked(chosen: ProbeExperiment, weights: str | None = None, groups: int = 0) -> Asked:
    """The probe on its manifest, whose videos are dealt to that many groups."""
    uri = prepare_manifest(chosen)
    if groups:
        table = Manifest.read(uri).table
        names = pa.array([f"S{i % groups}" for i in range(len(table))], pa.string())
        place = table.column_names.index("group")
        grouped = Manifest(table.set_column(place, "group", names))
        uri = f"{chosen.root}/grouped.parquet"
        grouped.write(uri)
    return Asked(chosen, uri, Manifest.read(uri), weights)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    without_cluster(monkeypatch)
    return monkeypatch


def telling(calls: list[int], lost: tuple[int, ...] = ()) -> Any:
    """A readout whose features carry the label, and in which some videos are missing."""

    def read(name, uri, entries, config, root, reading, motion=None):  # type: ignore
        calls.append(len(entries))
        kept = [entry for i, entry in enumerate(entries) if i not in lost]
        noise = np.random.default_rng(0).normal(size=(len(kept), 1, 8)) * 0.1
        values = np.eye(8)[[entry.label for entry in kept]][:, None] + noise
        failures = {entries[i].id: "it is broken" for i in lost}
        return Readout(kept, values.astype(np.float32), failures)

    return read


@pytest.mark.parametrize("name", ["linear", "knn"])
def test_random_weights_are_near_chance_and_telling_features_are_not(
    name: str, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    overrides = ["pretrain=null", f"probe.name={name}"]
    if name == "linear":
        overrides.append("probe.optimizer.name=lbfgs")
    chance = probe(asked(experiment(tmp_path, *overrides)))
    assert chance["chance"] == 1 / 8
    assert chance["metrics"]["probe/top1"] < 0.45
    here.setattr(module, "read_out", telling([]))
    told = probe(asked(experiment(tmp_path, *overrides, "seed=1", "probe.name=" + name)))
    assert told["metrics"]["probe/top1"] == 1.0


def test_predictions_have_the_columns_of_a_test(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    here.setattr(module, "read_out", telling(calls))
    item = asked(experiment(tmp_path, "pretrain=null"))
    outcome = probe(item)
    table = storage.read_table(outcome["predictions"])
    assert table.column_names == ["id", "label", "predicted", "probabilities"]
    assert sorted(table["id"].to_pylist()) == sorted(
        e.id for e in item.manifest.select("test").rows()
    )
    assert outcome["comparable"]
    assert probe(item) == outcome  # found again
    assert calls == [72]


def test_a_test_video_that_cannot_be_read_makes_the_number_incomparable(
    tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    here.setattr(module, "read_out", telling([], lost=(0, 50)))  # one to fit to, one to test on
    outcome = probe(asked(experiment(tmp_path, "pretrain=null")))
    assert outcome["num_tested"] == 23
    assert outcome["num_fitted"] == 47
    assert not outcome["comparable"]
    assert outcome["metrics"]["probe/coverage"] == 23 / 24
    assert len(outcome["failures"]) == 2


@pytest.mark.parametrize("lost", [0, 50])  # one to fit to, one to test on
def test_what_is_not_comparable_is_done_again_and_then_final(
    tmp_path: Path, here: pytest.MonkeyPatch, lost: int
) -> None:
    calls: list[int] = []
    item = asked(experiment(tmp_path, "pretrain=null"))
    here.setattr(module, "read_out", telling(calls, lost=(lost,)))
    outcome = probe(item)
    assert not outcome["comparable"]
    assert unread_lines(outcome)[0] == "NOT COMPARABLE: 1 video could not be read"
    here.setattr(module, "read_out", telling(calls))
    assert probe(item)["num_tested"] == 24
    assert probe(item)["comparable"]
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (range(72), r"none of 48 videos could be read, first train\S*: it is broken"),
        (range(48, 72), r"none of 24 videos could be read, first test\S*: it is broken"),
    ],
)
def test_why_no_video_could_be_read_is_said(
    lost: range, message: str, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    here.setattr(module, "read_out", telling([], lost=tuple(lost)))
    with pytest.raises(KinemaError, match=message):
        probe(asked(experiment(tmp_path, "pretrain=null")))


def test_every_group_is_answered_about_once(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    here.setattr(module, "read_out", telling([]))
    chosen = experiment(tmp_path, "pretrain=null", "protocol=leave_one_group_out")
    outcome = probe(asked(chosen, groups=4))
    assert outcome["num_tested"] == 72
    assert list(outcome["groups"]) == ["S0", "S1", "S2", "S3"]
    assert sum(group["num_tested"] for group in outcome["groups"].values()) == 72
    assert {group["encoder"] for group in outcome["groups"].values()} == {"not seen in pretraining"}


def test_classes_of_one_group_alone_are_told(
    tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.setattr(module, "read_out", telling([]))
    chosen = experiment(tmp_path, "pretrain=null", "protocol=leave_one_group_out")
    probe(asked(chosen, groups=5))
    assert "in one group alone" not in capsys.readouterr().out
    probe(asked(chosen, groups=8))  # as many as classes, dealt alike
    assert "8 of 8 classes are in one group alone: their 72 videos" in capsys.readouterr().out


def test_videos_without_a_group_cannot_be_left_out(
    tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    here.setattr(module, "read_out", telling([]))
    chosen = experiment(tmp_path, "pretrain=null", "protocol=leave_one_group_out")
    with pytest.raises(ConfigError, match="72 videos have no group"):
        probe(asked(chosen))


def test_groups_that_the_encoder_saw_are_named(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    here.setattr(module, "read_out", telling([]))
    chosen = experiment(tmp_path, "protocol=leave_one_group_out")
    item = asked(chosen, groups=0)
    table = item.manifest.table
    names = pa.array([f"S{split}" for split in table["split"].to_pylist()], pa.string())
    uri = f"{tmp_path}/by_split.parquet"
    Manifest(table.set_column(table.column_names.index("group"), "group", names)).write(uri)
    outcome = probe(Asked(chosen, uri, Manifest.read(uri), None))
    found = {name: group["encoder"] for name, group in outcome["groups"].items()}
    assert found == {"Stest": "not seen in pretraining", "Strain": "seen in pretraining"}


def test_key_names_weights_probe_and_clips(tmp_path: Path) -> None:
    base = asked(experiment(tmp_path, "pretrain=null"))
    changes = ["probe.name=knn", "seed=3", "evaluation.num_clips=2", "sampling={name: tsn}"]
    others = [asked(experiment(tmp_path, "pretrain=null", change)).key for change in changes]
    assert len({base.key, *others}) == 5
    same = asked(experiment(tmp_path, "pretrain=null", "compute.cpus_per_worker=2", "name=x"))
    assert same.key == base.key


def test_an_encoder_that_saw_labels_is_told_and_recorded(
    tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.setattr(module, "read_out", telling([]))
    file = str(tmp_path / "best.safetensors")
    chosen = experiment(tmp_path, "pretrain=null", f"encoder={file}")
    save_weights(Classifier(chosen.model, PlainHead(), 8), PlainHead(), file)
    # its last norm is not among an encoder's: too much of so small a network
    with pytest.raises(WeightsError, match=r"of the encoder's tensors matched, at least 95"):
        check_encoders([chosen], frozen=True)
    capsys.readouterr()
    check_encoders([chosen])
    said = capsys.readouterr().out
    assert "best.safetensors: 100.0% of the encoder's tensors matched" in said
    assert "it is part of a classifier and was trained with labels" in said
    assert probe(asked(chosen, weights=file))["encoder_saw_labels"]
    assert encoder_note(chosen) == {"encoder_saw_labels": "true"}
    alone = experiment(tmp_path, "pretrain=null")
    assert not probe(asked(alone))["encoder_saw_labels"]
    assert encoder_note(alone) == {}


def test_weights_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    """Neither a cluster nor a tracked run."""
    file = str(tmp_path / "encoder.safetensors")
    root = tmp_path / "root"
    chosen = experiment(root, "pretrain=null", f"encoder={file}")
    with pytest.raises(StorageError, match=r"encoder\.safetensors do not exist"):
        run_experiment(chosen.plain(), "mofo")
    vit = chosen.model.model_copy(update={"depth": 4})
    save_weights(Encoder(vit), vit, file)
    for run in (lambda: probe_experiment(chosen), lambda: run_experiment(chosen.plain(), "mofo")):
        with pytest.raises(WeightsError, match="depth: 4 in the file, 1 in the model"):
            run()
    assert not root.exists()


def test_what_a_probe_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sampling and finetune are both null"):
        experiment(tmp_path, "finetune=null")
    alone = experiment(tmp_path, "finetune=null", "pretrain=null", "sampling={name: dense}")
    assert alone.clips.name == "dense"
    with pytest.raises(ConfigError, match=r"probe\.heads: 7 does not divide embed_dim 16"):
        experiment(tmp_path, "probe={name: attentive, heads: 7}")


def test_attentive_probe_reads_as_many_tokens_as_it_says(
    tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []

    def noted(*arguments: Any) -> Readout:
        readout = read_out(*arguments)
        sizes.append(readout.values.size * 2)
        return readout

    here.setattr(module, "read_out", noted)
    chosen = experiment(
        tmp_path, "pretrain=null", "probe={name: attentive, heads: 2, side: 3, epochs: 1}"
    )
    probe(asked(chosen))
    assert chosen.probe.cache_bytes(chosen.model, 72, 1) == sizes[0]  # type: ignore[union-attr]
    assert re.search(r"36 tokens of 72 x 1 views take 0\.00 GiB", capsys.readouterr().out)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_job_pretrains_what_is_missing_and_probes_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "pretrain.epochs=1",
        "pretrain.optim.warmup_epochs=0",
        "pretrain.decoder={embed_dim: 16, depth: 1, num_heads: 2}",
        "protocol=leave_one_group_out",
        "probe={name: linear, optimizer: {name: lbfgs, c: [1.0]}}",
        "reading.num_cpus=1",  # to start more actors takes longer than so few videos
    ]
    chosen = experiment(tmp_path, *overrides)
    uri = asked(chosen, groups=3).manifest_uri
    chosen = chosen.varied({"data.manifest": uri})
    assert probe_experiment(chosen) == 0
    said = capfd.readouterr().out
    assert re.search(r"encoder .*pretrained/\w{16}/encoder\.safetensors", said)
    assert re.search(r"S1: .* \(seen in pretraining\)", said)
    assert probe_experiment(chosen) == 0
    assert "features:" not in capfd.readouterr().out  # neither read nor fitted again
