"""A confusion matrix as a picture: a row per true class, shaded by the share of its videos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kinema.figures.table import GREY, INK

MOST_NAMED = 60
"""With more classes than this their names would not be readable, and only the shading is drawn."""
MOST_COUNTED = 20
"""With more classes than this the numbers are left out."""
CELL = 0.34
"""Inches per class, down to a figure of the size `LARGEST`."""
LARGEST = 12.0


def confusion_figure(matrix: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Draw `matrix` (classes, classes), counts by true (row) and predicted (column) class."""
    count = len(names)
    named = count <= MOST_NAMED
    longest = max(len(name) for name in names) if named else 0
    room = 0.075 * longest + 0.5
    side = min(max(CELL * count, 2.4), LARGEST)
    figure = Figure(figsize=(side + room + 0.3, side + room + 0.5), facecolor="white")
    width, height = figure.get_size_inches()
    axes = figure.add_axes((room / width, room / height, side / width, side / height))
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    axes.set_xlabel("predicted", fontsize=9, color=INK)
    axes.set_ylabel("true", fontsize=9, color=INK)
    if named:
        axes.set_xticks(range(count), names, rotation=90, fontsize=7.5)
        axes.set_yticks(range(count), names, fontsize=7.5)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(GREY)
    if count <= MOST_COUNTED:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = shares[row, column] > 0.55
            axes.text(
                column,
                row,
                str(matrix[row, column]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else INK,
            )
    return figure
