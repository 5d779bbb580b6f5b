"""Pooling is a mean over real tokens; unit length survives the zero vector."""

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.zoo import mean_pool, unit


def test_mean_pool_is_the_mean_over_real_tokens():
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 4))
    mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    pooled = mean_pool(hidden, mask)
    np.testing.assert_allclose(pooled[0], np.mean(hidden[0], axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pooled[1], np.mean(hidden[1, :2], axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled[2], np.zeros(4))


def test_unit_has_length_one_and_a_finite_gradient_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(x)).all()
