"""A transfer matrix: table (terminal, CSV) and heat map, after MGM's Table 2."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from kinema.figures.rows import Row, unfinished
from kinema.figures.table import GREY, INK, TextTable

DPI = 200
CELL = 1.05, 0.62
"""Width and height of a cell, inches."""
BLUES = LinearSegmentedColormap.from_list("blues", ["#f3f7fb", "#9cc4e4", "#2f78b7", "#0b3d6e"])
DARK = 0.56
"""Share of the scale from which on a cell's text is white."""
MISSING = "#e6e6e6"

_COLUMNS = (
    "source",
    "target",
    "protocol",
    "status",
    "reason",
    "top1",
    "low",
    "high",
    "chance",
    "num_tested",
    "seconds",
)


def transfer_text(rows: Sequence[Row]) -> str:
    """A line per source, a column per protocol and target, in percent; then notes."""
    sources, targets, protocols = (_names(rows, key) for key in ("source", "target", "protocol"))
    cells = {(row["source"], row["target"], row["protocol"]): row for row in rows}
    columns = [
        (protocol, target)
        for protocol in protocols
        for target in targets
        if any((source, target, protocol) in cells for source in sources)
    ]
    table = TextTable(
        ["source", *(f"{target}, {protocol}" for protocol, target in columns)],
        [
            [
                source,
                *(_shown(cells.get((source, target, protocol))) for protocol, target in columns),
            ]
            for source in sources
        ],
        right=[False, *[True] * len(columns)],
        bold=frozenset(),
    )
    return "\n".join([table.text(), *transfer_notes(rows)])


def transfer_notes(rows: Sequence[Row]) -> list[str]:
    """How sure the numbers are, chance, and what is missing and why."""
    lines = []
    done = [row for row in rows if "top1" in row]
    if done:
        lines.append(
            "Rows: sources; columns: targets. Top-1, %; intervals: bootstrap over videos, 95 %; one"
            " run each."
        )
    for target in _names(done, "target"):
        about = [row for row in done if row["target"] == target]
        tested = sorted({int(row["num_tested"]) for row in about})
        chances = sorted({round(100 * row["chance"], 1) for row in about})
        lines.append(
            f"{target}: {' or '.join(map(str, tested))} test videos, chance"
            f" {' or '.join(map(str, chances))} %."
        )
    return lines + unfinished(rows)


def save_transfer(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `transfer.csv`, a line per cell, and `transfer.png`, the heat map, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / "transfer.csv", folder / "transfer.png"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    heat_map(rows).savefig(picture, dpi=DPI)
    return [table, picture]


def heat_map(rows: Sequence[Row]) -> Figure:
    """One panel per protocol: sources down, targets across, accuracy and interval in each cell.

    The scale is the same in all panels, 0 to 100 %. Grey cells have no result; a cell that was
    left out is empty.
    """
    sources, targets, protocols = (_names(rows, key) for key in ("source", "target", "protocol"))
    left = 0.35 + 0.085 * max(map(len, sources))
    wide, high = CELL[0] * len(targets), CELL[1] * len(sources)
    width = max(left + len(protocols) * (wide + 0.3), 4.5)
    notes = [
        line
        for note in transfer_notes(rows)
        for line in textwrap.wrap(note, max(40, int(width * 15.5)))
    ]
    bottom = 0.2 + 0.145 * len(notes)
    height = bottom + high + 0.75
    figure = Figure(figsize=(width, height), facecolor="white")
    for number, protocol in enumerate(protocols):
        start = left + number * (wide + 0.3)
        place = (start / width, bottom / height, wide / width, high / height)
        axes = figure.add_axes(place, xlim=(0, len(targets)), ylim=(len(sources), 0))
        panel = [row for row in rows if row["protocol"] == protocol]
        _draw_panel(axes, panel, sources, targets)
        axes.set_title(protocol, fontsize=10, fontweight="bold", color=INK, pad=20)
        if number == 0:
            axes.set_yticks(np.arange(len(sources)) + 0.5, sources, fontsize=9, color=INK)
    for line, note in enumerate(reversed(notes)):
        figure.text(0.15 / width, (0.12 + 0.145 * line) / height, note, fontsize=7, color=GREY)
    return figure


def _draw_panel(
    axes: Axes, panel: Sequence[Row], sources: Sequence[str], targets: Sequence[str]
) -> None:
    for row in panel:
        x, y = targets.index(row["target"]), sources.index(row["source"])
        value = row.get("top1")
        colour = MISSING if value is None else BLUES(value)
        axes.fill_between([x, x + 1], y, y + 1, color=colour, linewidth=0)
        if value is None:
            axes.text(x + 0.5, y + 0.5, row["status"], ha="center", va="center", fontsize=8)
            continue
        ink = "white" if value > DARK else INK
        star = "" if row["status"] == "done" else "*"
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
        axes.text(x + 0.5, y + 0.38, f"{100 * value:.1f}{star}", fontsize=11, **style)
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        axes.text(x + 0.5, y + 0.72, interval, fontsize=6.5, **style)
    for x in range(len(targets) + 1):
        axes.axvline(x, color="white", linewidth=1.5)
    for y in range(len(sources) + 1):
        axes.axhline(y, color="white", linewidth=1.5)
    axes.set_xticks(np.arange(len(targets)) + 0.5, targets, fontsize=9, color=INK)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _names(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(str(row[key]) for row in rows))


def _shown(row: Row | None) -> str:
    if row is None:
        return ""
    if "top1" not in row:
        return str(row["status"])
    interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
    return f"{100 * row['top1']:.1f} ({interval}){'' if row['status'] == 'done' else '*'}"
