"""Multi-Task Zipping (He, Zhou, Thiele, NeurIPS 2018, arXiv 1805.09791): distance and shared weights in closed
form.

H_t = E[x x^T] over what network t's layer reads from channels that are shared already, with a constant 1. Sharing
the weights w_t of one channel each costs ½ sum_t (w_t - w)^T H_t (w_t - w), least at w = (sum_t H_t)^-1 sum_t H_t
w_t. For two networks that least value is ½ (w_A - w_B)^T (H_A^-1 + H_B^-1)^-1 (w_A - w_B), the published
distance; the published form of w uses inverses and is the same. Here both are computed without inverting a single
H_t, so that dead inputs do no harm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.calibration.moments import ridge


def regular(moment: np.ndarray) -> np.ndarray:
    """H + lambda I, lambda = 1e-4 tr(H) / d."""
    return np.asarray(moment + ridge(moment[None])[0])


def shared_weights(moments: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    """(sum_t H_t)^-1 sum_t H_t W_t; H_t [d, d], W_t [d, channels]."""
    total = np.sum(moments, axis=0)
    return np.asarray(
        np.linalg.solve(total, np.sum([h @ w for h, w in zip(moments, weights, strict=True)], axis=0))
    )


def distances(first: np.ndarray, second: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[channels of a, channels of b]: ½ (a_i - b_j)^T H (a_i - b_j), H = H_A (H_A + H_B)^-1 H_B; a [d, n], b [d,
    m].
    """
    middle = first @ np.linalg.solve(first + second, second)
    middle = (middle + middle.T) / 2
    left, right = np.sum(a * (middle @ a), axis=0), np.sum(b * (middle @ b), axis=0)
    return np.asarray(np.maximum((left[:, None] + right) / 2 - a.T @ middle @ b, 0))
