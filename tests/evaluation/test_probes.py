"""Probes against scikit-learn, closed forms and loops; groups and orders that must not matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression

from kinema.errors import ConfigError
from kinema.evaluation.attentive_probe import (
    AttentiveClassifier,
    AttentiveProbe,
)
from kinema.evaluation.features import Features
from kinema.evaluation.knn_probe import KnnProbe
from kinema.evaluation.linear_probe import Lbfgs, LinearProbe, Sgd
from kinema.evaluation.probes import Probe, choose, leave_one_group_out, official
from kinema.evaluation.readout import pool_slots, token_grid
from kinema.models.vit import ViTConfig

CPU = torch.device("cpu")
CLASSES = 4
REGRESSION = LinearProbe(optimizer=Lbfgs(c=[0.5], tolerance=1e-8), normalisation="none")


def drawn(
    count: int,
    *shape: int,
    seed: int = 0,
    carries: float = 1.0,
    num_groups: int | None = None,
) -> Features:
    """Random features of `count` videos; along the label's axis they are larger by `carries`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    values = rng.normal(size=(count, *shape)).astype(np.float32)
    values[np.arange(count), ..., labels] += carries * 3
    for array in (values, labels):
        array.setflags(write=False)  # as Ray hands them over
    groups = [f"g{i if num_groups is None else (i // CLASSES) % num_groups}" for i in range(count)]
    return Features(tuple(f"v{i:03}" for i in range(count)), values, labels, tuple(groups))


def accuracy(answer: Any) -> float:
    return float((answer.probabilities.argmax(1) == answer.about.labels).mean())


PROBES: list[Probe] = [
    LinearProbe(),
    REGRESSION,
    LinearProbe(optimizer=Lbfgs()),
    KnnProbe(),
    KnnProbe(vote="plain", k=3),
    AttentiveProbe(heads=2, batch_size=32),
]


def shape_for(probe: Probe) -> tuple[int, ...]:
    return (2, 5, 8) if probe.reads == "tokens" else (2, 8)


def test_regression_is_scikit_learns() -> None:
    train, test = drawn(60, 1, 8, seed=1, carries=0.3), drawn(20, 1, 8, seed=2)
    found = official(REGRESSION, train, test, CLASSES, 0, CPU).probabilities
    model = LogisticRegression(C=0.5, tol=1e-8, max_iter=2000)
    model.fit(train.values[:, 0].astype(np.float64), train.labels)
    expected = model.predict_proba(test.values[:, 0].astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_regression_minimises_the_penalised_likelihood_over_views() -> None:
    """The same minimum found from the formula: a video's views share its weight."""
    train, test = drawn(30, 3, 5, seed=3, carries=0.3), drawn(9, 3, 5, seed=4)
    x = train.values.reshape(-1, 5).astype(np.float64)
    y = np.repeat(train.labels, 3)

    def objective(flat: NDArray[np.float64]) -> float:
        weight, bias = flat[:-CLASSES].reshape(5, CLASSES), flat[-CLASSES:]
        scores = x @ weight + bias
        losses = logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]
        return float(0.5 * losses.sum() / 3 + 0.5 * (weight**2).sum())

    best = minimize(objective, np.zeros(6 * CLASSES), tol=1e-10).x
    weight, bias = best[:-CLASSES].reshape(5, CLASSES), best[-CLASSES:]
    expected = softmax(test.values.astype(np.float64) @ weight + bias, axis=-1).mean(axis=1)
    found = official(REGRESSION, train, test, CLASSES, 0, CPU).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_regression_that_does_not_converge_says_so() -> None:
    probe = LinearProbe(optimizer=Lbfgs(c=[1e6], max_iterations=1))
    with pytest.raises(ConfigError, match="no convergence within max_iterations 1 at c=1e\\+06"):
        official(probe, drawn(40, 1, 8), drawn(8, 1, 8), CLASSES, 0, CPU)


