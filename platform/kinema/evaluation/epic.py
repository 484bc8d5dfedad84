"""EPIC-Kitchens-100: verb, noun and action accuracy, by both protocols.

Either an action classifier is marginalised over its actions' verbs and nouns, or a verb and a noun
classifier are combined: an action's score is the product of theirs, over all pairs (MOFO, Table 1;
the benchmark's own way).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kinema.errors import KinemaError
from kinema.evaluation.statistics import Interval, bootstrap_interval
from kinema.training.predict import top_k_hits

CHUNK = 256
"""Videos whose verb-noun pairs are scored at once."""


def action_parts(manifest: pa.Table) -> NDArray[np.int64] | None:
    """Verb and noun of each action: (classes, 2), -1 where the manifest has no video of a class.

    None unless the manifest has columns `verb` and `noun` and its labels are pairs of them.
    """
    if not {"verb", "noun"} <= set(manifest.column_names):
        return None
    rows = manifest.select(["label", "verb", "noun"]).to_pylist()
    pairs: dict[int, tuple[int, int]] = {}
    for row in rows:
        if row["label"] is None:
            continue
        pair = (row["verb"], row["noun"])
        if pairs.setdefault(row["label"], pair) != pair:
            return None  # the label is the verb or the noun alone
    if not pairs or len(set(pairs.values())) < len(pairs):
        return None
    parts = np.full((max(pairs) + 1, 2), -1, dtype=np.int64)
    for label, pair in pairs.items():
        parts[label] = pair
    return parts


def marginal_accuracies(predictions: pa.Table, parts: NDArray[np.int64]) -> dict[str, Interval]:
    """Top-1 of verb and noun from an action classifier's table of predictions.

    A verb's probability is the sum of those of the actions that have it.
    """
    probabilities = np.stack(predictions["probabilities"].to_numpy(zero_copy_only=False))
    labels = predictions["label"].to_numpy()
    found = {}
    for column, name in enumerate(("verb", "noun")):
        known = np.flatnonzero(parts[:, column] >= 0)
        belongs = np.zeros((probabilities.shape[1], int(parts[:, column].max()) + 1))
        belongs[known, parts[known, column]] = 1
        hits = top_k_hits(probabilities @ belongs, parts[labels, column], 1)
        found[name] = bootstrap_interval(hits)
    return found


def combined_accuracies(verbs: pa.Table, nouns: pa.Table) -> dict[str, Interval]:
    """Verb, noun and action accuracy of two classifiers tested on the same videos.

    Returns:
        Intervals of `verb`, `noun`, `action` (top-1) and `action_top5`.

    Raises:
        KinemaError: the tables are of different videos.
    """
    verbs, nouns = (table.sort_by("id") for table in (verbs, nouns))
    if verbs["id"].to_pylist() != nouns["id"].to_pylist():
        raise KinemaError(
            f"the verb classifier was tested on {len(verbs)} videos, the noun classifier on"
            f" {len(nouns)}, and they are not the same; test both on all of them"
        )
    scores = [
        np.stack(table["probabilities"].to_numpy(zero_copy_only=False)) for table in (verbs, nouns)
    ]
    truths = [table["label"].to_numpy() for table in (verbs, nouns)]
    better = np.empty(len(verbs), dtype=np.int64)
    for start in range(0, len(verbs), CHUNK):
        part = slice(start, start + CHUNK)
        pairs = np.einsum("bv,bn->bvn", scores[0][part], scores[1][part])
        own = pairs[np.arange(len(pairs)), truths[0][part], truths[1][part]]
        better[part] = (~(pairs < own[:, None, None])).sum(axis=(1, 2)) - 1
    return {
        "verb": bootstrap_interval(top_k_hits(scores[0], truths[0], 1)),
        "noun": bootstrap_interval(top_k_hits(scores[1], truths[1], 1)),
        "action": bootstrap_interval(better < 1),
        "action_top5": bootstrap_interval(better < 5),
    }
