"""Extraction of a manifest on a cluster: complete, resumable, nothing twice, failures listed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from moving_square import write_manifest, write_video

from kinema import storage
from kinema.errors import KinemaError
from kinema.motion.extractor import MotionConfig
from kinema.motion.flow import DIS
from kinema.motion.store import MotionStore
from kinema.pipelines.extract import extract
from kinema.video.manifest import Manifest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")

CONFIG = MotionConfig(flow=DIS())


def stored_ids(store: MotionStore) -> Counter[str]:
    """How many rows each video has."""
    ids: list[str] = []
    for part in store.parts():
        ids += storage.read_table(part, ["id"]).column("id").to_pylist()
    return Counter(ids)


def part_files(store: MotionStore) -> dict[str, tuple[int, int]]:
    """Inode and time of each part: both stay while a file is not written again."""
    states = {part: os.stat(part) for part in store.parts()}
    return {part: (state.st_ino, state.st_mtime_ns) for part, state in states.items()}


def failures(store: MotionStore) -> dict[str, str]:
    table = storage.read_table(store.failures_uri).to_pylist()
    return {row["id"]: row["why"] for row in table}


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_only_what_is_new_or_changed_is_extracted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_video(tmp_path / f"v{index}.mp4", step=2 + index) for index in range(6)]
    manifest = write_manifest(tmp_path / "manifest.parquet", paths)
    root = str(tmp_path / "root")
    store = extract(manifest, CONFIG, root, only={"v1", "v4"}, num_cpus=1)
    assert stored_ids(store) == Counter(["v1", "v4"])
    assert len(store.open(["v1", "v4"]).boxes("v4").frames) == 7
    assert "2 videos, 0 done before, 2 to do on 1 core" in capsys.readouterr().out
    store = extract(manifest, CONFIG, root, num_cpus=2)
    assert stored_ids(store) == Counter(path.stem for path in paths)
    assert len(store.open(["v0"]).boxes("v0").frames) == 7
    assert "6 videos, 2 done before, 4 to do on 2 cores" in capsys.readouterr().out

    before = part_files(store)
    extract(manifest, CONFIG, root, num_cpus=1)
    assert part_files(store) == before
    assert "6 done before, 0 to do" in capsys.readouterr().out

    boxes = store.open(["v3"]).boxes("v3").boxes
    write_video(paths[3], step=8)  # the same name with other content
    extract(manifest, CONFIG, root, num_cpus=1)
    assert "5 done before, 1 to do on 1 core" in capsys.readouterr().out
    assert stored_ids(store) == Counter(path.stem for path in paths)
    assert not (store.open(["v3"]).boxes("v3").boxes == boxes).all()

    other = extract(manifest, CONFIG.model_copy(update={"std_factor": 2.0}), root, num_cpus=1)
    assert other.uri != store.uri
    assert stored_ids(other) == stored_ids(store)

    (tmp_path / "elsewhere").mkdir()
    namesake = write_video(tmp_path / "elsewhere/v3.mp4", num_frames=5)  # in another data set
    theirs = extract(write_manifest(tmp_path / "other.parquet", [namesake]), CONFIG, root)
    assert len(theirs.open(["v3"]).boxes("v3").frames) == 4
    assert len(store.open(["v3"]).boxes("v3").frames) == 7


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_failures_are_listed_after_the_rest_is_stored(tmp_path: Path) -> None:
    good = [write_video(tmp_path / f"good{index}.mp4") for index in range(3)]
    one_frame = write_video(tmp_path / "single.mp4", num_frames=1)
    text, empty = tmp_path / "text.mp4", tmp_path / "empty.mp4"
    text.write_text("no video")
    empty.write_bytes(b"")
    truncated = tmp_path / "truncated.mp4"
    truncated.write_bytes(good[0].read_bytes()[:600])
    bad = [one_frame, text, empty, truncated, tmp_path / "absent.mp4"]
    manifest = write_manifest(tmp_path / "manifest.parquet", [*good, *bad])
    root = str(tmp_path / "root")
    with pytest.raises(KinemaError, match=r"5 of 8 videos failed.*max_failure_ratio 0.5"):
        extract(manifest, CONFIG, root, num_cpus=1, max_failure_ratio=0.5)
    store = MotionStore(root, CONFIG, Manifest.read(manifest).digest)
    assert stored_ids(store) == Counter(path.stem for path in good)
    listed = failures(store)
    assert listed.keys() == {path.stem for path in bad}
    assert all(listed.values())

    some = {"good0", "text"}  # of all: the others' failures stay, and the share is of all eight
    extract(manifest, CONFIG, root, only=some, num_cpus=1, max_failure_ratio=0.2)
    assert failures(store) == listed

    write_video(tmp_path / "absent.mp4")  # repaired: only failed ones are tried again
    before = part_files(store)
    extract(manifest, CONFIG, root, num_cpus=1, max_failure_ratio=0.5)
    assert failures(store).keys() == {path.stem for path in bad[:-1]}
    assert stored_ids(store) == Counter([*(path.stem for path in good), "absent"])
    assert {part: state for part, state in part_files(store).items() if part in before} == before


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_estimator_that_cannot_work_fails_before_any_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(KinemaError, match="opencv-contrib-python-headless"):
        extract(str(tmp_path / "absent.parquet"), MotionConfig(), str(tmp_path))


_JOB = """
import sys
from kinema.motion.extractor import MotionConfig
from kinema.motion.flow import TVL1
from kinema.pipelines.cluster import connect
from kinema.pipelines.extract import extract
connect(num_cpus=1)
extract(sys.argv[1], MotionConfig(), sys.argv[2])
"""


@pytest.mark.ray
@pytest.mark.slow
def test_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"v{index:02}.mp4") for index in range(10)]
    manifest = write_manifest(tmp_path / "manifest.parquet", paths)
    root = tmp_path / "root"
    store = MotionStore(str(root), MotionConfig())
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-c", _JOB, manifest, str(root)]

    job = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(store.parts()) < 3:
        assert job.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline, "no parts within two minutes"
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    time.sleep(3)  # its workers die with it
    finished, before = stored_ids(store), part_files(store)
    assert 3 <= len(finished) < 10

    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=180, check=True
    )
    assert f"10 videos, {len(finished)} done before, {10 - len(finished)} to do" in done.stdout
    assert stored_ids(store) == Counter(path.stem for path in paths)
    assert {part: state for part, state in part_files(store).items() if part in before} == before
