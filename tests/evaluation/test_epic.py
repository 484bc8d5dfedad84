"""Both protocols of EPIC-Kitchens against loops over videos and pairs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from kinema.errors import KinemaError
from kinema.evaluation.epic import action_parts, combined_accuracies, marginal_accuracies
from kinema.evaluation.multiview import prediction_table

VERBS, NOUNS, VIDEOS = 4, 5, 60


def probabilities(rng: np.random.Generator, classes: int) -> np.ndarray:
    return rng.dirichlet(np.ones(classes), VIDEOS)


def ids() -> list[str]:
    return [f"v{index:02}" for index in range(VIDEOS)]


def test_verb_and_noun_classifiers_make_an_action_classifier() -> None:
    rng = np.random.default_rng(0)
    verb, noun = probabilities(rng, VERBS), probabilities(rng, NOUNS)
    true_verb, true_noun = rng.integers(0, VERBS, VIDEOS), rng.integers(0, NOUNS, VIDEOS)
    top1 = top5 = 0
    for video in range(VIDEOS):
        scores = {
            (v, n): verb[video, v] * noun[video, n] for v in range(VERBS) for n in range(NOUNS)
        }
        ranked = sorted(scores, key=lambda pair: -scores[pair])
        true = (true_verb[video], true_noun[video])
        top1 += ranked[0] == true
        top5 += true in ranked[:5]
    order = rng.permutation(VIDEOS)
    verbs = prediction_table(ids(), true_verb, verb)
    nouns = prediction_table(ids(), true_noun, noun).take(pa.array(order))
    found = combined_accuracies(verbs, nouns)
    assert found["action"].value == pytest.approx(top1 / VIDEOS)
    assert found["action_top5"].value == pytest.approx(top5 / VIDEOS)
    both = (verb.argmax(1) == true_verb) & (noun.argmax(1) == true_noun)
    assert found["action"].value == pytest.approx(both.mean())  # a product peaks where both do
    assert found["verb"].value == pytest.approx((verb.argmax(1) == true_verb).mean())
    with pytest.raises(KinemaError, match="not the same"):
        combined_accuracies(verbs, nouns.slice(1))


def test_an_action_classifier_is_marginalised() -> None:
    rng = np.random.default_rng(1)
    pairs = [(0, 1), (0, 2), (1, 1), (3, 0)]
    labels = rng.integers(0, len(pairs), VIDEOS)
    manifest = pa.table(
        {
            "label": labels,
            "verb": [pairs[label][0] for label in labels],
            "noun": [pairs[label][1] for label in labels],
        }
    )
    parts = action_parts(manifest)
    assert parts is not None
    np.testing.assert_array_equal(parts, pairs)
    scores = probabilities(rng, len(pairs))
    right = {"verb": 0, "noun": 0}
    for video in range(VIDEOS):
        for column, name in enumerate(right):
            sums: dict[int, float] = {}
            for action, pair in enumerate(pairs):
                sums[pair[column]] = sums.get(pair[column], 0.0) + scores[video, action]
            right[name] += max(sums, key=lambda part: sums[part]) == pairs[labels[video]][column]
    found = marginal_accuracies(prediction_table(ids(), labels, scores), parts)
    assert {name: at.value for name, at in found.items()} == {
        name: pytest.approx(count / VIDEOS) for name, count in right.items()
    }


def test_labels_that_are_no_pairs_have_no_parts() -> None:
    columns = {"label": [0, 0, 1], "verb": [0, 0, 1], "noun": [1, 2, 1]}
    assert action_parts(pa.table(columns)) is None  # the label is the verb
    assert action_parts(pa.table({"label": [0, 1]})) is None
    gap = action_parts(pa.table({"label": [0, 2], "verb": [0, 1], "noun": [1, 1]}))
    assert gap is not None
    assert gap.tolist() == [[0, 1], [-1, -1], [1, 1]]
