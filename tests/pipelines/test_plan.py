"""Which trials a sweep has, what they share, and when Ray's record of a run is repaired."""

import json
from pathlib import Path

import pytest

from kinema import storage
from kinema.config import load
from kinema.errors import ConfigError
from kinema.experiment import SweepExperiment, pretrain_key, run_key
from kinema.pipelines.prepare import Prepared
from kinema.pipelines.sweep import check_sweep, plan, shared_pretraining
from kinema.pipelines.train import SNAPSHOT_FILE, bundles, repair_snapshot
from kinema.training.pretrain import ENCODER_FILE
from kinema.trial import pretrained_uri

REPOSITORY = Path(__file__).resolve().parents[2]
RATIO = REPOSITORY / "experiments/demo/sweep_mask_ratio.yaml"
MCA = REPOSITORY / "experiments/demo/sweep_mca.yaml"


def sweep(file: Path, tmp_path: Path, *overrides: str) -> SweepExperiment:
    return load(SweepExperiment, file, [f"storage={tmp_path}", *overrides])


class FakeManifest:
    digest = "0123456789abcdef"


def prepared() -> Prepared:
    return Prepared("manifest.parquet", FakeManifest())  # type: ignore[arg-type]


def test_grid_in_table_order_then_controls(tmp_path: Path) -> None:
    trials = plan(sweep(MCA, tmp_path))
    assert [item.name for item in trials] == [
        "heads=1 depth=1",
        "heads=1 depth=2",
        "heads=3 depth=1",
        "heads=3 depth=2",
        "plain head",
    ]
    assert [item.control for item in trials] == [False] * 4 + [True]
    assert trials[3].experiment.head.heads == 3  # type: ignore[union-attr]


def test_skipped_points_are_left_out(tmp_path: Path) -> None:
    file = REPOSITORY / "experiments/mofo/sweep_mca.yaml"
    names = [item.name for item in plan(sweep(file, tmp_path)) if not item.control]
    assert len(names) == 9  # the nine rows of the paper's table
    assert "heads=3 depth=3" not in names


TABLE = REPOSITORY / "experiments/demo/mgm_table_1.yaml"


def test_variants_at_every_point_of_the_axes(tmp_path: Path) -> None:
    trials = plan(sweep(TABLE, tmp_path))
    named = ["MGM epochs=5", "MGM epochs=10", "VideoMAE epochs=10"]  # VideoMAE at 5 is skipped
    assert [item.name for item in trials] == named
    assert [item.experiment.mask.name for item in trials] == ["mgm", "mgm", "tube"]
    assert [item.experiment.pretrain.epochs for item in trials] == [5, 10, 10]  # type: ignore
    assert trials[2].settings == {"variant": "VideoMAE", "pretrain.epochs": 10}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep={axes: {}, variants: {}, skip: []}", "nothing to vary"),
        ("sweep.skip=[{pretrain.epoch: 5}]", "skip names what is not varied: pretrain.epoch"),
    ],
)
def test_what_cannot_be_planned(override: str, message: str, tmp_path: Path) -> None:
    file = TABLE if "skip=" in override else REPOSITORY / "experiments/demo/base.yaml"
    with pytest.raises(ConfigError, match=message):
        sweep(file, tmp_path, override)


def test_variant_that_is_no_valid_experiment(tmp_path: Path) -> None:
    experiment = sweep(TABLE, tmp_path, "sweep.variants.wrong={mask: {nmae: tube}}")
    with pytest.raises(ConfigError, match=r"did you mean 'mask\.name'"):
        plan(experiment)


def test_what_every_variant_sets_cannot_be_given(tmp_path: Path) -> None:
    variants = "sweep.variants={a: {seed: 1, mask: {mask_ratio: 0.5}}, b: {seed: 2}}"
    experiment = sweep(RATIO, tmp_path, variants)
    check_sweep(experiment, ["sweep.variants.a.seed", "mask.mask_ratio", "seeds"])
    with pytest.raises(ConfigError, match=r"seed is set by every variant: give sweep\.variants="):
        check_sweep(experiment, ["seed"])


