"""Frames by number out of every kind of file, however it must be sought, turned or refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import fsspec
import numpy as np
import pytest
from av.codec.context import Flags2

from kinema.errors import VideoError
from kinema.video import container, decode, timeline

REAL_DATA = Path(
    os.environ.get("KINEMA_REAL_DATA", Path(__file__).parents[2].parent / "shared" / "data")
)
CLIPS = REAL_DATA / "clips"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no real clips in {CLIPS}")

LONG = {"g": "12", "bf": "3", "keyint_min": "12", "sc_threshold": "0", "crf": "20"}


def drawing(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame that tells its number: 7 grey bars, one per bit, above a moving texture."""
    frame = np.random.default_rng(0).integers(60, 190, (height, width * 3, 3)).astype(np.uint8)
    frame = cv2.GaussianBlur(frame, (0, 0), 2)[:, index % width : index % width + width].copy()
    for bit in range(7):
        frame[:16, bit * 9 : bit * 9 + 9] = 235 if index >> bit & 1 else 20
    return frame


def number(frame: np.ndarray) -> int:
    """The number that a frame tells."""
    return sum(int(frame[4:12, bit * 9 + 3 : bit * 9 + 6].mean() > 127) << bit for bit in range(7))


def write(
    path: Path,
    num_frames: int = 30,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    size: tuple[int, int] = (48, 64),
    rotation: int | None = None,
    pix_fmt: str = "yuv420p",
) -> Path:
    """A video of `drawing`s at 25 fps, or at `times` in hundredths of a second."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(drawing(index, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 100)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def every_frame(path: Path) -> np.ndarray:
    """What a plain decoder gives, from first to last."""
    with av.open(str(path), metadata_errors="ignore") as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def stored_vectors(path: Path, index: int) -> np.ndarray:
    """The motion vectors of a frame as FFmpeg gives them."""
    with av.open(str(path)) as file:
        file.streams.video[0].codec_context.flags2 |= Flags2.export_mvs
        frames = list(file.decode(video=0))
        return frames[index].side_data.get("MOTION_VECTORS").to_ndarray().copy()


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 frames in 9 groups of pictures, with B-frames."""
    return write(tmp_path_factory.mktemp("long") / "long.mp4", 100, options=LONG)


def test_probe_measures(long_video: Path) -> None:
    info = decode.probe(str(long_video))
    assert info == decode.VideoInfo(64, 48, 100, 25.0, "h264", 0, 4.0)
    assert decode.probe(str(long_video), decode=False) == info


def test_frames_come_in_order_of_presentation(long_video: Path) -> None:
    assert [number(frame) for frame in decode.read_frames(str(long_video))] == list(range(100))


@pytest.mark.parametrize(
    "indices",
    [[0], [99], [50, 51, 52], [5, 40, 41, 98], [98, 3, 3, 60, 3], [11, 12, 13], list(range(100))],
    ids=str,
)
def test_sought_frames_equal_those_of_a_full_decode(long_video: Path, indices: list[int]) -> None:
    expected = every_frame(long_video)[indices]
    np.testing.assert_array_equal(decode.read_frames(str(long_video), indices), expected)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_every_single_frame_can_be_sought(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"video.{suffix}", 40, options=LONG)
    for index in range(40):
        assert number(decode.read_frames(str(path), [index])[0]) == index


