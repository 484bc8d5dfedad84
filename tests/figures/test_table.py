"""A table as text and as a picture."""

from __future__ import annotations

from kinema.figures.table import TextTable, draw_table


def test_columns_line_up_and_bold_rows_are_marked() -> None:
    rows = [["a", "1.0"], ["bcd", "10.0"]]
    table = TextTable(["x", "value"], rows, [False, True], frozenset({(1, 1)}), frozenset({1}))
    assert table.text().splitlines() == [
        "x    value",
        "----------",
        "a      1.0",
        "----------",
        "bcd   10.0 *",
    ]


def test_text_of_a_picture_lies_inside_it() -> None:
    long = "a note that is much longer than the table is wide " * 4
    table = TextTable(["name", "value"], [["a rather long name", "1.0"]], [False, True])
    figure = draw_table(table, "A title longer than its table, as titles often are", [long])
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
