"""Videos on which two classifiers disagree, as a sheet of thumbnails."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kinema.figures.table import GREY, INK

COLUMNS = 4
GAP = 3
"""Pixels between two frames."""
TILE_WIDTH = 3.0
"""Inches; room for the three frames of a video side by side."""
CAPTION = 0.55
CHARACTERS = 46
WRONG = "#b3261e"


@dataclass(frozen=True)
class Thumbnail:
    """One video: frames of one size, what it is, and what the loser took it for."""

    id: str
    frames: Sequence[NDArray[np.uint8]]
    label: str
    wrong: str


def disagreement_sheet(title: str, videos: Sequence[Thumbnail], loser: str) -> Figure:
    """Videos that one run gets right and the other does not.

    Args:
        title: above all.
        videos: at least one.
        loser: name of the run that is wrong.
    """
    columns = min(COLUMNS, max(2, len(videos)))
    rows = -(-len(videos) // columns)
    heights = [_height(video) for video in videos]
    tile = max(heights) + CAPTION
    width, height = columns * TILE_WIDTH, rows * tile + 0.6
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(0.01, 1 - 0.3 / height, title, fontsize=11, fontweight="bold", color=INK)
    for index, video in enumerate(videos):
        row, column = divmod(index, columns)
        top = height - 0.5 - row * tile
        box = (
            (column * TILE_WIDTH + 0.06) / width,
            (top - heights[index]) / height,
            (TILE_WIDTH - 0.12) / width,
            heights[index] / height,
        )
        axes = figure.add_axes(box)
        gap = np.full((len(video.frames[0]), GAP, 3), 255, np.uint8)
        parts = [part for frame in video.frames for part in (frame, gap)][:-1]
        axes.imshow(np.concatenate(parts, axis=1))
        axes.set_axis_off()
        lines = [
            (textwrap.shorten(video.label, CHARACTERS), INK),
            (textwrap.shorten(f"{loser}: {video.wrong}", CHARACTERS), WRONG),
            (video.id if len(video.id) <= CHARACTERS else f"...{video.id[-CHARACTERS:]}", GREY),
        ]
        for line, (text, colour) in enumerate(lines):
            y = (top - heights[index] - 0.12 - 0.14 * line) / height
            figure.text(box[0], y, text, fontsize=7, color=colour, va="center")
    return figure


def _height(video: Thumbnail) -> float:
    rows, columns = video.frames[0].shape[:2]
    width = columns * len(video.frames) + GAP * (len(video.frames) - 1)
    return float((TILE_WIDTH - 0.12) * rows / width)
