"""The settings of a run: what is refused, and what names a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinema.config import load
from kinema.errors import ConfigError, StorageError
from kinema.experiment import AnyExperiment, Experiment, SweepExperiment, pretrain_key, run_key
from kinema.pipelines.sweep import plan

REPOSITORY = Path(__file__).resolve().parents[1]
EXPERIMENTS = REPOSITORY / "experiments"
DEMO = EXPERIMENTS / "demo/base.yaml"
MOTION_BOX = "mask={name: motion_box}"


def demo(*overrides: str) -> Experiment:
    return load(Experiment, DEMO, list(overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["mask.mask_ration=0.5"],
            r"unknown key 'mask.mask_ration'; did you mean 'mask.mask_ratio'",
        ),
        (["finetune.epoch=3"], r"unknown key 'finetune.epoch'; did you mean 'finetune.epochs'"),
        (["mask.name=tubes"], r"mask.*tubes.*tube.*motion_box"),
        (["motion.flow={name: raft}"], r"motion.flow.*raft.*tvl1.*dis.*farneback"),
        (["pretrain.epochs=many"], r"pretrain.epochs should be a valid integer.*many"),
        (["pretrain.epochs=0"], r"pretrain.epochs should be greater than 0"),
        (
            ["pretrain.epochs=1"],
            r"pretrain.optim.warmup_epochs 2 leaves nothing of pretrain.epochs 1: lower it",
        ),
        (
            ["finetune.optim.warmup_epochs=4"],
            r"finetune.optim.warmup_epochs 4 leaves nothing of finetune.epochs 4: .*train longer",
        ),
        (["mask.mask_ratio=1.5"], r"mask.mask_ratio should be less than or equal to 1"),
        (["mask.mask_ratio=-0.1"], r"mask.mask_ratio should be greater than or equal to 0"),
        (
            [MOTION_BOX, "mask.inside_ratio=1.01"],
            r"mask.inside_ratio should be less than or equal to 1",
        ),
        (["mask.mask_ratio=1"], r"mask.mask_ratio: 1.0 leaves none visible of the 144 tokens"),
        (["mask.mask_ratio=0.01"], r"mask.mask_ratio: 0.01 hides none"),
        (["model.image_size=50"], r"model: .*50.*8"),
        (["model.num_frames=7"], r"model: .*7.*2"),
        (["model.num_heads=5"], r"model: .*96.*5"),
        (
            ["head={name: mca, heads: 5, head_dim: split}"],
            r"head.heads: 5 does not divide embed_dim 96",
        ),
        ([MOTION_BOX, "motion=null"], r"mask.name=motion_box reads motion boxes"),
        (["head={name: mca}", "motion=null"], r"head.name=mca reads motion boxes"),
        (["encoder=e.safetensors"], r"either encoder or pretrain, not both"),
        (["pretrain=null", "finetune=null"], r"nothing to do"),
        (["pretrain.engine.micro_batch_size=5"], r"global_batch_size 16 is not a multiple of"),
        (["finetune.label_share=0"], r"finetune.label_share should be greater than 0"),
        (["motion.flow={name: vectors}"], r"flow vectors link neighbouring frames"),
        (["data.synthetic.speed=[9, 12]"], r"speed: .*leaves the frame"),
    ],
)
def test_bad_setting_is_one_error_that_names_it(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"1 problem\n.*{message}"):
        demo(*overrides)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        demo("mask.mask_ratio=1", "head={name: mca, heads: 5, head_dim: split}", "motion=null")
    text = str(caught.value)
    assert "leaves none visible" in text
    assert "head.name=mca reads motion boxes" in text
    assert "96" in text


def test_sweep_axis_must_be_a_setting() -> None:
    from kinema.pipelines.sweep import plan

    file = REPOSITORY / "experiments/demo/sweep_mask_ratio.yaml"
    wrong = load(SweepExperiment, file, ["sweep.axes={mask.inside_ration: [0.5]}"])
    with pytest.raises(ConfigError, match=r"mask.inside_ration'; did you mean 'mask.inside_ratio'"):
        plan(wrong)
    beyond = load(SweepExperiment, file, ["sweep.axes={mask.inside_ratio: [0.5, 1.5]}"])
    with pytest.raises(ConfigError, match=r"mask.inside_ratio should be less than or equal to 1"):
        plan(beyond)


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "loader.num_workers=2",
        "compute.num_workers=4",
        "storage=/elsewhere",
        "pretrain.checkpoint_every=3",
        "finetune.log_every=3",
        "evaluation.micro_batch_size=3",
    ],
)
def test_what_changes_no_result_changes_no_key(override: str) -> None:
    assert run_key(demo(override), "m") == run_key(demo(), "m")
    assert pretrain_key(demo(override), "m") == pretrain_key(demo(), "m")


@pytest.mark.parametrize(
    ("override", "pretraining"),
    [
        ("seed=1", True),
        ("mask.mask_ratio=0.5", True),
        ("model.depth=3", True),
        ("target.norm=joint", True),
        ("pretrain.epochs=11", True),
        ("finetune.epochs=50", False),
        ("head={name: mca}", False),
        ("evaluation.num_clips=2", False),
        ("motion.sigma=0.05", False),  # the tube mask reads no motion
    ],
)
def test_what_changes_a_result_changes_its_key(override: str, pretraining: bool) -> None:
    assert run_key(demo(override), "m") != run_key(demo(), "m")
    assert (pretrain_key(demo(override), "m") != pretrain_key(demo(), "m")) is pretraining


def test_data_and_motion_under_a_motion_mask_change_the_keys() -> None:
    assert run_key(demo(), "m") != run_key(demo(), "n")
    one, other = demo(MOTION_BOX), demo(MOTION_BOX, "motion.sigma=0.05")
    assert pretrain_key(one, "m") != pretrain_key(other, "m")


def test_what_motion_is_made_of_changes_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, manifest = tmp_path / "boxes.parquet", tmp_path / "manifest.parquet"
    settings = f"data.manifest={manifest}", "motion={flow: {name: annotated}}", MOTION_BOX
    experiment = demo(*settings)
    boxes.write_bytes(b"one")
    keys = [pretrain_key(experiment, "m"), run_key(experiment, "m")]
    assert keys == [pretrain_key(experiment, "m"), run_key(experiment, "m")]
    boxes.write_bytes(b"two")
    changed = [pretrain_key(experiment, "m"), run_key(experiment, "m")]
    assert not set(keys) & set(changed)
    monkeypatch.setattr("kinema.experiment.EXTRACTOR_VERSION", 999)
    assert not {pretrain_key(experiment, "m"), run_key(experiment, "m")} & set(changed)
    boxes.unlink()
    with pytest.raises(StorageError, match=r"boxes\.parquet does not exist"):
        run_key(experiment, "m")


def test_workers_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = demo("storage=here", "data.manifest=a.parquet").resolved()
    assert found.storage == str(tmp_path / "here")
    assert found.data.manifest == str(tmp_path / "a.parquet")


def test_a_job_takes_one_variant_of_a_sweep() -> None:
    file = EXPERIMENTS / "real/iri_systems.yaml"
    given = ["data.manifest=iri.parquet", "storage=root"]
    trials = {item.name: item.experiment for item in plan(load(SweepExperiment, file, given))}
    for name, trial in trials.items():
        chosen = load(AnyExperiment, file, [*given, f"variant={name}"]).resolved()
        assert run_key(chosen, "digest") == run_key(trial, "digest")
        alone = load(AnyExperiment, file, [*given, f"variant={name}"]).plain()
        assert type(alone) is Experiment
        assert alone == trial.model_copy(update={"name": alone.name})
        assert chosen.label == name
    chosen = load(AnyExperiment, file, [*given, "variant=MOFO"])
    chosen.check_given(["variant", "storage", "model.depth"])
    for key in ("mask", "mask.name", "mask.name.x"):
        with pytest.raises(ConfigError, match=rf"{key} is set by variant=MOFO: leave one"):
            chosen.check_given(["seed", key])
    base = load(AnyExperiment, file, given).resolved()
    base.check_given(["mask.name"])
    assert base.mask.name == "tube"
    with pytest.raises(ConfigError, match=r"variant: unknown 'MGN'; known: VideoMAE, MOFO, MGM"):
        load(AnyExperiment, file, [*given, "variant=MGN"])
    with pytest.raises(ConfigError, match="the experiment has no variants"):
        load(AnyExperiment, EXPERIMENTS / "demo/base.yaml", ["variant=MGM"])


def test_a_given_encoder_counts_by_its_content(tmp_path: Path) -> None:
    def key(name: str, content: bytes) -> str:
        file = tmp_path / name
        file.write_bytes(content)
        return run_key(demo("pretrain=null", f"encoder={file}"), "m")

    first = key("a.safetensors", b"one")
    assert key("b.safetensors", b"one") == first
    assert key("a.safetensors", b"two") != first
    with pytest.raises(StorageError, match=r"absent\.safetensors"):
        run_key(demo("pretrain=null", f"encoder={tmp_path}/absent.safetensors"), "m")
