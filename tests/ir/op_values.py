"""Small repeatable operands for operator cases."""

from __future__ import annotations

import numpy as np

from tests.ir.op_case import Constant


def real(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 numbers."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def within(low: float, high: float, *shape: int, seed: int = 0) -> np.ndarray:
    """Float32 numbers spread evenly over low..high."""
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


def whole(*shape: int, dtype: type = np.int64, low: int = -9, high: int = 9, seed: int = 0) -> np.ndarray:
    """Integers from low to high - 1."""
    return np.random.default_rng([seed, *shape]).integers(low, high, shape).astype(dtype)


def nonzero(*shape: int, dtype: type = np.int64) -> np.ndarray:
    """Integers without zero, of both signs."""
    values = whole(*shape, dtype=dtype, low=1, high=5)
    return values * np.where(np.arange(values.size).reshape(shape) % 2, -1, 1).astype(dtype)


def truth(*shape: int, seed: int = 0) -> np.ndarray:
    """Booleans."""
    return np.random.default_rng([seed, *shape]).random(shape) > 0.5


def longs(*values: int) -> Constant:
    """A constant int64 vector: axes, shapes, sizes."""
    return Constant(np.array(values, np.int64))


def floats(*values: float) -> Constant:
    """A constant float32 vector."""
    return Constant(np.array(values, np.float32))


def scalar(value: float, dtype: type = np.float32) -> Constant:
    """A constant of rank 0."""
    return Constant(np.array(value, dtype))


def weight(*shape: int, seed: int = 1) -> Constant:
    """A constant of standard normal numbers."""
    return Constant(real(*shape, seed=seed))


def positive(*shape: int, seed: int = 2) -> Constant:
    """A constant of numbers in [0.5, 1.5)."""
    return Constant(within(0.5, 1.5, *shape, seed=seed))
