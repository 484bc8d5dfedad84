"""The accuracy figure shows what the rows say."""

from __future__ import annotations

from typing import Any

import pytest
from sweep_rows import INSIDE, RATIO, inside, inside_ratio_sweep

from kinema.figures.accuracy import accuracy_figure


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return inside_ratio_sweep()


def test_figure_shows_accuracy_intervals_controls_and_chance(rows: list[dict[str, Any]]) -> None:
    figure = accuracy_figure(rows, INSIDE)
    (axes,) = figure.axes
    (bars,) = axes.containers
    line = bars.lines[0]
    assert list(line.get_xdata()) == [0.25, 0.5, 0.75]
    assert list(line.get_ydata()) == pytest.approx([46, 68, 51])
    (segments,) = bars.lines[2]
    ends = [tuple(part[:, 1]) for part in segments.get_segments()]
    assert ends == [pytest.approx(pair) for pair in [(40, 51), (62, 73), (45, 56)]]
    horizontal = {
        entry.get_label(): entry for entry in axes.get_lines() if len(set(entry.get_ydata())) == 1
    }
    control = horizontal["no pretraining (31.0 %)"]
    assert (control.get_linestyle(), control.get_ydata()[0]) == ("--", pytest.approx(31))
    chance = horizontal["chance (12.5 %)"]
    assert (chance.get_linestyle(), chance.get_ydata()[0]) == (":", 12.5)
    band = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    assert [(box.y0, box.y1) for box in band] == [pytest.approx((25, 36))]
    low, high = axes.get_ylim()
    assert low < 12.5
    assert high > 73
    assert any("inside_ratio=0.95" in text.get_text() for text in figure.texts)


def test_realised_ratio_has_its_own_marker_only_where_it_differs(
    rows: list[dict[str, Any]],
) -> None:
    (axes,) = accuracy_figure(rows, INSIDE).axes
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in hollow] == [
        (0.3, pytest.approx(46))
    ]


def test_one_line_per_value_of_a_second_axis() -> None:
    rows = [
        inside(ratio, top1, **{RATIO: total})
        for total in (0.75, 0.9)
        for ratio, top1 in ((0.25, 0.3), (0.5, 0.4))
    ]
    (axes,) = accuracy_figure(rows, INSIDE, [RATIO]).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["masking ratio 0.75", "masking ratio 0.9", "chance (12.5 %)"]
