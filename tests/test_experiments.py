"""Every table and figure: the paper's file has its variants, and its demo twin runs to the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from in_process import without_cluster
from learning import Silent

from kinema import storage
from kinema.config import load
from kinema.errors import ConfigError
from kinema.experiment import Experiment, SweepExperiment, pretrain_key, run_key
from kinema.motion.annotated import located
from kinema.motion.parts import row_digest
from kinema.motion.store import MotionStore
from kinema.pipelines.direct import DirectTest, run_direct
from kinema.pipelines.one_video import extract_one
from kinema.pipelines.prepare import Prepared, prepare_manifest
from kinema.pipelines.probe import Asked, probe
from kinema.pipelines.sweep import plan
from kinema.pipelines.transfer_plan import (
    Data,
    TransferExperiment,
    build_cell,
    cell_experiment,
    places,
    plan_sources,
)
from kinema.trial import run_stages
from kinema.video.manifest import Manifest

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
PAPERS = ("mofo", "mgm", "mme", "videomae")
FILES = sorted(file for paper in PAPERS for file in EXPERIMENTS.glob(f"{paper}/*.yaml"))
SWEEPS = [file for file in FILES if "\nsweep:" in file.read_text()]
TRANSFERS = [file for file in FILES if "\ntransfer:" in file.read_text()]
TWINS = [file for file in sorted(EXPERIMENTS.glob("demo/*.yaml")) if file.stem.startswith(PAPERS)]
TINY = [
    "data.synthetic={num_train: 16, num_validation: 8, num_test: 8}",
    "pretrain.optim.warmup_epochs=0",
    "pretrain.engine={global_batch_size: 8, micro_batch_size: 8}",
    "finetune.epochs=1",
    "finetune.optim.warmup_epochs=0",
    "finetune.engine={global_batch_size: 8, micro_batch_size: 8}",
]
MATRICES = [file for file in TWINS if "\ntransfer:" in file.read_text()]
SWEEP_TWINS = [file for file in TWINS if file not in MATRICES]
ENCODER = ["encoder=encoder.safetensors"]
"""What a file that only finetunes is given on its command line."""


def sweep(file: Path, *overrides: str) -> SweepExperiment:
    return load(SweepExperiment, file, overrides)


def paper_file(twin: Path) -> Path:
    """The file of real size that a twin is laid over."""
    return (twin.parent / yaml.safe_load(twin.read_text())["base"][0]).resolve()


def experiments(file: Path) -> list[Experiment]:
    """All runs that a file describes."""
    if file in SWEEPS:
        return [item.experiment for item in plan(sweep(file))]
    if file in TRANSFERS:
        whole = load(TransferExperiment, file)
        sources = plan_sources(whole)
        cells = places(whole.transfer)
        tested = [cell_experiment(whole, cell, sources[cell.source], None) for cell in cells]
        return [*(source.experiment for source in sources.values()), *tested]
    finetunes_only = "encoder=" in file.read_text() and "transfer" in file.stem
    return [load(Experiment, file, ENCODER if finetunes_only else [])]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_files_of_the_papers_have_real_size(file: Path) -> None:
    """ViT-B or another size of the papers, 224 x 224, 16 frames, on GPUs."""
    for chosen in experiments(file):
        assert chosen.model.size in ("vit_s", "vit_b", "vit_l", "mvit_v2_s")
        assert (chosen.model.image_size, chosen.model.num_frames) == (224, 16)
        assert chosen.compute.use_gpu
        assert chosen.data.selection == "official"
        assert chosen.paper


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_no_paper_is_run_on_synthetic_clips(file: Path) -> None:
    if file in TRANSFERS:
        with pytest.raises(ConfigError, match=r"transfer\.\w+\..*\.data\.manifest: null; name"):
            load(TransferExperiment, file).require_videos()
    for chosen in experiments(file):
        with pytest.raises(ConfigError, match=r"data\.manifest: null; name the manifest of your"):
            prepare_manifest(chosen)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_no_two_variants_are_the_same_run(file: Path) -> None:
    trials = plan(sweep(file))
    assert len({run_key(item.experiment, "digest") for item in trials}) == len(trials)


def test_every_sweep_has_a_twin_with_its_variants() -> None:
    twins = {paper_file(twin): twin for twin in SWEEP_TWINS}
    grids = {"sweep_inside_ratio.yaml", "sweep_mca.yaml"}  # demo/sweep_*.yaml, run by other tests
    assert {file.resolve() for file in SWEEPS if file.name not in grids} == set(twins)
    for file, twin in twins.items():
        ours, theirs = sweep(file).sweep, sweep(twin).sweep
        assert list(ours.variants) == list(theirs.variants)
        assert set(ours.axes) <= set(theirs.axes)


def test_every_matrix_has_a_twin_with_its_cells() -> None:
    twins = {paper_file(twin): twin for twin in MATRICES}
    assert {file.resolve() for file in TRANSFERS} == set(twins)
    for file, twin in twins.items():
        ours, theirs = (load(TransferExperiment, one).transfer for one in (file, twin))
        assert places(ours) == places(theirs)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiments")


def extract_motion(experiment: Experiment, manifest_uri: str) -> None:
    """What `extract` does, without a cluster."""
    if experiment.motion is None:
        return
    manifest = Manifest.read(manifest_uri)
    store = MotionStore(experiment.root, experiment.motion, manifest.digest)
    if storage.exists(store.index_uri):
        return
    config = located(experiment.motion, manifest_uri)
    rows = [extract_one(entry, config) for entry in manifest.rows()]
    store.write_part(rows, manifest.digest)
    store.write_index({row.id: row_digest(row.video_digest, experiment.motion) for row in rows})


@pytest.mark.parametrize("twin", SWEEP_TWINS, ids=lambda file: file.stem)
def test_every_variant_pretrains_finetunes_and_is_tested(twin: Path, root: Path) -> None:
    epochs = [] if "pretrain.epochs" in twin.read_text() else ["pretrain.epochs=1"]
    trials = plan(sweep(twin, f"storage={root}", *TINY, *epochs))
    losses = {}
    for item in trials:
        manifest_uri = prepare_manifest(item.experiment)
        extract_motion(item.experiment, manifest_uri)
        outcome = run_stages(item.experiment, manifest_uri, Silent())
        assert outcome["num_tested"] == 8
        assert outcome["pretrain"]["mask/realised_ratio"] > 0
        assert np.isfinite(outcome["pretrain"]["pretrain/loss"])
        key = pretrain_key(item.experiment, Manifest.read(manifest_uri).digest)
        losses[key] = outcome["pretrain"]["pretrain/loss"]
    # Variants of pretraining do differ in what they compute.
    assert len(set(losses.values())) == len(losses)


@pytest.mark.parametrize("twin", MATRICES, ids=lambda file: file.stem)
def test_every_cell_of_a_matrix_has_a_result(
    twin: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cluster(monkeypatch)
    tiny = [*TINY, "pretrain.epochs=1"]
    if "pretrain: null" in twin.read_text():
        tiny = [item for item in tiny if not item.startswith("pretrain.")]
    whole = load(TransferExperiment, twin, [f"storage={root}", *tiny])
    sources = plan_sources(whole)
    for source in sources.values():
        if source.run is not None:
            uri = prepare_manifest(source.run)
            extract_motion(source.run, uri)
            run_stages(source.run, uri, Silent())
    for place in places(whole.transfer):
        data = OnThisMachine()
        cell = build_cell(whole, place, sources[place.source], data)
        assert cell.prepared is not None
        if isinstance(cell.test, Asked):
            outcome = probe(cell.test)
        elif isinstance(cell.test, DirectTest):
            outcome = run_direct(cell.test)
        else:
            outcome = run_stages(cell.experiment, cell.prepared.manifest_uri, Silent())
        assert outcome["num_tested"] == 8
        assert outcome["comparable"]


class OnThisMachine(Data):
    """Manifests alone: motion is extracted by `extract_motion`."""

    def of(self, experiment: Experiment, motion: bool = True) -> Prepared:
        return super().of(experiment, motion=False)
