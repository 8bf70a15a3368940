"""The published rules against their definitions: inverse forms, hand-computed examples, exhaustive search."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from compiler.passes.merge.mtz import distances, regular, shared_weights
from compiler.passes.merge.pairing import greedy_pairs, zip_groups
from compiler.passes.merge.pam import (
    VARIANCE,
    Information,
    irrelevant,
    kernel,
    label_entropy,
    own_labels,
    regroup,
)
from compiler.passes.merge.policies import Pam


def moment(rng, d):
    x = rng.standard_normal((4 * d, d))
    return x.T @ x / len(x)


# ---------------------------------------------------------------------- MTZ
@pytest.mark.parametrize("seed", range(5))
def test_mtz_closed_forms_equal_the_published_inverse_forms(seed):
    """Equations 8 and 9 of the paper, with inverse Hessians, against forms without them."""
    rng = np.random.default_rng(seed)
    a, b = moment(rng, 7), moment(rng, 7)
    wa, wb = rng.standard_normal((7, 4)), rng.standard_normal((7, 6))
    inverse = np.linalg.inv(np.linalg.inv(a) + np.linalg.inv(b))
    for i, j in itertools.product(range(4), range(6)):
        gap = wa[:, i] - wb[:, j]
        assert distances(a, b, wa, wb)[i, j] == pytest.approx(gap @ inverse @ gap / 2, rel=1e-9)
    pairs = wa, wb[:, :4]
    published = wa + np.linalg.solve(a, inverse @ (pairs[1] - wa))
    assert np.allclose(shared_weights([a, b], pairs), published, rtol=1e-10, atol=1e-12)


def test_mtz_distance_is_the_least_cost_of_sharing():
    rng = np.random.default_rng(3)
    a, b = moment(rng, 5), moment(rng, 5)
    wa, wb = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    shared = shared_weights([a, b], [wa, wb])
    for i in range(3):
        left, right = wa[:, i] - shared[:, i], wb[:, i] - shared[:, i]
        cost = (left @ a @ left + right @ b @ right) / 2
        assert distances(a, b, wa, wb)[i, i] == pytest.approx(cost, rel=1e-9)


def test_mtz_three_networks_and_dead_inputs():
    rng = np.random.default_rng(4)
    moments = [moment(rng, 5) for _ in range(3)]
    weights = [rng.standard_normal((5, 2)) for _ in range(3)]
    shared = shared_weights(moments, weights)
    slope = sum(h @ (shared - w) for h, w in zip(moments, weights, strict=True))
    assert np.allclose(slope, 0)  # the gradient of the summed cost vanishes
    dead = np.diag([1.0, 0.0, 2.0])
    found = distances(regular(dead), regular(dead), np.eye(3), np.eye(3))
    assert np.all(np.isfinite(found)) and np.allclose(np.diag(found), 0)


def test_greedy_pairs_take_the_nearest_first():
    assert greedy_pairs(np.array([[3.0, 1.0], [2.0, 4.0], [0.5, 9.0]]), 2) == [(2, 0), (0, 1)]
    assert greedy_pairs(np.array([[3.0, 1.0], [2.0, 4.0]]), 1) == [(0, 1)]


# ---------------------------------------------------------------------- ZipIt
LIKENESS = np.array(
    [
        [1.0, 0.9, 0.8, 0.1],
        [0.9, 1.0, 0.3, 0.2],
        [0.8, 0.3, 1.0, 0.4],
        [0.1, 0.2, 0.4, 1.0],
    ]
)
"""Channels 0 and 1 belong to network a, 2 and 3 to network b."""


def test_zipit_across_networks_only():
    """Without a budget the likest pair 0-1 is inside a network: 0-2 goes first (0.8), then 1-3 (0.2)."""
    assert zip_groups(LIKENESS, "aabb", 2, alpha=0.3, beta=0.0) == [[0, 2], [1, 3]]


def test_zipit_within_a_network():
    """With a budget of one merge per network: 0-1 (0.9); then 2-3 (0.4) beats {0,1}-2 (min(.8, .3) * .3 = .09)."""
    assert zip_groups(LIKENESS, "aabb", 2, alpha=0.3, beta=0.5) == [[0, 1], [2, 3]]


def test_zipit_scales_what_was_merged():
    """Without scaling, {0,1}-2 counts 0.3 and 2-3 0.4; at 0.25 between 2 and 3 the group wins only if alpha is
    1."""
    likeness = LIKENESS.copy()
    likeness[2, 3] = likeness[3, 2] = 0.25
    assert zip_groups(likeness, "aabb", 2, alpha=1.0, beta=0.5) == [[0, 1, 2], [3]]
    assert zip_groups(likeness, "aabb", 2, alpha=0.3, beta=0.5) == [[0, 1], [2, 3]]


# ---------------------------------------------------------------------- PAM
def test_pam_regrouping_by_hand():
    """Six channels, three tasks. 0 is irrelevant for all: dead. 1 only matters to the first task, 2 to the second;
    3 matters to the first two, so it is shared by all three (the method knows no label in between)."""
    exclusive, shared = regroup({0: [0, 2, 4], 1: [0, 1, 4], 2: [0, 1, 2, 3, 4]}, 6)
    assert exclusive == {0: [1], 1: [2], 2: []}
    assert shared == [3, 5]


def test_pam_two_tasks_partition_the_pool():
    exclusive, shared = regroup({0: [0, 1], 1: [1, 2]}, 4)
    assert (exclusive, shared) == ({0: [2], 1: [0]}, [3])


def entropy(distances: np.ndarray, dimensions: int) -> float:
    """Entropy bound in nats of a mixture of Gaussians at samples, from their squared distances [n, n]."""
    near = np.exp(-distances / (2 * VARIANCE)).mean(axis=1)
    return float(dimensions / 2 * np.log(2 * np.pi * np.e * VARIANCE) - np.mean(np.log(near)))


def test_information_by_hand():
    """Two far apart values that tell the label exactly: H(Z) - H(Z|Y) = log 2."""
    x = np.repeat([0.0, 100.0], 8)
    labels = np.where(x > 0, 1.0, -1.0)[:, None]
    near = kernel((x[:, None] - x) ** 2)
    assert Information(labels)(near) == pytest.approx(np.log(2))
    assert label_entropy(labels) == pytest.approx(np.log(2))
    assert Information(-labels)(near) == pytest.approx(np.log(2))
    mixed = np.tile([1.0, -1.0], 8)[:, None]
    assert Information(mixed)(near) == pytest.approx(0)


def test_information_is_what_entropies_on_either_side_of_a_label_leave():
    rng = np.random.default_rng(1)
    features = 0.4 * rng.standard_normal((40, 3))
    labels = np.column_stack([rng.choice([-1.0, 1.0], (40, 2)), np.ones(40)])  # one is the same for all
    distances = ((features[:, None] - features) ** 2).sum(axis=-1)
    told = 0.0
    for label in labels.T:
        told += entropy(distances, 3)
        for side in (label > 0, label < 0):
            if side.any():
                told -= side.mean() * entropy(distances[np.ix_(side, side)], 3)
    near = np.prod([kernel((f[:, None] - f) ** 2) for f in features.T], axis=0)
    assert Information(labels)(near) == pytest.approx(told, rel=1e-12) and told > 0.1


def test_irrelevant_channels_are_found_greedily():
    rng = np.random.default_rng(0)
    label = rng.choice([-1.0, 1.0], (96, 1))
    features = rng.standard_normal((96, 5))
    features[:, [1, 4]] += 6 * label
    found = irrelevant(features, label, 0.6 * np.log(2))
    assert set(found[:2]) <= {0, 2, 3} and not {1, 4} & set(found)
    told = [Information(label)(kernel((f[:, None] - f) ** 2)) for f in features.T]
    assert found[0] == int(np.argmin(told))
    assert irrelevant(features, label, 100.0) != found  # everything is irrelevant at a high threshold


def test_labels_from_a_networks_own_decisions():
    assert own_labels(np.array([[0.1, 0.9], [0.8, 0.2]])).tolist() == [[-1, 1], [1, -1]]
    assert own_labels(np.array([[1.0], [2.0], [9.0]])).tolist() == [[-1], [-1], [1]]


def test_pam_looks_at_the_first_128_samples_as_published():
    """At the largest of the five positions of each, standardised."""
    rng = np.random.default_rng(0)
    rows, scores = [rng.standard_normal((130 * 5, n)) for n in (3, 2)], rng.standard_normal((130, 4))
    graph = SimpleNamespace(tasks={"a": SimpleNamespace(outputs=("y",))})
    pam = Pam(
        SimpleNamespace(graph=graph),
        SimpleNamespace(samples=130, outputs={"y": scores}),
        SimpleNamespace(together=lambda groups: rows),
        *({}, (), 1),
    )
    peaks = np.concatenate(rows, axis=1).reshape(130, 5, 5).max(axis=1)[:128]
    np.testing.assert_allclose(pam._features((0, 1)), (peaks - peaks.mean(axis=0)) / peaks.std(axis=0))
    np.testing.assert_array_equal(pam._labels("a"), own_labels(scores)[:128])
