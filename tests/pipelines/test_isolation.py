"""One video in a process of its own: what it finds, and what crashes and hangs do."""

from __future__ import annotations

import re
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from moving_square import entry_of, write_video

from kinema.errors import KinemaError, VideoError
from kinema.motion.extractor import MotionConfig
from kinema.motion.flow import DIS, CodecVectors
from kinema.pipelines import isolation
from kinema.pipelines.isolation import Isolated, Packed
from kinema.pipelines.one_video import extract_one, video_digest

CONFIG = MotionConfig(flow=DIS())


def test_boxes_follow_the_square(tmp_path: Path) -> None:
    entry = entry_of(write_video(tmp_path / "a.mp4"))
    row = extract_one(entry, CONFIG)
    assert row.boxes.frames.tolist() == list(range(entry.num_frames - 1))
    assert (row.width, row.height, row.num_frames) == (96, 96, 8)
    centres = (row.boxes.boxes[:, 0] + row.boxes.boxes[:, 2]) / 2
    assert np.nanmean(np.diff(centres)) > 1  # the square moves right by 4 px per frame


def test_codec_vectors_follow_the_square_too(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=12)
    config = MotionConfig(flow=CodecVectors(), std_factor=1.0)
    row = extract_one(entry_of(path, num_frames=12), config)
    assert row.boxes.frames.tolist() == list(range(11))
    centres = (row.boxes.boxes[:, 0] + row.boxes.boxes[:, 2]) / 2
    truth = 8 + 12 + 4 * np.arange(11)  # left edge and half a side
    assert np.nanmedian(np.abs(centres - truth)) < 8
    part = extract_one(entry_of(path, num_frames=12, start_s=0.4), config)
    assert part.boxes.frames.tolist() == [4, 5, 6, 7, 8, 9, 10]
    np.testing.assert_array_equal(part.boxes.boxes, row.boxes.boxes[4:])


def test_trimmed_entry_is_a_part_with_the_same_frame_numbers(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=12)
    whole = extract_one(entry_of(path, num_frames=12), CONFIG)
    part = entry_of(path, num_frames=12, start_s=0.4, end_s=0.9)
    assert part.frame_range() == range(4, 9)
    row = extract_one(part, CONFIG)
    assert row.boxes.frames.tolist() == [4, 5, 6, 7]
    np.testing.assert_array_equal(row.boxes.boxes, whole.boxes.boxes[4:8])


def test_digest_follows_bytes_and_trimming(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    whole = entry_of(path)
    first = video_digest(whole)
    assert video_digest(entry_of(path, start_s=0.0)) != first
    assert video_digest(entry_of(path, start_s=0.1)) != video_digest(entry_of(path, start_s=0.2))
    part = video_digest(entry_of(path, start_s=0.1))
    write_video(path, step=3)
    assert video_digest(whole) != first
    assert video_digest(entry_of(path, start_s=0.1)) != part


@pytest.mark.parametrize(
    "content", [b"", b"this is no video\n" * 100], ids=["zero bytes", "text named mp4"]
)
def test_damaged_video_is_a_video_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=re.escape(str(path))):
        extract_one(entry_of(path), CONFIG)


@pytest.fixture
def extractors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extractors that go wrong, importable in a child process."""
    (tmp_path / "going_wrong.py").write_text(
        textwrap.dedent(
            """
            import os, pathlib, signal, time
            from kinema.pipelines.one_video import extract_one

            def _tries(entry):
                log = pathlib.Path(entry.path + ".tries")
                with log.open("a") as file:
                    file.write("x")
                return log.stat().st_size

            def crash(entry, config):
                _tries(entry)
                os.kill(os.getpid(), signal.SIGSEGV)

            def crash_once(entry, config):
                if _tries(entry) == 1:
                    os.kill(os.getpid(), signal.SIGSEGV)
                return extract_one(entry, config)

            def hang(entry, config):
                if entry.id == "hangs":
                    _tries(entry)
                    time.sleep(600)
                return extract_one(entry, config)

            def bug(entry, config):
                _tries(entry)
                raise ZeroDivisionError("oops")
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("extractors")
def test_crash_costs_its_video_after_one_retry(tmp_path: Path) -> None:
    import going_wrong  # type: ignore[import-not-found]

    entry = entry_of(write_video(tmp_path / "a.mp4"))
    with Isolated(Packed.of(going_wrong.crash, CONFIG), 60) as extractor:
        outcome = extractor.run(entry)
    assert outcome.result is None
    assert outcome.why == "the decoder crashed (SIGSEGV), 2 times"
    assert (tmp_path / "a.mp4.tries").stat().st_size == 2


@pytest.mark.usefixtures("extractors")
def test_crash_that_does_not_repeat_costs_nothing(tmp_path: Path) -> None:
    import going_wrong

    entry = entry_of(write_video(tmp_path / "a.mp4"))
    with Isolated(Packed.of(going_wrong.crash_once, CONFIG), 60) as extractor:
        outcome = extractor.run(entry)
    assert outcome.why is None
    assert outcome.result is not None
    assert outcome.result.boxes.boxes.shape == (7, 4)


@pytest.mark.usefixtures("extractors")
def test_hang_ends_at_the_limit_and_the_next_video_works(tmp_path: Path) -> None:
    import going_wrong

    path = write_video(tmp_path / "a.mp4")
    with Isolated(Packed.of(going_wrong.hang, CONFIG), 60) as extractor:
        assert extractor.run(entry_of(path, id="before")).why is None
        extractor.timeout_s = 1.0
        started = time.monotonic()
        stuck = extractor.run(entry_of(path, id="hangs"))
        assert 2 <= time.monotonic() - started < 15
        extractor.timeout_s = 60
        assert extractor.run(entry_of(path, id="after")).why is None
    assert stuck.why == "took longer than 1 s, 2 times"
    assert (tmp_path / "a.mp4.tries").stat().st_size == 2


@pytest.mark.usefixtures("extractors")
def test_bug_is_named_and_not_retried(tmp_path: Path) -> None:
    import going_wrong

    entry = entry_of(write_video(tmp_path / "a.mp4"))
    with Isolated(Packed.of(going_wrong.bug, CONFIG), 60) as extractor:
        assert extractor.run(entry).why == "ZeroDivisionError: oops"
    assert (tmp_path / "a.mp4.tries").stat().st_size == 1


def test_work_that_cannot_be_imported_is_no_fault_of_a_video(tmp_path: Path) -> None:
    packed: Packed[object] = Packed(b"cno_such_module\nwork\n.")  # a pickled reference to it
    with (
        Isolated(packed, 60) as extractor,
        pytest.raises(KinemaError, match=r"did not start \(exit code 1\)"),
    ):
        extractor.run(entry_of(tmp_path / "a.mp4"))


def test_start_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "START_TIMEOUT_S", 0.01)
    with (
        Isolated(Packed.of(extract_one, CONFIG), 60) as extractor,
        pytest.raises(KinemaError, match=r"did not start \(took longer than 0\.01 s\)"),
    ):
        extractor.run(entry_of(tmp_path / "a.mp4"))
