"""Roots and ridge solves against scipy, singular matrices included."""

import jax.numpy as jnp
import numpy as np
import scipy.linalg as sl

from lrjax.linalg import solve_ridge, sqrt_psd, whiten


def grams():
    """A well conditioned, a singular and a zero matrix."""
    rng = np.random.default_rng(0)
    full, few = rng.standard_normal((40, 12)), rng.standard_normal((5, 12))
    return np.stack([full.T @ full / 40, few.T @ few / 5, np.zeros((12, 12))])


def test_roots_and_their_inverses():
    stack = grams()
    root = np.asarray(sqrt_psd(jnp.asarray(stack, jnp.float32)))
    np.testing.assert_allclose(root @ root, stack, atol=1e-5)
    np.testing.assert_allclose(root[0], sl.sqrtm(stack[0]).real, atol=1e-5)
    again, inverse = map(np.asarray, whiten(jnp.asarray(stack, jnp.float32)))
    np.testing.assert_allclose(again, root, atol=1e-6)
    for i in range(3):
        want = np.linalg.pinv(root[i].astype(np.float64), rcond=1e-3)
        np.testing.assert_allclose(inverse[i], want, atol=2e-3)


def test_ridge_solves():
    stack = grams()
    target = np.random.default_rng(1).standard_normal((3, 12, 4))
    found = np.asarray(solve_ridge(*(jnp.asarray(x, jnp.float32) for x in (stack, target)), 1e-2))
    for i in range(2):
        level = 1e-2 * np.trace(stack[i]) / 12
        want = np.linalg.solve(stack[i] + level * np.eye(12), target[i])
        np.testing.assert_allclose(found[i], want, rtol=2e-3, atol=2e-3)
    assert not found[2].any()
