"""Tables and figures of a sweep: what they show is what the rows say."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.image import imread
from sweep_rows import INSIDE, done, inside_ratio_sweep

from kinema.figures.sweep import heads_by_depth, save_sweep, sweep_table, terminal_table


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return inside_ratio_sweep()


def test_table_says_numbers_best_trial_and_failures(rows: list[dict[str, Any]]) -> None:
    lines = terminal_table(rows, [INSIDE]).splitlines()
    by_start = {line.split()[0]: line for line in lines}
    best = " ".join(by_start["0.5"].split())
    assert best == "0.5 68.0 62.0 to 73.0 0.500 2.0 10.0 1:02:05 *"
    assert not by_start["0.75"].endswith("*")
    assert by_start["0.95"].split()[-1] == "failed"
    assert next(line for line in lines if line.startswith("no pre")).split()[2] == "31.0"
    assert "inside_ratio=0.95 failed: RuntimeError: out of memory" in lines
    assert any("256 test videos" in line and "Chance 12.5 %" in line for line in lines)


def test_variants_are_rows_and_pretraining_alone_says_where_its_encoder_is(tmp_path: Path) -> None:
    rows = [done("MGM dense", 0.67, variant="MGM dense"), done("tube", 0.65, variant="tube")]
    lines = terminal_table(rows, ["variant"]).splitlines()
    assert lines[0].split()[0] == "variant"
    assert " ".join(lines[2].split()).startswith("MGM dense 67.0 61.0 to 72.0")
    assert (tmp_path / "sweep.csv") in save_sweep(rows, ["variant"], tmp_path)
    for row in rows:
        row["encoder"] = f"/encoders/{row['trial']}"
        for key in ("top1", "low", "high", "chance", "num_tested"):
            del row[key]
    lines = terminal_table(rows, ["variant"]).splitlines()
    assert "tube: encoder /encoders/tube" in lines
    files = save_sweep(rows, ["variant"], tmp_path)
    assert [file.name for file in files] == ["sweep.csv", "sweep_table.png"]


def test_heads_by_depth_has_a_cell_per_trial_and_gaps() -> None:
    accuracies = {(1, 1): 0.735, (1, 3): 0.736, (3, 1): 0.74}
    rows = [
        done(f"{heads}x{depth}", top1, **{"head.heads": heads, "head.depth": depth})
        for (heads, depth), top1 in accuracies.items()
    ]
    rows.append(done("plain head", 0.716, control=True))
    table = heads_by_depth(rows, "head.heads", "head.depth")
    assert table.header == ["heads", "depth 1", "depth 3"]
    assert [row[0] for row in table.rows] == ["1", "3", "plain head"]
    assert [cell[:4] for cell in table.rows[0][1:]] == ["73.5", "73.6"]
    assert table.rows[1][1:] == ["74.0 (68.0 to 79.0)", ""]
    assert table.bold == {(1, 1)}


def test_files_are_complete(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    files = save_sweep(rows, [INSIDE], tmp_path / "new")
    names = ["sweep.csv", "sweep_table.png", "accuracy_by_inside_ratio.png"]
    assert [file.name for file in files] == names
    with files[0].open(newline="") as file:
        records = list(csv.DictReader(file))
    assert [record["trial"] for record in records] == [row["trial"] for row in rows]
    assert float(records[1]["top1"]) == 0.51
    assert records[4]["reason"] == "RuntimeError: out of memory"
    for file in files[1:]:
        pixels = imread(file)
        assert pixels.shape[1] > 1000
        assert pixels[..., :3].min() < 0.3


def test_heads_by_depth_files(tmp_path: Path) -> None:
    rows = [done("1x1", 0.7, **{"head.heads": 1, "head.depth": 1})]
    files = save_sweep(rows, ["head.heads", "head.depth"], tmp_path)
    assert [file.name for file in files][2:] == ["heads_by_depth.csv", "heads_by_depth.png"]
    assert files[2].read_text().splitlines() == ["heads,depth 1", "1,70.0 (64.0 to 75.0)"]


def test_nothing_finished_leaves_the_table(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    files = save_sweep(rows[-1:], [INSIDE], tmp_path)
    assert [file.name for file in files] == ["sweep.csv", "sweep_table.png"]
    assert sweep_table(rows[-1:], [INSIDE]).bold == frozenset()


def test_matplotlib_is_left_as_it_was(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_sweep(rows, [INSIDE], tmp_path)
    assert dict(mpl.rcParams) == before
