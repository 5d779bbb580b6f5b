"""Sums over what sparse columns pick are the dense product, and their gradients its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.formats import Sparse

GROUPS, GROUP, N = 3, 30, 150


def make(rng, count, *stack, dtype=jnp.float32):
    """`count` entries a group, none of which share a place."""
    shape = (*stack, N, GROUPS)
    index = np.argsort(rng.random((*shape, GROUP)), axis=-1)[..., :count]
    values = jnp.asarray(rng.standard_normal((*shape, count)), dtype)
    return Sparse(values, jnp.asarray(index, dtype), GROUP)


def dense(w):
    values, index = np.asarray(w.values, np.float64), np.asarray(w.index, np.int64)
    *stack, n, groups, _ = values.shape
    full = np.zeros((*stack, n, groups, GROUP))
    np.put_along_axis(full, index, values, axis=-1)
    return np.swapaxes(full.reshape(*stack, n, groups * GROUP), -1, -2)


# Whole columns in one pass, several passes, one row, and rows so few that they are gathered.
@pytest.mark.parametrize(("count", "rows"), [(2, 150), (8, 40), (8, 1), (2, 3)])
def test_products_and_gradients_are_those_of_the_dense_matrix(count, rows):
    rng = np.random.default_rng(0)
    w = make(rng, count)
    x = np.float32(rng.standard_normal((rows, GROUPS * GROUP)))
    y = np.float32(rng.standard_normal((rows, N)))
    apply = lambda x, values: x @ Sparse(values, w.index, GROUP)
    value, pull = jax.vjp(jax.jit(apply), jnp.asarray(x), w.values)
    np.testing.assert_allclose(value, x @ dense(w), atol=1e-4)
    of_x, of_values = pull(jnp.asarray(y))
    np.testing.assert_allclose(of_x, y @ dense(w).T, atol=1e-4)
    outer = (x.T @ y).T.reshape(N, GROUPS, GROUP)
    want = np.take_along_axis(outer, np.asarray(w.index, np.int64), axis=-1)
    np.testing.assert_allclose(of_values, want, atol=1e-4)


def test_stacks_and_low_precision_are_summed_in_full():
    rng = np.random.default_rng(1)
    w = make(rng, 4, 2)
    x = np.float32(rng.standard_normal((2, 40, GROUPS * GROUP)))
    np.testing.assert_allclose(jnp.asarray(x) @ w, x @ dense(w), atol=1e-4)
    half = make(rng, 4, dtype=jnp.bfloat16)
    x = jnp.asarray(rng.standard_normal((80, GROUPS * GROUP)), jnp.bfloat16)
    y = x @ half
    assert y.dtype == jnp.bfloat16
    want = np.asarray(x, np.float64) @ dense(half)
    np.testing.assert_allclose(np.float64(y), want, rtol=2**-8, atol=1e-6)
