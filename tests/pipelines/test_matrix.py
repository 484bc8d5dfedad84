"""The transfer matrix: its cells, what they train and probe, and failures that stay alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kinema import storage
from kinema.config import load
from kinema.errors import ConfigError, KinemaError
from kinema.experiment import Experiment
from kinema.pipelines import direct as direct_module
from kinema.pipelines import prepare as prepare_module
from kinema.pipelines import transfer as transfer_module
from kinema.pipelines.direct import DirectTest, class_labels, run_direct, source_labels
from kinema.pipelines.prepare import prepare_manifest
from kinema.pipelines.readout import Readout
from kinema.pipelines.transfer import TransferStudy, transfer
from kinema.pipelines.transfer_plan import (
    Cell,
    Data,
    Place,
    TransferExperiment,
    build_cell,
    cell_experiment,
    places,
    plan_sources,
)
from kinema.trial import pretrained_uri
from kinema.video.manifest import Manifest

DEMO = Path(__file__).resolve().parents[2] / "experiments/demo/transfer.yaml"
TINY = [
    "model={embed_dim: 16, depth: 1, num_heads: 2}",
    "data.synthetic={num_validation: 0, num_test: 16}",
    "transfer.sources.plain={data.synthetic: {num_train: 32}}",
    "transfer.targets.plain={data.synthetic: {num_train: 32}}",
    "transfer.sources.textured={data.synthetic: {num_train: 32, seed: 1}}",
    "transfer.targets.textured={data.synthetic: {num_train: 32, seed: 1}}",
]


def matrix(root: Path, *overrides: str) -> TransferExperiment:
    return load(TransferExperiment, DEMO, [*TINY, f"storage={root}", *overrides])


def test_the_matrix_is_tracked_with_videos_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source of a given encoder needs none of its own."""
    experiment = matrix(
        tmp_path,
        "data.synthetic=null",
        "transfer.protocols=[knn]",
        "transfer.skip=[]",
        "transfer.sources.plain={data: {synthetic: null}, pretrain: null, encoder: a.safetensors}",
    )
    experiment.require_videos()

    class Asked(Exception):
        pass

    def of(_: Data, asked: Experiment, motion: bool = True) -> None:
        asked.data.require_videos()
        assert asked.data.synthetic is not None
        if asked.data.synthetic.seed == 0:  # the first target's, whose cells fail later and alone
            raise KinemaError("its manifest is damaged")
        raise Asked

    monkeypatch.setattr(transfer_module, "start", lambda _: None)
    monkeypatch.setattr(Data, "of", of)
    with pytest.raises(Asked):
        transfer(experiment)


def test_every_cell_but_the_skipped_ones(tmp_path: Path) -> None:
    cells = places(matrix(tmp_path).transfer)
    assert len(cells) == 3 * 2 * 4 - 2
    assert not [c for c in cells if (c.source, c.protocol) == ("random weights", "direct")]
    assert len({cell.name for cell in cells}) == len(cells)


def test_skip_must_name_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="skip names target 'none'; known: plain, textured"):
        matrix(tmp_path, "transfer.skip=[{target: none}]")
    with pytest.raises(ConfigError, match="skip leaves no cell"):
        matrix(tmp_path, "transfer.skip=[{target: plain}, {target: textured}]")


def test_sources_run_no_more_than_their_cells_need(tmp_path: Path) -> None:
    direct = plan_sources(matrix(tmp_path))
    assert direct["plain"].run is not None
    assert direct["plain"].run.finetune is not None
    assert direct["random weights"].run is None
    plain = plan_sources(matrix(tmp_path, "transfer.protocols=[knn]", "transfer.skip=[]"))
    assert plain["plain"].run is not None
    assert plain["plain"].run.finetune is None
    given = plan_sources(
        matrix(
            tmp_path,
            "transfer.protocols=[knn]",
            "transfer.skip=[]",
            "transfer.sources.plain={pretrain: null, encoder: a.safetensors}",
        )
    )
    assert given["plain"].run is None


def test_cell_is_the_targets_videos_under_the_sources_network(tmp_path: Path) -> None:
    experiment = matrix(
        tmp_path,
        "transfer.sources.plain.model.depth=2",
        "transfer.targets.textured.finetune.epochs=3",
    )
    sources, data = plan_sources(experiment), Data()
    by_name = {place.name: place for place in places(experiment.transfer)}
    cell = build_cell(experiment, by_name["plain to textured, finetune"], sources["plain"], data)
    assert cell.experiment.model.depth == 2
    assert cell.experiment.finetune is not None
    assert cell.experiment.finetune.epochs == 3
    assert cell.experiment.data.synthetic.seed == 1
    assert cell.experiment.pretrain is None
    run = sources["plain"].run
    assert run is not None
    digest = data.of(run).manifest.digest
    pretraining = run.varied({"finetune": None, "head": {"name": "plain"}})
    assert cell.experiment.encoder == f"{pretrained_uri(pretraining, digest)}/encoder.safetensors"
    random = by_name["random weights to plain, linear"]
    assert (
        build_cell(experiment, random, sources["random weights"], data).experiment.encoder is None
    )


