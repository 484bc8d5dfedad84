"""Is one classifier better than another on the same videos? Paired tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import binomtest

from kinema.errors import KinemaError
from kinema.evaluation.statistics import Interval, bootstrap_interval


@dataclass(frozen=True)
class Comparison:
    """Two classifiers, A and B, on the videos that both were tested on.

    Attributes:
        a: top-1 of A on these videos.
        b: top-1 of B.
        difference: B's minus A's, with the bootstrap interval over videos, both drawn together.
        p_value: of McNemar's exact test, two-sided: how likely counts of videos that only one gets
            right are at least as uneven if neither is better.
        videos: a row per video: id, label, predicted_a, predicted_b.
        only_in_a: videos that only A was tested on.
        only_in_b: videos that only B was tested on.
    """

    a: Interval
    b: Interval
    difference: Interval
    p_value: float
    videos: pa.Table
    only_in_a: int
    only_in_b: int

    @property
    def counts(self) -> dict[str, int]:
        """Videos that both, one, or none of the two get right."""
        a, b = self._hits()
        return {
            "both": int((a & b).sum()),
            "only_a": int((a & ~b).sum()),
            "only_b": int((b & ~a).sum()),
            "neither": int((~a & ~b).sum()),
        }

    def won_by(self, which: str) -> pa.Table:
        """Rows of `videos` that only `a` or only `b` gets right."""
        a, b = self._hits()
        return self.videos.filter(pa.array(a & ~b if which == "a" else b & ~a))

    def _hits(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        label = self.videos["label"].to_numpy()
        a, b = (self.videos[f"predicted_{which}"].to_numpy() == label for which in "ab")
        return a, b


def compare(a: pa.Table, b: pa.Table) -> Comparison:
    """Compare two tables of predictions (`multiview.prediction_table`), video by video.

    Raises:
        KinemaError: no video is in both, one is twice in a table, or they disagree about a label.
    """
    for name, table in (("A", a), ("B", b)):
        if len(set(table["id"].to_pylist())) < len(table):
            raise KinemaError(f"{name}'s predictions have a video more than once")
    rows_a, rows_b = (
        {row["id"]: row for row in table.select(["id", "label", "predicted"]).to_pylist()}
        for table in (a, b)
    )
    common = [id for id in rows_a if id in rows_b]
    if not common:
        raise KinemaError("no video is in both runs' predictions: they tested different data")
    unlike = [id for id in common if rows_a[id]["label"] != rows_b[id]["label"]]
    if unlike:
        raise KinemaError(
            f"{len(unlike)} videos have another label in the other run, such as {unlike[0]}"
            f" ({rows_a[unlike[0]]['label']} and {rows_b[unlike[0]]['label']}): the runs were"
            " tested for different classes"
        )
    label, predicted_a, predicted_b = (
        np.array([rows[id][column] for id in common], dtype=np.int64)
        for rows, column in ((rows_a, "label"), (rows_a, "predicted"), (rows_b, "predicted"))
    )
    hits_a, hits_b = predicted_a == label, predicted_b == label
    only_a, only_b = int((hits_a & ~hits_b).sum()), int((hits_b & ~hits_a).sum())
    uneven = only_a + only_b
    return Comparison(
        a=bootstrap_interval(hits_a),
        b=bootstrap_interval(hits_b),
        difference=bootstrap_interval(hits_b.astype(np.float64) - hits_a),
        p_value=float(binomtest(only_a, uneven).pvalue) if uneven else 1.0,
        videos=pa.table(
            {"id": common, "label": label, "predicted_a": predicted_a, "predicted_b": predicted_b}
        ),
        only_in_a=len(rows_a) - len(common),
        only_in_b=len(rows_b) - len(common),
    )
