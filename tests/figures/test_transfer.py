"""Table and heat map of a transfer matrix."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from kinema.figures.transfer import heat_map, save_transfer, transfer_text


def cell(source: str, target: str, protocol: str, top1: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"trial": f"{source} to {target}, {protocol}"}
    row |= {"source": source, "target": target, "protocol": protocol}
    if top1 is None:
        return row | {"status": "failed", "reason": "no such file"}
    row |= {"status": "done", "top1": top1, "low": top1 - 0.05, "high": top1 + 0.04}
    return row | {"chance": 0.125, "num_tested": 256, "seconds": 3.0}


ROWS = [
    cell("MOFO", "SSv2", "finetune", 0.727),
    cell("MOFO", "EPIC", "finetune", 0.7),
    cell("random weights", "SSv2", "finetune", 0.3),
    cell("random weights", "EPIC", "finetune", None),
    cell("MOFO", "SSv2", "knn", 0.21),
    cell("MOFO", "EPIC", "knn", 0.22),
]


def test_terminal_table_has_a_line_per_source() -> None:
    lines = transfer_text(ROWS).splitlines()
    assert lines[0].split("  ")[0] == "source"
    assert "SSv2, finetune" in lines[0]
    assert "EPIC, knn" in lines[0]
    assert "72.7 (67.7 to 76.7)" in lines[2]
    assert "failed" in lines[3]
    assert lines[-1] == "random weights to EPIC, finetune failed: no such file"


def test_files_hold_every_cell(tmp_path: Path) -> None:
    table, picture = save_transfer(ROWS, tmp_path)
    with table.open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["source"] for row in read] == [row["source"] for row in ROWS]
    assert read[3]["reason"] == "no such file"
    assert float(read[0]["top1"]) == 0.727
    assert picture.stat().st_size > 10_000


def test_a_panel_per_protocol_with_number_and_interval() -> None:
    figure = heat_map(ROWS)
    assert [axes.get_title() for axes in figure.axes] == ["finetune", "knn"]
    first, second = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    assert first == [
        "72.7",
        "67.7 to 76.7",
        "70.0",
        "65.0 to 74.0",
        "30.0",
        "25.0 to 34.0",
        "failed",
    ]
    assert len(second) == 4  # what was left out stays empty
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "MOFO",
        "random weights",
    ]


def test_texts_stay_on_the_picture() -> None:
    figure = heat_map(ROWS)
    figure.canvas.draw()
    width, height = figure.get_size_inches() * figure.dpi
    for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
