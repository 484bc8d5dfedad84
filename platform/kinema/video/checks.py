"""What is doubtful about a data set: files that are missing, leaks between splits, false claims."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from kinema import storage
from kinema.video.rows import trimmed
from kinema.video.sources import SPLITS, Source

Kind = Literal[
    "missing",
    "unreadable",
    "leak",
    "relabelled",
    "duplicate",
    "overlap",
    "length",
    "past_end",
    "unused_class",
]
"""In the order of the printed table.

missing       the file does not exist
unreadable    it exists and cannot be used; this is the quarantine list
leak          shows frames that another split shows too, by the bytes of their files
relabelled    shows the very frames that another entry of its split shows under another label
duplicate     shows them under the same label
overlap       shows some of them
length        duration or number of frames is not what the annotation says
past_end      the part to use ends after the file
unused_class  a class has no videos in a split; `id` is its name
"""

UNUSABLE: tuple[Kind, ...] = ("missing", "unreadable")
"""What keeps a video out of the manifest."""

CHECK_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("kind", "id", "path", "split", "detail")]
)

_LONGEST_SHOWN = 90
_EDGE = 1e-6
"""Seconds; what floats may add to a difference."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `path` is empty where it is about no file."""

    kind: Kind
    id: str
    path: str
    split: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tolerance:
    """By how much a length may differ from the annotation: the larger of the two.

    Attributes:
        seconds: absolute.
        share: of the annotated length.
    """

    seconds: float = 0.5
    share: float = 0.05

    def exceeded(self, measured_s: float, claimed_s: float) -> bool:
        """Whether a length in seconds differs by more."""
        return abs(measured_s - claimed_s) > max(self.seconds, self.share * claimed_s) + _EDGE


@dataclass(frozen=True, slots=True)
class _Part:
    """Frames of a file that an entry shows."""

    id: str
    path: str
    split: str
    span: range
    label: int | None


def find_missing(sources: Sequence[Source]) -> list[Check]:
    """Sources whose file does not exist. Each folder is listed once, however many are in it."""
    folders: dict[str, dict[str, str]] = {}
    found = []
    for source in sources:
        folder, _, name = source.path.rpartition("/")
        if folder not in folders:
            names = storage.list_names(folder or "/")
            folders[folder] = {_folded(name): name for name in names} | {n: n for n in names}
        near = folders[folder].get(name) or folders[folder].get(_folded(name))
        if near == name:
            continue
        detail = "does not exist"
        if near is not None:
            detail += f"; its folder has {near!r}, which differs in case or Unicode form"
        found.append(Check("missing", source.id, source.path, source.split, detail))
    return found


def find_doubtful(
    sources: Iterable[Source],
    table: pa.Table,
    classes: Sequence[str] | None,
    tolerance: Tolerance,
) -> list[Check]:
    """Everything that is found out about videos that can be used.

    Args:
        sources: what the data set says.
        table: what was measured, of the manifest's schema.
        classes: names of the defined classes; None = labels up to the largest.
        tolerance: of lengths.
    """
    rows = table.to_pylist()
    claims = {source.id: source for source in sources}
    return [
        *_same_frames(rows, classes),
        *_wrong_lengths(rows, claims, tolerance),
        *_past_ends(rows),
        *_unused_classes(rows, classes),
    ]


def as_table(checks: Sequence[Check]) -> pa.Table:
    """Of `CHECK_SCHEMA`."""
    return pa.Table.from_pylist([asdict(check) for check in checks], schema=CHECK_SCHEMA)


def summary(checks: Sequence[Check]) -> str:
    """Counts by kind and split, each with its first finding; a line per kind."""
    counts = Counter((check.kind, check.split) for check in checks)
    first: dict[str, Check] = {}
    for check in checks:
        first.setdefault(check.kind, check)
    kinds = [kind for kind in get_args(Kind) if kind in first]
    lines = [["check", *SPLITS, "first"]]
    for kind in kinds:
        shown = f"{first[kind].id}: {first[kind].detail}"
        shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."
        lines.append([kind, *(str(counts[kind, split]) for split in SPLITS), shown])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 0 < column < len(line) - 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def same_footage(table: pa.Table) -> dict[str, str]:
    """Id of each video -> the first id of all that share frames with it, also by way of others.

    Where all of one such id are in one split, nothing leaks.

    Args:
        table: of the manifest's schema.
    """
    found: dict[str, str] = {}
    for parts in _by_content(table.to_pylist()):
        together: list[list[_Part]] = []
        reached = 0
        for part in sorted(parts, key=_start):
            if not together or part.span.start >= reached:
                together.append([])
            together[-1].append(part)
            reached = max(reached, part.span.stop)
        for group in together:
            first = min(part.id for part in group)
            found |= {part.id: first for part in group}
    return found


