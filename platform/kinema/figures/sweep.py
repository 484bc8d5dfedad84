"""A sweep's result: table (terminal, CSV, PNG) and figure, after MOFO's Fig. 3 and Table 2."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from kinema.figures.accuracy import accuracy_figure
from kinema.figures.rows import Row, axis_name, notes, plain
from kinema.figures.table import TextTable, draw_table

DPI = 200
LEGEND = "*, bold: the best of those swept; time: of the training process, without its start."

_RESULTS = (
    "status",
    "reason",
    "top1",
    "low",
    "high",
    "chance",
    "num_tested",
    "realised_inside_ratio",
    "clipped_share",
    "fallback_share",
    "seconds",
)


def terminal_table(rows: Sequence[Row], axes: Sequence[str]) -> str:
    """The table as text, with what failed and why below it."""
    return "\n".join([sweep_table(rows, axes).text(), *notes(rows), LEGEND])


def save_sweep(rows: Sequence[Row], axes: Sequence[str], folder: Path) -> list[Path]:
    """Write table and figure of a sweep into `folder`; returns the files.

    Always `sweep.csv` and `sweep_table.png`. A numeric axis gives `accuracy_by_<axis>.png`; axes
    `heads` and `depth` give `heads_by_depth.csv` and `.png`. Without a finished trial there is
    nothing to draw beyond the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [_save_csv(rows, axes, folder / "sweep.csv")]
    title = f"Top-1 accuracy by {' and '.join(axis_name(axis) for axis in axes)}"
    files.append(
        _save(
            draw_table(sweep_table(rows, axes), title, [*notes(rows), LEGEND]),
            folder / "sweep_table.png",
        )
    )
    if not any("top1" in row for row in rows if not row["control"]):
        return files
    heads, depth = _axis(axes, "heads"), _axis(axes, "depth")
    if heads is not None and depth is not None:
        table = heads_by_depth(rows, heads, depth)
        files.append(folder / "heads_by_depth.csv")
        with files[-1].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([table.header, *table.rows])
        name = "Top-1 accuracy, %, by heads and depth of the cross-attention"
        files.append(_save(draw_table(table, name, notes(rows)), folder / "heads_by_depth.png"))
        return files
    axis = _axis(axes, "inside_ratio") or next((a for a in axes if _is_numeric(rows, a)), None)
    if axis is not None:
        figure = accuracy_figure(rows, axis, [other for other in axes if other != axis])
        files.append(_save(figure, folder / f"accuracy_by_{axis.rsplit('.', 1)[-1]}.png"))
    return files


def sweep_table(rows: Sequence[Row], axes: Sequence[str]) -> TextTable:
    """One line per trial, controls last; the best of the swept trials is bold."""
    ordered = sorted(rows, key=lambda row: bool(row["control"]))
    columns: list[tuple[str, str, int]] = [
        ("realised_inside_ratio", "realised", 3),
        ("clipped_share", "clipped %", 1),
        ("fallback_share", "no motion %", 1),
    ]
    shown = [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
    titles = [axis.rsplit(".", 1)[-1] for axis in axes]
    header = [
        *titles,
        "top-1 %",
        "95 % interval",
        *(title for _, title, _ in shown),
        "time",
        "status",
    ]
    lines = []
    for row in ordered:
        names = (
            [row["trial"], *[""] * (len(axes) - 1)]
            if row["control"]
            else [plain(row[axis]) for axis in axes]
        )
        extras = [
            _number(row.get(key), digits, percent=title.endswith("%"))
            for key, title, digits in shown
        ]
        status = "" if row["status"] == "done" else str(row["status"])
        lines.append(
            [*names, _top1(row), _interval(row), *extras, _duration(row.get("seconds")), status]
        )
    swept = [i for i, row in enumerate(ordered) if not row["control"] and "top1" in row]
    best = max((ordered[i]["top1"] for i in swept), default=None)
    return TextTable(
        header,
        lines,
        right=[*[False] * len(axes), *[True] * (3 + len(shown)), False],
        bold=frozenset(
            (i, column)
            for i in swept
            if ordered[i]["top1"] == best and len(swept) > 1
            for column in range(len(header))
        ),
        rules=frozenset({sum(not row["control"] for row in rows)}),
    )


def heads_by_depth(rows: Sequence[Row], heads: str, depth: str) -> TextTable:
    """Accuracy in percent with its interval: a line per number of heads, a column per depth."""
    swept = [row for row in rows if not row["control"]]
    cells = {(row[heads], row[depth]): row for row in swept}
    depths = sorted({row[depth] for row in swept})
    numbers = sorted({row[heads] for row in swept})
    lines = [
        [plain(head), *(_cell(cells.get((head, value))) for value in depths)] for head in numbers
    ]
    controls = [row for row in rows if row["control"]]
    lines += [[row["trial"], _cell(row), *[""] * (len(depths) - 1)] for row in controls]
    best = max((row["top1"] for row in swept if "top1" in row), default=None)
    bold = {
        (numbers.index(row[heads]), 1 + depths.index(row[depth]))
        for row in swept
        if "top1" in row and row["top1"] == best
    }
    return TextTable(
        ["heads", *(f"depth {plain(value)}" for value in depths)],
        lines,
        right=[False, *[True] * len(depths)],
        bold=frozenset(bold),
        rules=frozenset({len(numbers)} if controls else set()),
    )


def _axis(axes: Sequence[str], last: str) -> str | None:
    return next((axis for axis in axes if axis.rsplit(".", 1)[-1] == last), None)


def _is_numeric(rows: Sequence[Row], axis: str) -> bool:
    values = [row[axis] for row in rows if not row["control"]]
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=DPI)
    return path


def _save_csv(rows: Sequence[Row], axes: Sequence[str], path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, ["trial", "control", *axes, *_RESULTS], extrasaction="ignore", restval=""
        )
        writer.writeheader()
        writer.writerows(rows)
    return path


def _number(value: float | None, digits: int, percent: bool) -> str:
    if value is None:
        return "-"
    return f"{100 * value if percent else value:.{digits}f}"


def _top1(row: Row) -> str:
    return f"{100 * row['top1']:.1f}" if "top1" in row else "-"


def _interval(row: Row) -> str:
    return f"{100 * row['low']:.1f} to {100 * row['high']:.1f}" if "top1" in row else "-"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{_top1(row)} ({_interval(row)})" if "top1" in row else str(row["status"])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
