"""The rows of a sweep's result, and what is said about them in words.

A row is a plain mapping: `trial` (name), `control` (bool), one entry per swept axis, `status`
("done" or why not), `reason`; for finished trials also `top1`, `low`, `high` (95 % interval) and
`chance`, all as shares of 1, `num_tested`, `seconds` (one that only pretrained has `encoder`, where
it lies, instead), and `realised_inside_ratio`, `clipped_share`,
`fallback_share`, each of which may be None where it means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_NAMES = {
    "inside_ratio": "inside masking ratio",
    "mask_ratio": "masking ratio",
    "heads": "cross-attention heads",
    "depth": "cross-attention depth",
}


def axis_name(axis: str) -> str:
    """What a dotted setting is called in print."""
    last = axis.rsplit(".", 1)[-1]
    return _NAMES.get(last, last.replace("_", " "))


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know beside the numbers: how sure they are, chance, what is missing."""
    done = [row for row in rows if "top1" in row]
    lines = []
    if done:
        tested = sorted({int(row["num_tested"]) for row in done})
        clips = " or ".join(str(count) for count in tested)
        lines.append(
            f"{clips} test videos; intervals: bootstrap over them, 95 %; one training run per "
            f"trial. Chance {100 * done[0]['chance']:.1f} %."
        )
    if any(row.get("clipped_share") is not None for row in done):
        lines.append(
            "clipped: share of clips whose box cannot hold the ratio asked for; no motion: share "
            "of clips whose box is the fallback."
        )
    lines += [f"{row['trial']}: encoder {row['encoder']}" for row in rows if "encoder" in row]
    return lines + unfinished(rows)


def unfinished(rows: Sequence[Row]) -> list[str]:
    """A line for each trial without a result: its state and, where it is known, why."""
    return [
        f"{row['trial']} {row['status']}" + (f": {row['reason']}" if row.get("reason") else "")
        for row in rows
        if row["status"] != "done"
    ]


def plain(value: Any) -> str:
    """A setting as it is written in a table."""
    return f"{value:g}" if isinstance(value, float) else str(value)
