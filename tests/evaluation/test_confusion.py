"""Confusion matrix and class table of a few videos counted by hand."""

from __future__ import annotations

import numpy as np

from kinema.evaluation.confusion import confusion_matrix, confusion_table


def test_rows_are_true_classes() -> None:
    matrix = confusion_matrix([0, 0, 0, 1, 1], [0, 1, 1, 1, 0], 3)
    np.testing.assert_array_equal(matrix, [[1, 2, 0], [1, 1, 0], [0, 0, 0]])
    rows = confusion_table(matrix, ["open", "close", "pour"]).to_pylist()
    assert rows[0] == {
        "class": "open",
        "videos": 3,
        "accuracy": 1 / 3,
        "taken_for": "close",
        "taken_for_videos": 2,
    }
    assert rows[2] == {
        "class": "pour",
        "videos": 0,
        "accuracy": None,
        "taken_for": None,
        "taken_for_videos": None,
    }