def test_late_frames_are_not_decoded_from_the_start(
    long_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0
    plain = container._frames

    def counting(packets):
        nonlocal decoded
        for frame in plain(packets):
            decoded += 1
            yield frame

    monkeypatch.setattr(container, "_frames", counting)
    decode.read_frames(str(long_video), [2, 90])
    assert decoded < 30


def test_open_groups_and_recovery_points(tmp_path: Path) -> None:
    open_gop = {**LONG, "x264-params": "open-gop=1"}
    refresh = {"g": "12", "crf": "20", "x264-params": "intra-refresh=1:bframes=0"}
    for name, options in (("open", open_gop), ("refresh", refresh)):
        path = write(tmp_path / f"{name}.mp4", 60, options=options)
        expected = every_frame(path)
        for index in (13, 25, 30, 59):
            found = decode.read_frames(str(path), [index])[0]
            np.testing.assert_array_equal(found, expected[index], err_msg=f"{name} {index}")


def test_a_seek_that_misses_is_repeated_from_the_start(
    long_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = timeline.read_timeline

    def late_seeks(packets):
        found = plain(packets)
        return timeline.Timeline(found.times, found.key_times, found.key_seeks + 10**6)

    monkeypatch.setattr(container, "read_timeline", late_seeks)
    assert [number(f) for f in decode.read_frames(str(long_video), [20, 70])] == [20, 70]


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("mpeg4", "avi"), ("mpeg4", "mp4"), ("libvpx-vp9", "webm"), ("mjpeg", "avi"), ("flv", "flv")],
)
def test_other_codecs_and_containers(tmp_path: Path, codec: str, suffix: str) -> None:
    options = {"b": "2000k"} | ({"bf": "2"} if codec == "mpeg4" else {})
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write(tmp_path / f"v.{suffix}", 30, codec, options, pix_fmt=pix_fmt)
    info = decode.probe(str(path))
    assert (info.num_frames, info.fps) == (30, 25.0)
    assert [number(f) for f in decode.read_frames(str(path))] == list(range(30))
    assert [number(f) for f in decode.read_frames(str(path), [29, 7, 7])] == [29, 7, 7]


def remux(source: Path, target: Path, edit: Callable[[av.Packet, int], av.Packet | None]) -> Path:
    """Copy the packets of a video, each as `edit` of it and its number returns it."""
    with av.open(str(source)) as read, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        for count, packet in enumerate(packets):
            edited = edit(packet, count)
            if edited is not None:
                edited.stream = stream
                output.mux(edited)
    return target


def test_invisible_pictures_of_vp8_are_not_counted(tmp_path: Path) -> None:
    def hide(packet: av.Packet, count: int) -> av.Packet:
        if count not in (5, 31):
            return packet
        data = bytearray(bytes(packet))
        data[0] &= ~0x10  # "show_frame" of the frame's tag
        hidden = av.Packet(bytes(data))
        hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
        return hidden

    path = write(tmp_path / "plain.webm", 60, "libvpx", {"b": "2000k"})
    path = remux(path, tmp_path / "v.webm", hide)
    assert decode.probe(str(path)).num_frames == len(every_frame(path)) == 58
    assert number(decode.read_frames(str(path), [50])[0]) == 52


def test_pictures_before_the_first_key_frame_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.mkv", 48, options={**LONG, "x264-params": "open-gop=1"})
    path = remux(path, tmp_path / "v.mkv", lambda packet, count: packet if count >= 6 else None)
    numbers = [number(frame) for frame in decode.read_frames(str(path))]
    assert numbers[-1] == 47
    assert numbers == list(range(numbers[0], 48))
    assert decode.probe(str(path)).num_frames == len(numbers)


def test_uneven_frame_times(tmp_path: Path) -> None:
    times = [0, 4, 5, 30, 31, 100, 104, 110, 111, 190]
    path = write(tmp_path / "vfr.mkv", 10, times=times)
    info = decode.probe(str(path))
    assert info.num_frames == 10
    assert info.fps == pytest.approx(9 / 1.9, rel=0.01)
    assert [number(f) for f in decode.read_frames(str(path), [9, 4, 5])] == [9, 4, 5]


