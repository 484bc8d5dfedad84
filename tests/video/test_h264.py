from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from kinema.video.h264 import max_references


def extradata(path: Path, **options: str) -> bytes | None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = options.pop("pix_fmt", "yuv420p")
        stream.options = options
        for shade in range(6):
            frame = np.full((48, 64, 3), 40 * shade, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        output.mux(stream.encode(None))
    with av.open(str(path)) as video:
        return video.streams.video[0].codec_context.extradata


@pytest.mark.parametrize("container", ["v.mp4", "v.ts"])
@pytest.mark.parametrize("profile", ["baseline", "main", "high", "high444"])
@pytest.mark.parametrize("references", [1, 2, 5])
def test_the_encoders_number_is_read_back(
    tmp_path: Path, container: str, profile: str, references: int
) -> None:
    pixels = {"pix_fmt": "yuv444p"} if profile == "high444" else {}
    data = extradata(
        tmp_path / container, refs=str(references), profile=profile, bf="0", preset="slow", **pixels
    )
    assert max_references(data) == references


def test_scaling_lists_are_skipped(tmp_path: Path) -> None:
    data = extradata(tmp_path / "v.mp4", refs="4", bf="0", cqm="jvt", profile="high")
    assert max_references(data) == 4


@pytest.mark.parametrize("data", [None, b"", b"\x00\x00\x01\x68\xce"])
def test_nothing_is_claimed_without_parameters(data: bytes | None) -> None:
    assert max_references(data) is None