def test_one_step_of_sgd_by_hand() -> None:
    """One batch, one epoch: the first weights move along the cross entropy's gradient."""
    train, test = drawn(16, 1, 6, seed=5), drawn(7, 1, 6, seed=6)
    probe = LinearProbe(optimizer=Sgd(epochs=1, batch_size=16, base_lr=[8.0]), normalisation="none")
    layer = probe._layer(train, CLASSES, 3)
    weight = layer.weight.detach().numpy().astype(np.float64)  # type: ignore[operator,union-attr]
    x = train.values[:, 0].astype(np.float64)
    wrong = softmax(x @ weight.T, axis=1) - np.eye(CLASSES)[train.labels]
    rate = 8.0 * 16 / 256
    weight -= rate * wrong.T @ x / 16
    bias = -rate * wrong.mean(axis=0)
    expected = softmax(test.values[:, 0] @ weight.T + bias, axis=1)
    found = official(probe, train, test, CLASSES, 3, CPU).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("normalisation", ["batch_norm", "standardise"])
def test_normalised_probes_do_not_see_scale_and_shift(normalisation: Any) -> None:
    probe = LinearProbe(normalisation=normalisation, optimizer=Sgd(epochs=30, batch_size=32))
    train, test = drawn(80, 2, 8, seed=7), drawn(40, 2, 8, seed=8)
    scale = np.array([1e-2, 1e3, 1, 7, 1e-1, 3, 50, 1], np.float32)

    def moved(features: Features) -> Features:
        values = features.values * scale + 5 * scale
        return Features(features.ids, values, features.labels, features.groups)

    found = official(probe, moved(train), moved(test), CLASSES, 0, CPU)
    before = official(probe, train, test, CLASSES, 0, CPU)
    np.testing.assert_allclose(found.probabilities, before.probabilities, atol=5e-3)
    assert accuracy(found) > 0.9


def test_batch_norm_without_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="lbfgs has no batches"):
        LinearProbe(optimizer=Lbfgs(), normalisation="batch_norm")


@pytest.mark.parametrize("probe", PROBES, ids=str)
def test_labels_in_the_features_are_found_and_only_those(probe: Probe) -> None:
    shape = shape_for(probe)
    train, test = drawn(120, *shape, carries=3.0), drawn(40, *shape, seed=1, carries=3.0)
    assert accuracy(official(probe, train, test, CLASSES, 0, CPU)) == 1.0
    silent = drawn(120, *shape, carries=0.0), drawn(200, *shape, seed=1, carries=0.0)
    assert 0.1 < accuracy(official(probe, *silent, CLASSES, 0, CPU)) < 0.4  # chance 0.25


@pytest.mark.parametrize("probe", PROBES, ids=str)
def test_the_order_of_videos_changes_nothing(probe: Probe) -> None:
    shape = shape_for(probe)
    train, test = drawn(40, *shape, carries=0.3), drawn(12, *shape, seed=1)
    rng = np.random.default_rng(0)
    one = official(probe, train, test, CLASSES, 0, CPU)
    shuffled = train.take(rng.permutation(40)), test.take(rng.permutation(12))
    other = official(probe, *shuffled, CLASSES, 0, CPU)
    assert one.about.ids == other.about.ids
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


@given(
    k=st.integers(1, 14),
    vote=st.sampled_from(["weighted", "plain"]),
    views=st.integers(1, 3),
    seed=st.integers(0, 50),
)
def test_neighbours_vote_as_in_a_loop(k: int, vote: Any, views: int, seed: int) -> None:
    train, test = drawn(12, views, 6, seed=seed), drawn(5, views, 6, seed=seed + 100)
    found = official(KnnProbe(k=k, vote=vote), train, test, CLASSES, 0, CPU).probabilities
    bank = []
    for video in train.values.astype(np.float64):
        mean = np.mean([view / np.linalg.norm(view) for view in video], axis=0)
        bank.append(mean / np.linalg.norm(mean))
    for answer, video in zip(found, test.values.astype(np.float64), strict=True):
        votes = np.zeros((views, CLASSES))
        for number, view in enumerate(video):
            similar = [float(view @ other) / np.linalg.norm(view) for other in bank]
            nearest = sorted(range(12), key=lambda i: -similar[i])[: min(k, 12)]
            for i in nearest:
                weight = math.exp(similar[i] / 0.07) if vote == "weighted" else 1.0
                votes[number, train.labels[i]] += weight
            votes[number] /= votes[number].sum()
        np.testing.assert_allclose(answer, votes.mean(axis=0), atol=1e-4)


