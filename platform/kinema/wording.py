"""Words of messages that depend on a number."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 video`, `3 videos`; `many` where it is not `one` with an s, as in `videos are`."""
    return f"{count} {one if count == 1 else many or one + 's'}"
