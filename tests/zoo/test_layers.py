"""A zoo layer takes a dense or a factored weight, and refuses one of another shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.errors import ShapeError
from lrjax.formats import LowRank, Sum
from lrjax.zoo import Dense, Embed, LayerNorm

KEYS = jax.random.split(jax.random.key(0), 4)
X = jax.random.normal(KEYS[0], (2, 3, 7))
WEIGHT = LowRank(jax.random.normal(KEYS[1], (7, 2)), jax.random.normal(KEYS[2], (2, 5)))
BIAS = jnp.arange(5.0)


def test_dense_equals_its_equation_for_arrays_and_factors():
    expected = np.einsum("bti,ir,ro->bto", X, WEIGHT.left, WEIGHT.right) + np.arange(5)
    for kernel in (WEIGHT, Sum((WEIGHT,)), WEIGHT.left @ WEIGHT.right):
        y = Dense(5).apply({"params": {"kernel": kernel, "bias": BIAS}}, X)
        np.testing.assert_allclose(y, expected, rtol=2e-5, atol=1e-5)


def test_dense_never_forms_the_weight():
    run = lambda kernel: Dense(5, use_bias=False).apply({"params": {"kernel": kernel}}, X)
    shapes = {v.aval.shape for e in jax.make_jaxpr(run)(WEIGHT).eqns for v in e.outvars}
    assert (7, 5) not in shapes


def test_embed_looks_up_and_attends_with_one_factored_table():
    table = LowRank(WEIGHT.left, WEIGHT.right)
    ids = jnp.array([[0, 6], [3, 3]])
    params = {"params": {"embedding": table}}
    dense = np.asarray(WEIGHT.left) @ np.asarray(WEIGHT.right)
    rows = Embed(7, 5).apply(params, ids)
    np.testing.assert_allclose(rows, dense[np.asarray(ids)], rtol=2e-5, atol=1e-5)
    scores = Embed(7, 5).apply(params, rows, method="attend")
    np.testing.assert_allclose(scores, np.asarray(rows) @ dense.T, rtol=2e-5, atol=1e-4)


def test_layer_norm_keeps_its_moments_in_float32():
    x = (1000 + jax.random.normal(KEYS[3], (4, 64))).astype(jnp.bfloat16)
    params = {"scale": jnp.full(64, 2.0, jnp.bfloat16), "bias": jnp.ones(64, jnp.bfloat16)}
    y = LayerNorm().apply({"params": params}, x)
    z = np.asarray(x, np.float64)
    expected = 2 * (z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True) + 1
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=0.05)


@pytest.mark.parametrize("shape", [(7, 6), (6, 5), (5, 7)])
def test_a_factored_weight_of_another_shape_is_refused(shape):
    wrong = LowRank(jnp.ones((shape[0], 2)), jnp.ones((2, shape[1])))
    with pytest.raises(
        ShapeError, match=r"kernel: got .*" + rf"\({shape[0]}, {shape[1]}\).*\(7, 5\)"
    ):
        Dense(5, use_bias=False).apply({"params": {"kernel": wrong}}, X)


def test_a_factor_that_happens_to_have_the_dense_shape_does_not_pass():
    wrong = LowRank(jnp.ones((7, 5)), jnp.ones((5, 9)))
    with pytest.raises(ShapeError):
        Dense(5, use_bias=False).apply({"params": {"kernel": wrong}}, X)


def test_gradients_reach_every_factor():
    loss = lambda kernel: jnp.square(
        Dense(5, use_bias=False).apply({"params": {"kernel": kernel}}, X)
    ).sum()
    grads = jax.jit(jax.grad(loss))(WEIGHT)
    dense = jax.grad(loss)(WEIGHT.left @ WEIGHT.right)
    np.testing.assert_allclose(grads.left, dense @ WEIGHT.right.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(grads.right, WEIGHT.left.T @ dense, rtol=1e-4, atol=1e-3)