def test_a_small_temperature_does_not_overflow() -> None:
    found = official(KnnProbe(temperature=1e-4), drawn(30, 1, 6), drawn(9, 1, 6), CLASSES, 0, CPU)
    assert np.isfinite(found.probabilities).all()
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)


def test_attention_of_the_query_written_out() -> None:
    torch.manual_seed(0)
    network = AttentiveClassifier(8, 2, 2.0, CLASSES).double()
    torch.nn.init.normal_(network.attention.v.bias)  # which starts at zero
    tokens = torch.randn(3, 5, 8, dtype=torch.float64)
    normed = torch.nn.functional.layer_norm(
        tokens, (8,), network.norm_tokens.weight, network.norm_tokens.bias, network.norm_tokens.eps
    )
    attention = network.attention
    q = (network.query @ attention.q.weight.T + attention.q.bias).view(2, 4)
    k = (normed @ attention.k.weight.T).view(3, 5, 2, 4)
    v = (normed @ attention.v.weight.T + attention.v.bias).view(3, 5, 2, 4)
    weights = (torch.einsum("hd,bnhd->bhn", q, k) / 2).softmax(dim=-1)  # sqrt(4) = 2
    seen = torch.einsum("bhn,bnhd->bhd", weights, v).reshape(3, 8)
    pooled = network.query + seen @ attention.proj.weight.T + attention.proj.bias
    pooled = pooled + network.mlp(network.norm_pooled(pooled))
    expected = pooled @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(tokens), expected)
    shuffled = tokens[:, [3, 1, 4, 0, 2]]
    torch.testing.assert_close(network(shuffled), expected)


def test_attention_finds_the_one_token_that_tells() -> None:
    """One of 20 tokens carries the label; it is drowned in the mean, which a linear probe reads."""

    def hidden(count: int, seed: int) -> Features:
        plain = drawn(count, 1, 20, 16, seed=seed, carries=0.0)
        values = plain.values.copy()
        place = np.random.default_rng(seed).integers(0, 20, count)
        values[np.arange(count), 0, place, 8 + plain.labels] += 12
        return Features(plain.ids, values, plain.labels, plain.groups)

    train, test = hidden(300, 0), hidden(80, 1)
    probe = AttentiveProbe(heads=4, epochs=40, batch_size=30, lr=[3e-3])
    found = accuracy(official(probe, train, test, CLASSES, 0, CPU))
    means = [
        Features(part.ids, part.values.mean(axis=2), part.labels, part.groups)
        for part in (train, test)
    ]
    linear = accuracy(official(LinearProbe(optimizer=Lbfgs()), *means, CLASSES, 0, CPU))
    assert found > 0.95
    assert found > linear


