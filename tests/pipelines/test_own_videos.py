"""From a folder of clips to a sweep, as docs/datasets.md says, in its own five commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from job_runner import REPOSITORY, call

from kinema import storage
from kinema.video.manifest import Manifest
from kinema.video.synthetic import SyntheticConfig, make

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data"),
]

SECTION = re.compile(r"## From a folder of clips to a sweep\n.*?```bash\n(.*?)```", re.DOTALL)
SMALLER = {
    "draw_clips.py": ["num_clips=1"],
    "evaluate.py": ["reading.num_cpus=1"],
    "sweep_mask_ratio.py": ["sweep.axes={mask.inside_ratio: [0.5]}", "sweep.controls={}"],
}
"""What makes the commands short: fewer trials and fewer epochs, everything else is as written."""
TRAINING = [
    "pretrain.epochs=1",
    "pretrain.optim.warmup_epochs=0",
    "finetune.epochs=1",
    "finetune.optim.warmup_epochs=0",
]


def commands() -> list[list[str]]:
    """Job and arguments of the five commands."""
    found = SECTION.search((REPOSITORY / "docs/datasets.md").read_text())
    assert found is not None
    return [shlex.split(line.removeprefix("python jobs/")) for line in found[1].splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `videos/<class>/<clip>.mp4` in it, and a storage of its own."""
    config = SyntheticConfig(num_train=64, num_validation=0, num_test=0)
    manifest = Manifest.read(make(config, str(tmp_path / "made")))
    for row in manifest.table.to_pylist():
        target = tmp_path / "videos" / row["label_name"] / Path(row["path"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(row["path"]).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINEMA_STORAGE", str(tmp_path / "storage"))
    # commands name experiments as seen from the repository's root
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    return tmp_path


@pytest.mark.timeout(500)
def test_five_commands_lead_to_a_sweep(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = commands()
    assert len(jobs) == 5
    for job, *arguments in jobs:
        smaller = [*SMALLER.get(job, []), *(TRAINING if "experiments/" in arguments[0] else [])]
        assert call(job, [*arguments, *smaller]) in (0, None), job
    printed = capsys.readouterr().out
    manifest = Manifest.read(str(folder / "videos.parquet"))
    assert (len(manifest.select("train")), len(manifest.select("test"))) == (48, 16)
    assert manifest.num_classes == 8
    assert (folder / "pictures/000.png").stat().st_size > 10_000
    assert "motion: 1 video, 0 done before, 1 to do" in printed  # the drawn clip
    assert "motion: 64 videos, 1 done before, 63 to do" in printed
    assert "coverage    1.000" in printed
    results = {
        kind: [storage.read_json(str(uri)) for uri in folder.glob(f"storage/{kind}/*/result.json")]
        for kind in ("runs", "evaluations")
    }
    (swept,) = results["runs"]
    (again,) = results["evaluations"]
    assert swept["metrics"]["test/top1"] == again["metrics"]["test/top1"]
    assert list(folder.glob("storage/sweeps/*/accuracy_by_inside_ratio.png"))
