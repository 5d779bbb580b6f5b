"""Block iteration on a Gram: what it captures, from nothing and from a start; deficient Grams."""

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.linalg.subspace import DIRECT, leading_vectors

RNG = np.random.default_rng(0)
SIZE, RANK = DIRECT + 60, 20


def gram(values):
    """A Gram with these eigenvalues in a random basis."""
    q = np.linalg.qr(RNG.standard_normal((SIZE, SIZE)))[0]
    return jnp.asarray((q * values) @ q.T, jnp.float32)


def captured(g, v):
    return float(jnp.trace(v.T @ g @ v))


def test_slow_spectra_are_captured_and_a_start_is_bettered():
    values = np.arange(1, SIZE + 1.0) ** -1
    g, key = gram(values), jax.random.key(0)
    best = float(values[:RANK].sum())
    assert leading_vectors(g, RANK, key).shape == (SIZE, RANK)
    found = [leading_vectors(g, RANK, key)]
    found.append(leading_vectors(g, RANK, key, found[0]))
    caught = [captured(g, v) for v in found]
    assert 0.995 * best < caught[0] < caught[1] <= best * (1 + 1e-5)
    assert caught[1] > 0.9995 * best
    for v in found:
        np.testing.assert_allclose(v.T @ v, np.eye(RANK), atol=1e-5)


def test_a_gram_of_lower_rank_still_gives_orthonormal_vectors():
    values = np.where(np.arange(SIZE) < 5, 1.0, 0.0)
    g = gram(values)
    v = leading_vectors(g, RANK, jax.random.key(1), jnp.eye(SIZE, RANK))
    np.testing.assert_allclose(v.T @ v, np.eye(RANK), atol=1e-5)
    assert captured(g, v) > 5 * (1 - 1e-5)
    assert np.isfinite(leading_vectors(0 * g, RANK, jax.random.key(1))).all()
