"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.typing import NDArray


def confusion_matrix(
    labels: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int
) -> NDArray[np.int64]:
    """(classes, classes) videos by true class (row) and predicted class (column)."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predicted)), 1)
    return matrix


def confusion_table(matrix: NDArray[np.int64], names: Sequence[str]) -> pa.Table:
    """A row per class: `class`, `videos`, `accuracy` (null without videos), `taken_for` and
    `taken_for_videos`, the class it is confused with most (null where it never is)."""
    rows = []
    for index, name in enumerate(names):
        total, hits = int(matrix[index].sum()), int(matrix[index, index])
        wrong = matrix[index].copy()
        wrong[index] = 0
        worst = int(wrong.argmax())
        confused = bool(wrong[worst])
        rows.append(
            {
                "class": name,
                "videos": total,
                "accuracy": hits / total if total else None,
                "taken_for": names[worst] if confused else None,
                "taken_for_videos": int(wrong[worst]) if confused else None,
            }
        )
    schema = pa.schema(
        [
            ("class", pa.string()),
            ("videos", pa.int32()),
            ("accuracy", pa.float64()),
            ("taken_for", pa.string()),
            ("taken_for_videos", pa.int32()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)
