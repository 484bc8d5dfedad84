"""Accuracy against one swept setting, in the style of MOFO's Fig. 3."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from kinema.figures.rows import Row, axis_name, notes, plain
from kinema.figures.table import GREY, INK

COLOURS = ("#0b5394", "#c1440e", "#3c7d22", "#7b3294", "#8a6d00", "#00707a")
CONTROL_COLOURS = ("#6b6b6b", "#a05a8c", "#4f8a8b")
LEGEND_COLUMNS = 2
LINE_SHARE = 0.036
"""Height of a caption line as a share of the figure's."""
RATIO_TOLERANCE = 0.005
"""Realised ratios nearer than this to those asked for get no marker of their own."""


def accuracy_figure(rows: Sequence[Row], axis: str, others: Sequence[str] = ()) -> Figure:
    """Accuracy against one swept setting, as in MOFO's Fig. 3.

    Error bars are 95 % intervals. Where masks realise another ratio than asked for, a hollow marker
    stands at the realised one. Controls are dashed lines with their interval as a band, chance is
    dotted. Each combination of `others` is a line of its own.
    """
    figure = Figure(figsize=(6.4, 4.9), facecolor="white")
    caption = _caption(rows, axis)
    room = LINE_SHARE * len(caption)
    axes = figure.add_axes((0.115, 0.15 + room, 0.86, 0.83 - room))
    done = [row for row in rows if "top1" in row]
    for number, group in enumerate(_groups([row for row in done if not row["control"]], others)):
        _draw_line(axes, group, axis, others, COLOURS[number % len(COLOURS)])
    for number, row in enumerate(row for row in done if row["control"]):
        colour = CONTROL_COLOURS[number % len(CONTROL_COLOURS)]
        axes.axhspan(100 * row["low"], 100 * row["high"], color=colour, alpha=0.13, linewidth=0)
        label = f"{row['trial']} ({100 * row['top1']:.1f} %)"
        axes.axhline(100 * row["top1"], color=colour, linestyle="--", linewidth=1.3, label=label)
    chance = 100 * done[0]["chance"]
    axes.axhline(chance, color=INK, linestyle=":", linewidth=1.2, label=f"chance ({chance:.1f} %)")
    legend_rows = _dress(axes, axis, done)
    above = 0.05 * legend_rows
    axes.set_position((0.115, 0.15 + room, 0.86, 0.83 - room - above))
    for index, line in enumerate(reversed(caption)):
        figure.text(0.02, 0.022 + LINE_SHARE * index, line, fontsize=7.5, color=GREY)
    return figure


def _draw_line(
    axes: Axes, group: Sequence[Row], axis: str, others: Sequence[str], colour: str
) -> None:
    ordered = sorted(group, key=lambda row: float(row[axis]))
    x = [float(row[axis]) for row in ordered]
    y = [100 * row["top1"] for row in ordered]
    bars = [
        [100 * (row["top1"] - row["low"]) for row in ordered],
        [100 * (row["high"] - row["top1"]) for row in ordered],
    ]
    label = ", ".join(f"{axis_name(other)} {plain(group[0][other])}" for other in others)
    axes.errorbar(
        x,
        y,
        yerr=bars,
        color=colour,
        marker="o",
        markersize=6,
        linewidth=1.6,
        elinewidth=1.1,
        capsize=3,
        zorder=3,
        label=label or "top-1, 95 % interval",
    )
    moved = [
        (at, float(row["realised_inside_ratio"]), height)
        for row, at, height in zip(ordered, x, y, strict=True)
        if _shows_realised(row, axis)
    ]
    for index, (asked, realised, height) in enumerate(moved):
        axes.plot([asked, realised], [height, height], color=colour, linewidth=0.8, zorder=2)
        axes.plot(
            realised,
            height,
            marker="o",
            markersize=6,
            markerfacecolor="white",
            markeredgecolor=colour,
            linestyle="none",
            zorder=4,
            label="at the ratio realised" if index == 0 and not label else None,
        )


def _dress(axes: Axes, axis: str, done: Sequence[Row]) -> int:
    """Axes, grid and legend; returns the lines of the legend, which stands above the axes."""
    swept = sorted({float(row[axis]) for row in done if not row["control"]})
    axes.set_xticks(swept, [plain(value) for value in swept])
    axes.set_xlabel(axis_name(axis).capitalize(), fontsize=11, color=INK)
    axes.set_ylabel("Top-1 accuracy (%)", fontsize=11, color=INK)
    low = min(100 * min(row["low"], row["chance"]) for row in done)
    high = max(100 * row["high"] for row in done)
    pad = 0.06 * (high - low) + 0.5
    axes.set_ylim(max(0.0, low - pad), min(100.0, high + pad) if high < 100 else 101.0)
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9.5, colors=INK)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: not isinstance(handles[i], ErrorbarContainer))
    axes.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        fontsize=8.5,
        frameon=False,
        ncols=LEGEND_COLUMNS,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),  # where no interval can reach
    )
    return -(-len(labels) // LEGEND_COLUMNS)


def _caption(rows: Sequence[Row], axis: str) -> list[str]:
    done = [row for row in rows if "top1" in row]
    text = [notes(rows)[0]]
    clipped = [row["clipped_share"] for row in done if row.get("clipped_share") is not None]
    if axis.endswith("inside_ratio") and clipped:
        text.append(
            f"Clips that cannot hold the ratio asked for: at most {100 * max(clipped):.1f} %."
        )
        swept = [row for row in done if not row["control"]]
        if not any(_shows_realised(row, axis) for row in swept):
            text[-1] += f" Realised ratios are within {RATIO_TOLERANCE} of those asked for."
    missing = [row["trial"] for row in rows if row["status"] != "done"]
    if missing:
        text.append(f"Without a result: {', '.join(missing)}.")
    return [line for part in text for line in textwrap.wrap(part, 112)]


def _groups(rows: Sequence[Row], others: Sequence[str]) -> list[list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(plain(row[other]) for other in others), []).append(row)
    return list(groups.values())


def _shows_realised(row: Row, axis: str) -> bool:
    realised = row.get("realised_inside_ratio")
    return (
        axis.endswith("inside_ratio")
        and realised is not None
        and abs(realised - float(row[axis])) > RATIO_TOLERANCE
    )