def _by_content(rows: Sequence[dict[str, Any]]) -> Iterable[list[_Part]]:
    """What is shown of every content, by the bytes of its files."""
    by_digest: dict[str, list[_Part]] = defaultdict(list)
    for row in rows:
        span = trimmed(row["num_frames"], row["fps"], row["start_s"], row["end_s"])
        part = _Part(row["id"], row["path"], row["split"], span, row["label"])
        by_digest[row["digest"]].append(part)
    return by_digest.values()


def _start(part: _Part) -> tuple[int, int]:
    return part.span.start, part.span.stop


def _same_frames(rows: Sequence[dict[str, Any]], classes: Sequence[str] | None) -> Iterator[Check]:
    for parts in _by_content(rows):
        if len(parts) > 1:
            yield from _overlaps(parts, classes)


def _class(part: _Part, classes: Sequence[str] | None) -> str:
    if part.label is None:
        return "unknown"
    return repr(classes[part.label]) if classes else str(part.label)


def _overlaps(parts: Sequence[_Part], classes: Sequence[str] | None) -> Iterator[Check]:
    """Parts of one content that meet an earlier one, at most one finding per part and split."""
    furthest: dict[str, _Part] = {}
    first: dict[tuple[str, range], _Part] = {}
    for part in sorted(parts, key=_start):
        for split, reaching in furthest.items():
            if part.span.start >= reaching.span.stop:
                continue
            same = first.get((split, part.span))
            other = same or reaching
            what = "shows the very frames of" if same else "shows some of the frames of"
            detail = f"{what} {other.id} ({split})"
            kind: Kind = "duplicate" if same else "overlap"
            if same and same.label != part.label:
                kind = "relabelled"
                detail += f" as class {_class(part, classes)}; there it is {_class(same, classes)}"
            if split != part.split:
                kind = "leak"
            yield Check(kind, part.id, part.path, part.split, detail)
        first.setdefault((part.split, part.span), part)
        reached = furthest.setdefault(part.split, part)
        if part.span.stop > reached.span.stop:
            furthest[part.split] = part


def _wrong_lengths(
    rows: Sequence[dict[str, Any]], claims: dict[str, Source], tolerance: Tolerance
) -> Iterator[Check]:
    """One finding per file, though many entries may be parts of it."""
    seen = set()
    for row in rows:
        claim, fps = claims[row["id"]], row["fps"]
        if row["path"] in seen:
            continue
        seen.add(row["path"])
        seconds = row["num_frames"] / fps
        detail = None
        if claim.claimed_s is not None and tolerance.exceeded(seconds, claim.claimed_s):
            detail = f"lasts {seconds:.2f} s; the annotation says {claim.claimed_s:.2f} s"
        frames = claim.claimed_frames
        if frames is not None and tolerance.exceeded(seconds, frames / fps):
            detail = f"has {row['num_frames']} frames; the annotation says {frames}"
        if detail is not None:
            yield Check("length", row["id"], row["path"], row["split"], detail)


def _past_ends(rows: Sequence[dict[str, Any]]) -> Iterator[Check]:
    for row in rows:
        end, fps = row["end_s"], row["fps"]
        # Up to a frame more is rounding: annotations know no frame's exact duration.
        if end is not None and math.floor(end * fps) > row["num_frames"]:
            detail = f"ends at {end:.2f} s, the file at {row['num_frames'] / fps:.2f} s"
            yield Check("past_end", row["id"], row["path"], row["split"], detail)


def _unused_classes(
    rows: Sequence[dict[str, Any]], classes: Sequence[str] | None
) -> Iterator[Check]:
    used: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        if row["label"] is not None:
            used[row["split"]].add(row["label"])
    if classes is None:
        high = max((label for labels in used.values() for label in labels), default=-1)
        classes = [str(label) for label in range(high + 1)]
    for split in SPLITS:
        for label, name in enumerate(classes if split in used else ()):
            if label not in used[split]:
                yield Check(
                    "unused_class", name, "", split, f"class {label} has no videos in {split}"
                )