def test_a_sources_motion_is_extracted_only_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted: list[object] = []
    monkeypatch.setattr(
        prepare_module, "extract", lambda uri, motion, *more, **options: extracted.append(motion)
    )
    head = "head={name: mca, heads: 2, depth: 1}"  # reads boxes; pretraining's mask does not
    experiment = matrix(tmp_path, head, "mask={name: tube}", "motion={}")
    source, data = plan_sources(experiment)["plain"], Data()
    build_cell(experiment, Place("plain", "textured", "linear"), source, data)
    assert extracted == []
    build_cell(experiment, Place("plain", "textured", "direct"), source, data)
    assert len(extracted) == 2  # of the source's own videos and of the target's


def test_target_that_is_no_valid_experiment(tmp_path: Path) -> None:
    experiment = matrix(tmp_path, "transfer.targets.plain={finetune: {epoch: 3}}")
    place = places(experiment.transfer)[0]
    with pytest.raises(ConfigError, match=r"did you mean 'finetune\.epochs'"):
        cell_experiment(experiment, place, plan_sources(experiment)["plain"], None)


def named(manifest: Manifest, names: list[str | None]) -> Manifest:
    """The videos of these classes alone, labels in the order of the names."""
    table = manifest.table
    rows = [i for i, name in enumerate(table["label_name"].to_pylist()) if name in names]
    part = table.take(pa.array(rows))
    labels = pa.array([names.index(n) for n in part["label_name"].to_pylist()], pa.int32())
    return Manifest(part.set_column(part.column_names.index("label"), "label", labels))


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    source = Manifest.read(prepare_manifest(matrix(tmp_path, "data.synthetic.num_train=32")))
    known = class_labels(source, "source")
    target = named(source, ["up", "left", "right"])
    mapped = source_labels(source, target)
    assert mapped.tolist() == [known["up"], known["left"], known["right"]]
    with pytest.raises(ConfigError, match="the source has no class down"):
        source_labels(target, source)
    table = source.table
    place = table.column_names.index("label_name")
    nameless = Manifest(table.set_column(place, "label_name", pa.nulls(len(table), pa.string())))
    with pytest.raises(ConfigError, match="classes are matched by name"):
        class_labels(nameless, "target")


def test_trainings_that_cannot_run_side_by_side_are_told_at_once(tmp_path: Path) -> None:
    for part in ("sources", "targets"):
        experiment = matrix(tmp_path, f"transfer.{part}.textured.compute.num_workers=3")
        with pytest.raises(ConfigError, match="give all the same compute"):
            transfer(experiment)


@pytest.mark.parametrize(("comparable", "done"), [(True, True), (False, False), (None, False)])
def test_a_cell_that_lacks_videos_is_not_done(
    comparable: bool | None, done: bool, tmp_path: Path
) -> None:
    result = None if comparable is None else {"comparable": comparable}
    test: Any = SimpleNamespace(result=lambda: result)
    study = TransferStudy.__new__(TransferStudy)  # no cluster, so no tracker
    assert study.is_done(Cell("a", {}, matrix(tmp_path), test=test)) is done


def test_direct_test_is_repeated_until_every_video_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = matrix(tmp_path)
    place = next(p for p in places(experiment.transfer) if p.protocol == "direct")
    cell = build_cell(experiment, place, plan_sources(experiment)[place.source], Data())
    assert isinstance(cell.test, DirectTest)
    assert cell.test.readout.weights is not None
    storage.write_bytes(cell.test.readout.weights, b"a classifier")
    lost = [16, 1, 0]  # videos that fail, asked for the first time, the second and the third

    def read(name, uri, entries, *settings):  # type: ignore[no-untyped-def]
        number = lost.pop(0)
        kept = entries[number:]
        failures = {entry.id: "it is broken" for entry in entries[:number]}
        return Readout(kept, np.zeros((len(kept), 1, 8), np.float32), failures)

    monkeypatch.setattr(direct_module, "read_out", read)
    with pytest.raises(KinemaError, match=r"none of 16 videos could be read, .*: it is broken"):
        run_direct(cell.test)
    assert not run_direct(cell.test)["comparable"]
    assert run_direct(cell.test)["num_tested"] == 16
    assert run_direct(cell.test)["comparable"]
    assert not lost


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_a_source_that_fails_ends_no_other_cell(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    experiment = matrix(
        tmp_path,
        "pretrain.epochs=1",
        "pretrain.optim.warmup_epochs=0",
        "pretrain.decoder={embed_dim: 16, depth: 1, num_heads: 2}",
        "finetune={epochs: 1, optim: {warmup_epochs: 0}}",
        "transfer.protocols=[linear, direct]",
        "transfer.skip=[{target: textured}, {source: random weights}]",
        "transfer.sources.textured.pretrain=null",
        "transfer.sources.textured.encoder=/nowhere/encoder.safetensors",
        "compute.max_failures=0",
        "reading.num_cpus=1",  # to start more actors takes longer than so few videos
    )
    assert transfer(experiment) == 1
    said = capfd.readouterr().out
    (folder,) = (tmp_path / "transfers").iterdir()
    lines = (folder / "transfer.csv").read_text().splitlines()
    done = [line for line in lines if ",done," in line]
    failed = [line for line in lines if line.startswith("textured,plain")]
    assert len(done) == 2  # plain by two protocols
    assert len(failed) == 2
    assert all(",failed," in line for line in failed)
    assert "/nowhere/encoder.safetensors" in said
    assert (folder / "transfer.png").stat().st_size > 10_000
    capfd.readouterr()
    assert transfer(experiment) == 1
    assert "2 of 2 trials are done" in capfd.readouterr().out  # what has a result is found
