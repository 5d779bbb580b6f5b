"""Khatri-Rao products, sweeps and rearrangements against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.linalg.khatri_rao import balanced_cut, compose, khatri_rao, sweep
from lrjax.linalg.separable import separate
from lrjax.linalg.van_loan import rearrange, restore

SHAPES = [(6, 5, 4), (7, 2, 9), (4, 3, 5, 2), (8, 3)]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_sweep_hands_every_update_the_mttkrp_of_the_newest_factors(shape):
    t = normal(0, *shape)
    factors = tuple(normal(k + 1, 3, d) for k, d in enumerate(shape))
    names = "abcd"[: len(shape)]
    seen = []

    def update(k, mttkrp, now):
        others = [f for j, f in enumerate(now) if j != k]
        terms = ",".join(f"r{n}" for j, n in enumerate(names) if j != k)
        want = np.einsum(f"{names},{terms}->r{names[k]}", t, *map(np.asarray, others))
        np.testing.assert_allclose(mttkrp, want, rtol=1e-4, atol=1e-4)
        seen.append(k)
        return now[k] * 2 + mttkrp / 10

    sweep(t, factors, update)
    assert seen == list(range(len(shape)))


def test_compose_and_khatri_rao():
    a, b, c = (normal(k, 3, d) for k, d in enumerate((6, 5, 4)))
    np.testing.assert_allclose(
        compose((a, b, c)), np.einsum("ri,rj,rk->ijk", a, b, c), rtol=1e-5, atol=1e-5
    )
    want = np.stack([np.kron(x, y) for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(khatri_rao([a, b]), want, rtol=1e-6)


def test_the_small_mode_of_a_kernel_stays_with_a_large_one():
    assert balanced_cut((512, 512, 9)) == 1
    assert balanced_cut((3, 3, 64, 128)) == 3
    assert balanced_cut((40, 40, 40, 40)) == 2


def test_rearrangement_of_a_kronecker_product_has_rank_one():
    a, b = normal(0, 6, 5), normal(1, 8, 12)
    w = jnp.kron(a, b)
    r = rearrange(w, 6, 5)
    np.testing.assert_allclose(r, np.outer(a.ravel(), b.ravel()), rtol=1e-6)
    np.testing.assert_array_equal(restore(r, 6, 5, 8), w)
    assert np.linalg.matrix_rank(w.reshape(30, 96)) > 1  # without the exchange it has not


def test_partial_traces_recover_a_product():
    spd = lambda x: np.asarray(x @ x.T)
    a, b = spd(normal(0, 4, 5)), spd(normal(1, 6, 7))
    for side, diagonal in ((np.kron(a, b), False), (np.kron(np.diag(a), np.diag(b)), True)):
        first, second = separate(jnp.asarray(side), (4, 6), diagonal=diagonal)
        np.testing.assert_allclose(np.kron(first, second), side, rtol=1e-4, atol=1e-4)
