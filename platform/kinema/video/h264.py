"""How many pictures an H.264 stream may refer back to, from its headers (H.264, 7.3.2.1)."""

from __future__ import annotations

from collections.abc import Iterator

_SPS = 7
_HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


def max_references(extradata: bytes | None) -> int | None:
    """`max_num_ref_frames` of a stream's sequence parameters.

    Args:
        extradata: of the codec context, as MP4 (`avcC`) or MPEG-TS (start codes) stores it.

    Returns:
        The number, or None where the stream carries no parameters outside its packets.
    """
    for unit in _units(extradata or b""):
        if unit and unit[0] & 0x1F == _SPS:
            return _Bits(unit[1:]).references()
    return None


def _units(data: bytes) -> Iterator[bytes]:
    """The units of either way to store them."""
    if data[:1] == b"\x01":  # avcC: 5 bytes, the count of parameter sets, then length and unit
        at = 6
        for _ in range(data[5] & 0x1F):
            length = int.from_bytes(data[at : at + 2], "big")
            yield data[at + 2 : at + 2 + length]
            at += 2 + length
        return
    for part in data.split(b"\x00\x00\x01"):
        yield part.rstrip(b"\x00")


class _Bits:
    """A parameter set, read bit by bit."""

    def __init__(self, unit: bytes) -> None:
        payload = unit.replace(b"\x00\x00\x03", b"\x00\x00")
        self._bits = "".join(f"{byte:08b}" for byte in payload)
        self._at = 0

    def _take(self, count: int) -> int:
        self._at += count
        return int(self._bits[self._at - count : self._at] or "0", 2)

    def _unsigned(self) -> int:
        """An Exp-Golomb number."""
        zeros = 0
        while self._at < len(self._bits) and self._take(1) == 0:
            zeros += 1
        return (1 << zeros) - 1 + (self._take(zeros) if zeros else 0)

    def _signed(self) -> int:
        code = self._unsigned()
        return (code + 1) // 2 if code % 2 else -(code // 2)

    def references(self) -> int:
        profile = self._take(8)
        self._take(16)
        self._unsigned()
        if profile in _HIGH_PROFILES:
            self._skip_chroma_and_scaling()
        self._unsigned()  # log2_max_frame_num_minus4
        order = self._unsigned()
        if order == 0:
            self._unsigned()
        elif order == 1:
            self._take(1)
            self._signed()
            self._signed()
            for _ in range(self._unsigned()):
                self._signed()
        return self._unsigned()

    def _skip_chroma_and_scaling(self) -> None:
        chroma = self._unsigned()
        if chroma == 3:
            self._take(1)
        self._unsigned()
        self._unsigned()
        self._take(1)
        if not self._take(1):
            return
        for index in range(8 if chroma != 3 else 12):
            if not self._take(1):
                continue
            last = following = 8
            for _ in range(16 if index < 6 else 64):
                if following:
                    following = (last + self._signed()) % 256
                last = following or last
