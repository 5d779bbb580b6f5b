"""Kronecker sums and CP stand for what they say, with stack axes and dense dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import ops
from lrjax.errors import ShapeError
from lrjax.formats.cp import CP
from lrjax.formats.kronecker import Kronecker


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def kronecker(*stack, **layout):
    return Kronecker(normal(0, *stack, 3, 4, 5), normal(1, *stack, 3, 6, 8), **layout)


def kronecker_dense(w):
    stack = w.a.shape[:-3]
    out = np.zeros((*stack, 24, 40))
    for i in np.ndindex(stack):
        out[i] = sum(np.kron(x, y) for x, y in zip(w.a[i], w.b[i], strict=True))
    return out


def cp(*stack, sizes=(6, 4, 5), **layout):
    factors = tuple(normal(k, *stack, d, 3) for k, d in enumerate(sizes))
    return CP(normal(9, *stack, 3), factors, **layout)


def cp_dense(w):
    names = "abcd"[: len(w.factors)]
    terms = ",".join(f"...{n}r" for n in names)
    return np.einsum(f"...r,{terms}->...{names}", w.scale, *w.factors)


@pytest.mark.parametrize("stack", [(), (2,), (2, 3)])
def test_kronecker_is_the_sum_of_products(stack):
    w = kronecker(*stack).validate()
    assert (w.shape, w.rank) == ((*stack, 24, 40), 3)
    np.testing.assert_allclose(w.densify(), kronecker_dense(w), rtol=1e-4, atol=1e-4)
    x = normal(5, *stack, 7, 24)
    np.testing.assert_allclose(x @ w, x @ kronecker_dense(w), rtol=1e-4, atol=1e-3)


def test_kronecker_dimensions_and_order():
    w = kronecker(rows=(24,), cols=(5, 8), order=(1, 0, 2)).validate()
    want = kronecker_dense(w).reshape(24, 5, 8).transpose(1, 0, 2)
    np.testing.assert_allclose(w.densify(), want, rtol=1e-4, atol=1e-4)
    assert (w.layout.rows, w.layout.cols) == ((1,), (0, 2))
    finer = kronecker(rows=(2, 12), cols=(40,)).validate()  # a cut through a factor that divides
    assert finer.shape == (2, 12, 40)
    with pytest.raises(ShapeError, match="divide"):
        kronecker(rows=(3, 8), cols=(40,)).validate()
    with pytest.raises(ShapeError):
        kronecker(rows=(24,), cols=(41,)).validate()


def test_rows_of_a_kronecker_table_and_its_cost():
    w = kronecker()
    index = jnp.array([[0, 23], [7, 7]])
    np.testing.assert_allclose(
        ops.take(w, index), kronecker_dense(w)[np.asarray(index)], rtol=1e-4, atol=1e-4
    )
    cost = ops.cost(w)
    assert cost.params == 3 * (20 + 48) < 24 * 40
    # x [4, 6]: a first is 4*5*6 + 5*6*8, b first 4*6*8 + 4*8*5 multiply-adds a term
    assert cost.flops == pytest.approx(2 * 3 * (4 * 6 * 8 + 4 * 8 * 5), rel=0.05)


@pytest.mark.parametrize("stack", [(), (2,)])
def test_cp_is_the_sum_of_rank_one_tensors(stack):
    w = cp(*stack).validate()
    assert (w.shape, w.rank) == ((*stack, 6, 4, 5), 3)
    np.testing.assert_allclose(w.densify(), cp_dense(w), rtol=1e-4, atol=1e-4)
    merged = cp(*stack, rows=(24,), cols=(5,)).validate()
    x = normal(7, *stack, 7, 24)
    want = x @ cp_dense(w).reshape(*stack, 24, 5)
    np.testing.assert_allclose(x @ merged, want, rtol=1e-4, atol=1e-3)


def test_cp_dimensions_and_errors():
    w = cp(rows=(3, 2, 4), cols=(5,), order=(3, 0, 1, 2)).validate()
    want = cp_dense(w).reshape(3, 2, 4, 5).transpose(3, 0, 1, 2)
    np.testing.assert_allclose(w.densify(), want, rtol=1e-4, atol=1e-4)
    assert (w.layout.rows, w.layout.cols) == ((1, 2, 3), (0,))
    with pytest.raises(ShapeError):
        cp(rows=(7, 4), cols=(5,)).validate()
    with pytest.raises(ShapeError):
        CP(normal(0, 3), (normal(1, 6, 3), normal(2, 4, 2))).validate()


def test_intensity_tells_cancelling_terms():
    f = normal(0, 6, 1)
    near = f + 1e-3 * normal(1, 6, 1)
    pair = CP(jnp.array([1.0, -1.0]), tuple(jnp.concatenate([f, near], 1) for _ in range(3)))
    assert pair.intensity > 100
    assert CP(jnp.array([2.0]), (f, f, f)).intensity == pytest.approx(1)
    assert CP(jnp.zeros(1), (f, f, f)).intensity == 0


def test_no_dense_value_forms_and_gradients_reach_every_factor():
    x = normal(5, 3, 24)
    for w in (kronecker(), cp(rows=(24,), cols=(5,))):
        m, n = w.shape
        text = str(jax.make_jaxpr(lambda w: x @ w)(w))
        assert f"[{m},{n}]" not in text
        grads = jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)
        assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_kngpt2_arithmetic():
    """GPT-2 of 124.4 M to 83.9 M: the table and six layers' kernels halved (arXiv:2110.08152)."""
    halves = [(50257, 768, (1, 2))]
    for kernel in ((768, 2304), (768, 768), (768, 3072), (3072, 768)):
        halves += [(*kernel, (2, 1))] * 6
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    left = 124_439_808
    for m, n, (k, l) in halves:
        weight = Kronecker(array(1, m // k, n // l), array(1, k, l))
        assert weight.shape == (m, n)
        left -= m * n - ops.cost(weight).params
    assert left - 2 * len(halves) == 83_907_456  # which leaves out the factors of two numbers