def test_frames_cut_by_an_edit_list_do_not_count(tmp_path: Path) -> None:
    source = write(tmp_path / "whole.mp4", 30, options={"g": "30", "bf": "0"})

    def earlier(packet: av.Packet, count: int) -> av.Packet:
        shift = round(10 / 25 / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packet

    path = remux(source, tmp_path / "edited.mp4", earlier)
    assert decode.probe(str(path)).num_frames == 20
    assert [number(f) for f in decode.read_frames(str(path), [0, 7, 19])] == [10, 17, 29]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_applied_to_frames_and_vectors(tmp_path: Path, rotation: int) -> None:
    path = write(
        tmp_path / "r.mp4", 12, rotation=rotation or None, options={"bf": "0", "refs": "1"}
    )
    turned = decode.read_frames(str(path), [5])[0]
    upright = np.rot90(every_frame(path)[5], rotation // 90)  # set_display_rotation: anticlockwise
    np.testing.assert_array_equal(turned, upright)
    info = decode.probe(str(path))
    assert (info.height, info.width) == turned.shape[:2]
    assert info.rotation == -rotation % 360
    _, vectors = decode.read_frames_and_vectors(str(path), [5])
    (rows,) = (moved.rows for moved in vectors if moved.index == 5)
    centres = np.stack([rows["dst_x"], rows["dst_y"]], 1) - [info.width / 2, info.height / 2]
    turn = np.array([[0, -1], [1, 0]])  # anticlockwise, seen with y down: row vectors
    stored = stored_vectors(path, 5)
    from_centre = np.stack([stored["dst_x"], stored["dst_y"]], 1) - [32, 24]
    np.testing.assert_allclose(centres, from_centre @ np.linalg.matrix_power(turn, rotation // 90))
    side = ("w", "h") if rotation % 180 == 0 else ("h", "w")
    np.testing.assert_array_equal(rows[side[0]], stored["w"])
    np.testing.assert_array_equal(rows[side[1]], stored["h"])
    # The texture moves 1 px to the left, so each block points 1 px right to where it came from.
    motion = np.stack([rows["motion_x"], rows["motion_y"]], 1) / rows["motion_scale"][0]
    expected = {0: (1, 0), 90: (0, -1), 180: (-1, 0), 270: (0, 1)}[rotation]
    np.testing.assert_allclose(np.median(motion, axis=0), expected, atol=0.26)


def test_mirrored_display(tmp_path: Path) -> None:
    path = tmp_path / "m.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(0, hflip=True)
        for index in range(4):
            frame = av.VideoFrame.from_ndarray(drawing(index), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    np.testing.assert_array_equal(decode.read_frames(str(path)), every_frame(path)[:, :, ::-1])


def test_iterating_equals_reading(long_video: Path) -> None:
    path = str(long_video)
    part = [number(frame) for frame in decode.iterate_frames(path, 37, 52)]
    assert part == list(range(37, 52))
    assert [number(frame) for frame in decode.iterate_frames(path, 97)] == [97, 98, 99]
    assert [number(frame) for frame in decode.iterate_frames(path, 98, 500)] == [98, 99]
    assert list(decode.iterate_frames(path, 5, 5)) == []
    with pytest.raises(VideoError, match="has 100 frames; frame 100"):
        next(decode.iterate_frames(path, 100))


def test_iterating_counts_where_times_are_missing(tmp_path: Path) -> None:
    path = str(write(tmp_path / "v.avi", 20, "mpeg4", {"bf": "2", "b": "2000k"}))
    assert [number(f) for f in decode.iterate_frames(path, 6, 9)] == [6, 7, 8]
    with pytest.raises(VideoError, match="has 20 frames; frame 20"):
        list(decode.iterate_frames(path, 20))


def test_closing_an_iterator_early_closes_the_file(long_video: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    frames = decode.iterate_frames(str(long_video))
    next(frames)
    frames.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_vectors_come_with_their_frames(long_video: Path) -> None:
    path = str(long_video)
    frames, vectors = decode.read_frames_and_vectors(path)
    np.testing.assert_array_equal(frames, decode.read_frames(path))
    assert [moved.index for moved in vectors] == list(range(100))
    assert vectors[0].picture == "I"
    assert len(vectors[0].rows) == 0
    assert {moved.picture for moved in vectors} == {"I", "P", "B"}
    assert {(moved.height, moved.width) for moved in vectors} == {frames.shape[1:3]}
    assert {-1, 1} == set(np.concatenate([moved.rows for moved in vectors])["source"].tolist())
    for moved, alone in zip(vectors[4:8], decode.iterate_vectors(path, 4, 8), strict=True):
        assert (alone.index, alone.picture) == (moved.index, moved.picture)
        np.testing.assert_array_equal(alone.rows, moved.rows)


def test_vectors_of_a_part_reach_the_frames_it_may_refer_to(long_video: Path) -> None:
    path = str(long_video)
    whole = decode.read_frames_and_vectors(path)[1]
    frames, part = decode.read_frames_and_vectors(path, [30, 25])
    np.testing.assert_array_equal(frames, decode.read_frames(path, [30, 25]))
    assert part[0].index == 25 - decode.ANCHOR_REACH
    assert part[-1].picture != "B"
    assert all(moved.picture == "B" for moved in part if moved.index in range(30, part[-1].index))
    for moved in part:
        np.testing.assert_array_equal(moved.rows, whole[moved.index].rows)
    with pytest.raises(VideoError, match="has 100 frames; frame 100 was asked for"):
        decode.read_frames_and_vectors(path, [20, 100])


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({"bf": "0", "refs": "1"}, True),
        ({"bf": "0", "refs": "3"}, False),
        ({"bf": "2", "refs": "1"}, False),
    ],
)
def test_vectors_are_exact_with_one_reference_and_no_b_frames(
    tmp_path: Path, options: dict[str, str], exact: bool
) -> None:
    path = write(tmp_path / "v.mp4", 12, options=options)
    assert decode.vectors_are_exact(str(path)) is exact
    old = write(tmp_path / "v.avi", 12, "mpeg4", {"bf": "2"})
    assert decode.vectors_are_exact(str(old))


def test_codecs_without_vectors_are_named(tmp_path: Path) -> None:
    vp9 = write(tmp_path / "v.webm", 5, "libvpx-vp9")
    with pytest.raises(VideoError, match="codec vp9 gives no motion vectors"):
        decode.read_frames_and_vectors(str(vp9))
    intra = write(tmp_path / "i.mp4", 5, options={"g": "1"})
    with pytest.raises(VideoError, match="h264 stream has key frames only"):
        list(decode.iterate_vectors(str(intra)))
    write_images(tmp_path / "images", 3)
    with pytest.raises(VideoError, match="folder of images has no motion vectors"):
        decode.read_frames_and_vectors(str(tmp_path / "images"))


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())


def faststart(path: Path) -> bytes:
    """Move the index of an mp4 before its frames; returns the new bytes."""
    target = path.with_suffix(".fast.mp4")
    with (
        av.open(str(path)) as source,
        av.open(str(target), "w", options={"movflags": "faststart"}) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    target.rename(path)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    return data


def broken(path: Path, kind: str) -> None:
    if kind == "zero bytes":
        path.touch()
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "no index":
        write(path, 30)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind.startswith("cut"):
        write(path, 30, options={"bf": "0"})
        data = faststart(path)
        with av.open(str(path)) as file:
            packet = [packet for packet in file.demux(video=0) if packet.size][20]
            end = packet.pos + (packet.size if kind == "cut between frames" else packet.size // 2)
        path.write_bytes(data[:end])
    elif kind == "audio only":
        audio_only(path)
    elif kind == "one frame":
        write(path, 1)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "does not exist"),
        ("zero bytes", r"is empty \(0 bytes\)"),
        ("text", "is damaged or not a video"),
        ("no index", "is damaged or not a video"),
        ("cut inside a frame", "is cut short or damaged at packet 21"),
        ("cut between frames", "damaged|cut short"),
        ("audio only", "has no video stream"),
        ("one frame", "has 1 frame"),
    ],
)
def test_unusable_files_are_refused_with_a_reason(tmp_path: Path, kind: str, why: str) -> None:
    path = tmp_path / "bad [1].mp4"
    broken(path, kind)
    for use in (decode.probe, decode.read_frames):
        if kind == "one frame" and use is decode.read_frames:
            continue
        with pytest.raises(VideoError, match=why) as caught:
            use(str(path))
        assert caught.value.path == str(path)


def test_damage_inside_is_found_by_decoding(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", 60, options=LONG)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + len(data) // 4
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    assert decode.probe(str(path), decode=False).num_frames == 60
    with pytest.raises(VideoError, match=r"damaged|cannot be decoded"):
        decode.probe(str(path))


def test_indices_outside_are_refused(long_video: Path) -> None:
    for indices, why in (([100], "has 100 frames; frame 100"), ([-1], "has no frame -1")):
        with pytest.raises(VideoError, match=why):
            decode.read_frames(str(long_video), indices)
    with pytest.raises(ValueError, match="no frame"):
        decode.read_frames(str(long_video), [])


def test_uris_read_as_files_do(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", 20)
    expected = decode.read_frames(str(path))
    np.testing.assert_array_equal(decode.read_frames(f"file://{path}"), expected)
    with fsspec.open("memory://videos/v.mp4", "wb") as file:
        file.write(path.read_bytes())
    np.testing.assert_array_equal(
        decode.read_frames("memory://videos/v.mp4", [3, 12]), expected[[3, 12]]
    )
    with pytest.raises(VideoError, match=r"memory://videos/none\.mp4"):
        decode.probe("memory://videos/none.mp4")


def write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        picture = cv2.cvtColor(drawing(index), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"frame_{index}.png"), picture)
    (folder / "notes.txt").write_text("not an image")


def test_a_folder_of_images_is_a_video(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_images(folder, 12)
    info = decode.probe(str(folder))
    assert info == decode.VideoInfo(64, 48, 12, 24.0, "images", 0, 0.5)
    np.testing.assert_array_equal(decode.read_frames(str(folder), [10, 2])[0], drawing(10))
    assert [number(f) for f in decode.iterate_frames(str(folder), 8)] == [8, 9, 10, 11]
    with pytest.raises(VideoError, match="has 12 frames; frame 12"):
        decode.read_frames(str(folder), [12])
    digest = decode.content_digest(str(folder))
    (folder / "frame_3.png").write_bytes(b"damaged")
    assert decode.content_digest(str(folder)) != digest
    with pytest.raises(VideoError, match=r"image frame_3\.png is damaged"):
        decode.read_frames(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="folder without jpg or png"):
        decode.probe(str(tmp_path / "empty"))


@pytest.mark.real
@needs_clips
@pytest.mark.parametrize(
    "path",
    sorted(CLIPS.iterdir()) if CLIPS.is_dir() else [],
    ids=lambda path: path.name.encode("ascii", "replace").decode(),
)
def test_real_clips_decode_or_are_named(path: Path) -> None:
    if path.name == "corrupted.mp4":
        with pytest.raises(VideoError, match=r"corrupted\.mp4"):
            decode.probe(str(path))
        return
    info = decode.probe(str(path))
    with av.open(str(path), metadata_errors="ignore") as file:
        plain = list(file.decode(video=0))
    assert info.num_frames == len(plain)
    some = [info.num_frames - 1, info.num_frames // 2, 0]
    frames = decode.read_frames(str(path), some)
    assert frames.shape == (3, info.height, info.width, 3)
    expected = [plain[index].to_ndarray(format="rgb24") for index in some]
    turned = np.rot90(expected, -info.rotation // 90, axes=(1, 2))
    np.testing.assert_array_equal(frames, turned)
    if path.name == "unordered.mov":  # stored out of order, shown in order
        assert info.num_frames == 4


@pytest.mark.real
@needs_clips
def test_real_rotated_clips_are_upright() -> None:
    """Views of one keyboard, each filmed with the phone turned: the key AltGr is in three."""
    key = decode.read_frames(str(CLIPS / "video_0.mov"), [0])[0][240:290, 445:520]
    letter = cv2.cvtColor(key, cv2.COLOR_RGB2GRAY)
    for name in ("video_90.mov", "video_270.mov"):
        frame = decode.read_frames(str(CLIPS / name), [0])[0]
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        scores = []
        for turns in range(4):
            picture = np.ascontiguousarray(np.rot90(grey, turns))
            sizes = [cv2.resize(letter, None, fx=s, fy=s) for s in (0.7, 0.8, 0.9, 1.0)]
            scores.append(
                max(float(cv2.matchTemplate(picture, t, cv2.TM_CCOEFF_NORMED).max()) for t in sizes)
            )
        assert int(np.argmax(scores)) == 0, (name, scores)
    assert decode.probe(str(CLIPS / "video_180.mov")).rotation == 180