def test_tokens_of_a_slot_are_averaged_in_place() -> None:
    tokens = np.arange(2 * 4 * 6, dtype=np.float32).reshape(1, 48, 1)
    found = pool_slots(torch.from_numpy(tokens), (2, 4, 6), 2)
    grid = tokens.reshape(2, 4, 6)
    expected = [
        grid[t, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean()
        for t in range(2)
        for i in range(2)
        for j in range(2)
    ]
    np.testing.assert_allclose(found.numpy().ravel(), expected)


def test_size_of_kept_tokens() -> None:
    vit = ViTConfig()  # ViT-B, 16 frames, 224 x 224: 8 x 14 x 14 tokens of 768
    assert token_grid(vit) == (8, 14, 14)
    assert AttentiveProbe().cache_bytes(vit, 10, 6) == 10 * 6 * 1568 * 768 * 2
    assert AttentiveProbe(side=7).cache_bytes(vit, 10, 6) == 10 * 6 * 392 * 768 * 2
    with pytest.raises(ConfigError, match=r"probe\.side: 5 does not divide the 14 x 14 tokens"):
        AttentiveProbe(side=5).check(vit)
    with pytest.raises(ConfigError, match=r"probe\.heads: 7 does not divide embed_dim 768"):
        AttentiveProbe(heads=7).check(vit)


class Spy(KnnProbe):
    """Notes what it was fitted to and asked about."""

    def settings(self) -> list[dict[str, float]]:
        return [{"a": 1.0}, {"a": 2.0}]

    def fit_predict(self, train, asked, num_classes, setting, seed, device):  # type: ignore
        NOTES.append((train.groups, train.ids, asked.copy()))
        return super().fit_predict(train, asked, num_classes, setting, seed, device)


NOTES: list[tuple[tuple[str, ...], tuple[str, ...], NDArray[np.float32]]] = []


@settings(max_examples=30)
@given(num_groups=st.integers(2, 6), count=st.integers(24, 40), seed=st.integers(0, 20))
def test_no_group_is_judged_by_a_probe_that_saw_it(num_groups: int, count: int, seed: int) -> None:
    features = drawn(count, 1, 6, seed=seed, num_groups=num_groups)
    owner = {features.values[i].tobytes(): features.groups[i] for i in range(count)}
    NOTES.clear()
    if num_groups == 2:  # with one group left there is nothing to hold out
        with pytest.raises(ConfigError, match="cannot be split"):
            leave_one_group_out(Spy(), features, CLASSES, 0, CPU)
        return
    answer = leave_one_group_out(Spy(), features, CLASSES, 0, CPU)
    assert answer.about.ids == features.ids
    asked: list[bytes] = []
    for number, (groups, _, values) in enumerate(NOTES):
        about = {owner[value.tobytes()] for value in values}
        assert not about & set(groups)
        if number % 3 == 2:  # two settings are tried on held-out videos, then one is used
            asked += [value.tobytes() for value in values]
            left_out = about
            for tried, _, held in NOTES[number - 2 : number]:
                assert not left_out & set(tried)
                assert not left_out & {owner[value.tobytes()] for value in held}
    assert sorted(asked) == sorted(owner)
    assert set(answer.settings) == set(features.groups)


def test_groups_accuracies_average_to_the_whole() -> None:
    features = drawn(40, 2, 8, num_groups=5, carries=0.2)
    answer = leave_one_group_out(KnnProbe(), features, CLASSES, 0, CPU)
    by_group = answer.accuracy_by_group()
    counts = {name: features.groups.count(name) for name in by_group}
    total = sum(by_group[name] * counts[name] for name in by_group) / 40
    assert total == pytest.approx(accuracy(answer))


def test_one_group_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError, match="the manifest has one group"):
        leave_one_group_out(KnnProbe(), drawn(8, 1, 6, num_groups=1), CLASSES, 0, CPU)


def test_held_out_videos_choose_the_penalty() -> None:
    """Only a weak penalty can use features this small."""
    train = drawn(80, 1, 8)
    small = Features(train.ids, train.values * 1e-3, train.labels, train.groups)
    probe = LinearProbe(optimizer=Lbfgs(c=[1e-9, 1e6], tolerance=1e-6), normalisation="none")
    assert choose(probe, small, CLASSES, 0, CPU) == {"c": 1e6}


def test_a_class_without_training_videos_gets_nothing_from_regression() -> None:
    train = drawn(40, 1, 8)
    train = train.take(np.flatnonzero(train.labels != 2))
    found = official(REGRESSION, train, drawn(8, 1, 8), CLASSES, 0, CPU).probabilities
    np.testing.assert_array_equal(found[:, 2], 0)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
