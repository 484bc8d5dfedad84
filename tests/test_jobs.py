"""Every job's command line: help, dry run, and what a misspelt key gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from job_runner import JOBS, REPOSITORY, call

from kinema.errors import ConfigError, StorageError

CONFIGURED = [job for job in JOBS if job != "demo.py"]  # which hands its arguments on
REQUIRED = {
    "index_videos.py": ["dataset.name=folders", "dataset.source=videos", "output=x.parquet"],
    "convert_weights.py": ["source=a.safetensors", "output=b.safetensors"],
    "index_boxes.py": ["annotation.name=something_else", "files=[a.json]", "output=x.parquet"],
    "compare.py": ["RUN_A", "RUN_B"],
    "combine_epic.py": ["VERB_RUN", "NOUN_RUN"],
}
POSITIONAL = ("compare.py", "combine_epic.py")
"""Jobs that take names of runs in place of a file; their `REQUIRED` is what help calls them."""
WITH_OUTPUT = {*REQUIRED, "prepare_videos.py", "report_videos.py"} - {"combine_epic.py"}


KEEPS = sorted(set(CONFIGURED) - set(REQUIRED) - {"make_synthetic.py", "replay_tracking.py"})
"""Jobs that keep what they make in the storage."""


@pytest.mark.parametrize("job", CONFIGURED)
def test_help_names_the_job_and_every_key(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(job, ["--help"]) == 0
    text = capsys.readouterr().out
    first = " ".join(REQUIRED[job]) if job in POSITIONAL else "[experiment.yaml]"
    assert text.startswith(f"usage: python jobs/{job} {first} [key.path=value ...]")
    assert call(job, [*REQUIRED.get(job, []), "--dry-run"]) == 0
    for key in yaml.safe_load(capsys.readouterr().out):
        assert f"\n  {key}: " in text


@pytest.mark.parametrize("job", CONFIGURED)
def test_misspelt_key_is_told_the_nearest_one(job: str) -> None:
    wrong, right = ("ouptut=x", "output") if job in WITH_OUTPUT else ("seeed=1", "seed")
    if job in ("combine_epic.py", "replay_tracking.py"):
        wrong, right = "storge=x", "storage"
    with pytest.raises(ConfigError, match=f"unknown key '.*'; did you mean '{right}'"):
        call(job, [*REQUIRED.get(job, []), wrong])


ONE_OF_A_SWEEP = ("pretrain", "finetune", "evaluate", "probe", "draw_clips", "boxes_only")


@pytest.mark.parametrize("job", ONE_OF_A_SWEEP)
def test_what_a_variant_sets_cannot_be_given(job: str) -> None:
    row = ["experiments/mofo/table_1.yaml", "variant=VideoMAE", "--dry-run"]
    assert call(f"{job}.py", [*row, "seed=3"]) == 0
    with pytest.raises(ConfigError, match=r"mask\.mask_ratio is set by variant=VideoMAE: leave"):
        call(f"{job}.py", [*row, "mask.mask_ratio=0.5"])


@pytest.mark.parametrize("job", ["sweep.py", "sweep_mask_ratio.py", "sweep_mca.py"])
def test_a_dry_run_of_a_sweep_says_what_the_run_would_refuse(job: str) -> None:
    for wrong in ("mask.mask_ratioo: [0.5]", "mask.mask_ratio: [0.5, 1.5]"):
        with pytest.raises(ConfigError, match=r"mask\.mask_ratio"):
            call(job, [f"sweep.axes={{{wrong}}}", "--dry-run"])
    swept = "sweep.axes={mask.mask_ratio: [0.5]}"
    for given in ("mask.mask_ratio=0.9", "mask={name: tube, mask_ratio: 0.9}"):
        with pytest.raises(ConfigError, match=r"mask\.mask_ratio is swept: give sweep\.axes="):
            call(job, [swept, given, "--dry-run"])


@pytest.mark.parametrize("option", ["--help", "--dry-run"])
def test_the_demo_shows_its_settings_without_a_cluster(option: str) -> None:
    done = subprocess.run(
        [sys.executable, "jobs/demo.py", option],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "inside_ratio" in done.stdout
    assert "dashboard" not in done.stdout + done.stderr


@pytest.mark.parametrize("job", KEEPS)
def test_storage_that_cannot_be_written_is_told_before_any_work(job: str) -> None:
    with pytest.raises(StorageError, match=r"storage root /proc/kinema cannot be written; set "):
        call(job, ["storage=/proc/kinema"])


@pytest.mark.parametrize("job", ["draw_clips.py", "prepare_videos.py", "report_videos.py"])
def test_output_that_cannot_be_written_is_told_before_any_work(job: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"output /proc/kinema cannot be written; give another"):
        call(job, [f"storage={tmp_path}", "output=/proc/kinema"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("job", ["index_videos.py", "index_boxes.py"])
def test_file_that_cannot_be_written_is_told_before_any_work(job: str) -> None:
    with pytest.raises(StorageError, match=r"output /proc/kinema/x\.parquet cannot be written"):
        call(job, [*REQUIRED[job], "output=/proc/kinema/x.parquet"])


def test_error_ends_the_program_with_status_2_and_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "jobs/finetune.py", "mask.mask_ratio=1.5"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "mask.mask_ratio" in done.stderr
    assert "Traceback" not in done.stderr