def test_random_search_is_a_fixed_part_of_the_grid(tmp_path: Path) -> None:
    overrides = ("sweep.search=random", "sweep.num_samples=2")

    def drawn(*more: str) -> list[str]:
        trials = plan(sweep(MCA, tmp_path, *overrides, *more))
        return [item.name for item in trials if not item.control]

    assert drawn() == drawn()
    assert len(drawn()) == 2
    assert any(drawn(f"seed={seed}") != drawn() for seed in range(1, 6))


def test_unknown_axis_names_the_nearest_key(tmp_path: Path) -> None:
    experiment = sweep(RATIO, tmp_path, "sweep.axes={mask.insde_ratio: [0.5]}")
    with pytest.raises(ConfigError, match="inside_ratio"):
        plan(experiment)


def test_every_ratio_pretrains_and_all_heads_share(tmp_path: Path) -> None:
    ratios = plan(sweep(RATIO, tmp_path))
    assert shared_pretraining(ratios, prepared()) == []
    heads = plan(sweep(MCA, tmp_path))
    (shared,) = shared_pretraining(heads, prepared())
    keys = {pretrain_key(item.experiment, "d") for item in [shared, *heads]}
    assert len(keys) == 1
    assert shared.experiment.finetune is None
    assert len({run_key(item.experiment, "d") for item in [shared, *heads]}) == 6


def test_shared_pretraining_that_exists_is_not_made_again(tmp_path: Path) -> None:
    heads = plan(sweep(MCA, tmp_path))
    folder = pretrained_uri(heads[0].experiment, FakeManifest.digest)
    storage.write_bytes(storage.join(folder, ENCODER_FILE), b"")
    assert shared_pretraining(heads, prepared()) == []


def test_bundles(tmp_path: Path) -> None:
    experiment = sweep(
        RATIO, tmp_path, "compute={num_workers: 2, use_gpu: true, cpus_per_worker: 4}"
    )
    assert bundles(experiment.base()) == [{"CPU": 4.0, "GPU": 1.0}] * 2


def write_checkpoint(run: Path, name: str, parts: int, zero_stage: int, world_size: int) -> None:
    state = run / name / "state"
    state.mkdir(parents=True)
    (state / "mp_rank_00_model_states.pt").touch()
    for rank in range(parts):
        (state / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    meta = {"zero_stage": zero_stage, "world_size": world_size}
    (run / name / "meta.json").write_text(json.dumps(meta))


def test_damaged_snapshot_is_rebuilt_from_complete_checkpoints(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "checkpoint_1", parts=2, zero_stage=1, world_size=2)
    write_checkpoint(tmp_path, "checkpoint_2", parts=1, zero_stage=1, world_size=2)
    (tmp_path / SNAPSHOT_FILE).write_text('{"checkpoint_res')
    repair_snapshot(str(tmp_path))
    record = json.loads((tmp_path / SNAPSHOT_FILE).read_text())
    assert record["latest_checkpoint_result"]["checkpoint_dir_name"] == "checkpoint_1"
    assert len(record["checkpoint_results"]) == 1


def test_snapshot_that_misses_a_folder_is_rebuilt(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "checkpoint_1", parts=0, zero_stage=0, world_size=1)
    names = [{"checkpoint_dir_name": name} for name in ("checkpoint_1", "checkpoint_2")]
    (tmp_path / SNAPSHOT_FILE).write_text(json.dumps({"checkpoint_results": names}))
    repair_snapshot(str(tmp_path))
    record = json.loads((tmp_path / SNAPSHOT_FILE).read_text())
    assert [r["checkpoint_dir_name"] for r in record["checkpoint_results"]] == ["checkpoint_1"]


def test_intact_snapshot_is_left_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "checkpoint_1", parts=0, zero_stage=0, world_size=1)
    text = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}], "x": 1})
    (tmp_path / SNAPSHOT_FILE).write_text(text)
    repair_snapshot(str(tmp_path))
    assert (tmp_path / SNAPSHOT_FILE).read_text() == text


def test_ray_reads_a_rebuilt_snapshot(tmp_path: Path) -> None:
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
        _CheckpointManagerState,
    )

    write_checkpoint(tmp_path, "checkpoint_1", parts=0, zero_stage=0, world_size=1)
    (tmp_path / SNAPSHOT_FILE).write_text("")
    repair_snapshot(str(tmp_path))
    text = (tmp_path / SNAPSHOT_FILE).read_text()
    state = _CheckpointManagerState.model_validate_json(text)
    assert state.latest_checkpoint_result is not None
