"""A printed table as a picture: horizontal rules only, numbers right, the best row bold."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

CELL_PAD = 2
"""Characters between two columns."""
POINTS_PER_CHARACTER = 5.6
LINE_POINTS = 17.0
SIZE = 9.5
INK, GREY = "#1a1a1a", "#5f6368"


@dataclass(frozen=True)
class TextTable:
    """Cells of text with a header; drawn the same way on a terminal and in a picture.

    Attributes:
        header: column titles.
        rows: cells, as many per row as in the header.
        right: per column, whether its cells stand right.
        bold: (row, column) of the cells to emphasise.
        rules: a rule is drawn before these rows.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[bool]
    bold: frozenset[tuple[int, int]] = frozenset()
    rules: frozenset[int] = frozenset()

    @property
    def widths(self) -> list[int]:
        """Characters per column."""
        lines = [self.header, *self.rows]
        return [max(len(line[column]) for line in lines) for column in range(len(self.header))]

    def text(self, mark: str = "*") -> str:
        """The table for a terminal; `mark` stands behind the rows with bold cells."""
        gap = " " * CELL_PAD
        rule = "-" * (sum(self.widths) + CELL_PAD * (len(self.widths) - 1))
        lines = [gap.join(self._cells(self.header)).rstrip(), rule]
        for index, cells in enumerate(self.rows):
            if index in self.rules:
                lines.append(rule)
            tail = f" {mark}" if any(row == index for row, _ in self.bold) else ""
            lines.append((gap.join(self._cells(cells)) + tail).rstrip())
        return "\n".join(lines)

    def _cells(self, row: Sequence[str]) -> list[str]:
        return [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, self.widths, self.right, strict=True)
        ]


def draw_table(table: TextTable, title: str, notes: Sequence[str] = ()) -> Figure:
    """A picture just large enough for the table, its title and the notes under it."""
    widths = [(width + CELL_PAD) * POINTS_PER_CHARACTER for width in table.widths]
    total = max(sum(widths), len(title) * POINTS_PER_CHARACTER * 1.15, 300.0)
    stretch = total / sum(widths)
    widths = [width * stretch for width in widths]
    limit = int(total / POINTS_PER_CHARACTER * 1.3)
    wrapped = [line for note in notes for line in textwrap.wrap(note, limit)]
    height = LINE_POINTS * (len(table.rows) + 2.4) + 0.85 * LINE_POINTS * len(wrapped)
    height += 0.5 * LINE_POINTS * bool(wrapped)
    margin = 12.0
    size = (total + 2 * margin) / 72, (height + 2 * margin) / 72
    figure = Figure(figsize=size, facecolor="white")
    axes = figure.add_axes(
        (0, 0, 1, 1), xlim=(-margin, total + margin), ylim=(-margin, height + margin)
    )
    axes.set_axis_off()

    def rule(y: float, width: float) -> None:
        axes.plot([0, total], [y, y], color=INK, linewidth=width, solid_capstyle="butt")

    def line(cells: Sequence[str], y: float, bold: set[int]) -> None:
        left = 0.0
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            right = table.right[column]
            x = left + width - CELL_PAD * POINTS_PER_CHARACTER / 2 if right else left + 5
            axes.text(
                x,
                y,
                cell,
                ha="right" if right else "left",
                va="center",
                fontsize=SIZE,
                color=INK,
                fontweight="bold" if column in bold else "normal",
            )
            left += width

    y = height - 0.5 * LINE_POINTS
    axes.text(0, y, title, va="center", fontsize=SIZE + 1.5, fontweight="bold", color=INK)
    rule(y - 0.75 * LINE_POINTS, 1.2)
    y -= 1.3 * LINE_POINTS
    line(table.header, y, bold=set(range(len(widths))))
    rule(y - 0.55 * LINE_POINTS, 0.7)
    y -= 0.1 * LINE_POINTS
    for index, row in enumerate(table.rows):
        y -= LINE_POINTS
        if index in table.rules:
            rule(y + 0.5 * LINE_POINTS, 0.4)
        line(row, y, bold={column for at, column in table.bold if at == index})
    rule(y - 0.55 * LINE_POINTS, 1.2)
    y -= 0.6 * LINE_POINTS
    for note in wrapped:
        y -= 0.85 * LINE_POINTS
        axes.text(0, y, note, va="center", fontsize=SIZE - 1.5, color=GREY)
    return figure
