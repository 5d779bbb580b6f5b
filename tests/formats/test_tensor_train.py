"""Trains: padding, lookups and tied heads without the table, rings, and a train for every token."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import ops
from lrjax.errors import ShapeError
from lrjax.formats import LowRank, Sum, TensorRing
from lrjax.formats.tensor_train import TensorTrain
from lrjax.formats.token_train import TokenTrain
from tests.formats import tensors as t

PADDED = {"digits": ((5, 4, 6), (3, 2, 4)), "ranks": (4, 3)}


def padded(rows=101, cols=None):
    w = t.train(t.generator(1), **PADDED, rows=(rows,), cols=cols).validate()
    return w, t.train_dense(jax.tree.map(lambda x: np.asarray(x, np.float64), w), np)


def close(got, want):
    np.testing.assert_allclose(got, want, atol=3e-5 * max(1, float(np.abs(want).max())))


def sizes(fn, *args):
    """Sizes of all values of a function's jaxpr."""
    return [math.prod(v.aval.shape) for e in jax.make_jaxpr(fn)(*args).eqns for v in e.outvars]


@pytest.mark.parametrize(
    ("rows", "cols"), [(101, None), pytest.param(97, (22,), marks=pytest.mark.slow)]
)
def test_padding_is_never_seen(rows, cols):
    w, dense = padded(rows, cols)
    assert w.shape == dense.shape
    assert w.padded == (120 - rows, 24 - dense.shape[1])
    close(w.densify(), dense)
    x = t.generator(2).standard_normal((7, rows)).astype(np.float32)
    y = t.generator(3).standard_normal((7, dense.shape[1])).astype(np.float32)
    close(x @ w, x @ dense)
    close(y @ w.T, y @ dense.T)
    ids = jnp.asarray([[0, rows - 1, 57], [96, -1, -rows]])
    close(ops.take(w, ids), dense[np.asarray(ids)])
    close(ops.take(w, jnp.array([0, 2]), axis=1), dense[:, [0, 2]])
    assert np.isnan(ops.take(w, jnp.array([rows]))).all()


def test_padding_costs_bytes():
    w, _ = padded()
    held = sum(a * m * n * b for a, m, n, b in (core.shape for core in w.cores))
    assert ops.cost(w).params == held
    assert ops.cost(w).bytes == 4 * held


def test_neither_lookup_nor_tied_head_holds_a_table():
    w, dense = padded()
    ids, y = jnp.arange(6), jnp.ones((2, dense.shape[1]))
    run = lambda w, ids, y: (ops.take(w, ids), y @ w.T)
    train = lambda w: jax.grad(lambda w: sum(map(jnp.sum, run(w, ids, y))))(w)
    assert max(sizes(run, w, ids, y)) < dense.size
    assert max(sizes(train, w)) < dense.size


def test_a_stack_of_padded_tables_is_scanned_and_mapped():
    w = t.train(t.generator(1), 3, **PADDED, rows=(101,))
    dense = t.train_dense(jax.tree.map(lambda x: np.asarray(x, np.float64), w), np)
    ids = jnp.array([0, 57, 100])
    close(jax.vmap(ops.take, (0, None))(w, ids), dense[:, np.asarray(ids)])
    close(jax.lax.scan(lambda c, s: (c, ops.take(s, ids)), 0, w)[1], dense[:, np.asarray(ids)])
    close(jax.jit(lambda w: w.T)(jax.tree.map(lambda x: x[1], w)).densify(), dense[1].T)


def test_a_padded_table_may_be_part_of_a_sum():
    rng = t.generator(1)
    table = t.train(rng, **PADDED, rows=(101,))
    low = LowRank(t.normal(rng, 101, 2), t.normal(rng, 2, table.shape[1]))
    w = Sum((table, low)).validate()
    dense = t.train_dense(table, np) + np.asarray(low.left) @ np.asarray(low.right)
    assert w.shape == dense.shape
    close(w.densify(), dense)
    close(ops.take(w, jnp.array([[0, 100], [57, -1]])), dense[[[0, 100], [57, -1]]])
    x, y = (jnp.asarray(rng.standard_normal((3, n)), jnp.float32) for n in dense.shape)
    close(x @ w, x @ dense)
    close(y @ w.T, y @ dense.T)
    close(ops.scale(w, 2.0).densify(), 2 * dense)


def test_dense_dimensions_split_and_move():
    cores = t.train(t.generator(1)).cores
    w = TensorTrain(cores, rows=(24,), cols=(5, 8), order=(1, 0, 2)).validate()
    dense = t.train_dense(w, np)
    assert w.shape == dense.shape == (5, 24, 8)
    assert (w.layout.rows, w.layout.cols) == ((1,), (0, 2))
    close(w.densify(), dense)
    x = jnp.ones((3, 24))
    close(ops.einsum("zm,hmd->zhd", x, w), np.einsum("zm,hmd->zhd", x, dense))


def test_a_padded_ring_is_read_and_applied_without_its_table():
    digits, ranks = ((5, 4, 6), (3, 2, 4)), (2, 4, 3)
    w = t.ring(t.generator(1), digits=digits, ranks=ranks, rows=(101,)).validate()
    dense = t.ring_dense(jax.tree.map(lambda x: np.asarray(x, np.float64), w), np)
    assert (w.rank, w.shape, w.padded) == (ranks, (101, 24), (19, 0))
    close(w.densify(), dense)
    ids = jnp.asarray([[0, 100, 57], [96, -1, -101]])
    x = t.generator(2).standard_normal((2, 101)).astype(np.float32)
    run = lambda w, ids, x: (ops.take(w, ids), x @ w)
    rows, y = jax.jit(run)(w, ids, x)
    close(rows, dense[np.asarray(ids)])
    close(y, x @ dense)
    assert max(sizes(run, w, ids, x)) < dense.size


def test_the_bond_that_a_ring_leaves_open_is_the_cheapest():
    """A product takes r_0 times that of the train only where no other bond is narrower."""
    digits, wide = ((4, 3, 2), (2, 5, 4)), (6, 2, 3)
    flops = [
        ops.cost(t.ring(t.generator(), digits=digits, ranks=wide[k:] + wide[:k])).flops
        for k in range(3)
    ]
    train = ops.cost(t.train(t.generator(), digits=digits, ranks=wide[1:])).flops
    assert all(f < 6 * train for f in flops)


def test_every_token_has_its_own_train():
    w = t.tokens(t.generator(1), rows=11, digits=(3, 4, 5), ranks=(3, 2), cols=53).validate()
    dense = t.tokens_dense(jax.tree.map(lambda x: np.asarray(x, np.float64), w), np)
    assert w.shape == (11, 53)
    close(w.densify(), dense)
    close(ops.take(w, jnp.array([[3, -1]])), dense[[[3, -1]]])
    y = t.generator(2).standard_normal((2, 53)).astype(np.float32)
    close(y @ w.T, y @ dense.T)
    lookup = lambda w: ops.take(w, jnp.arange(2))
    assert max(sizes(lookup, w)) < dense.size


def test_a_vocabulary_grows_without_a_refit():
    w, more = (t.tokens(t.generator(s), rows=r) for s, r in ((1, 24), (2, 3)))
    grown = w.append(more)
    assert grown.shape == (27, 40)
    close(grown.densify(), np.concatenate([w.densify(), more.densify()]))
    with pytest.raises(ShapeError, match="ranks"):
        w.append(t.tokens(t.generator(2), ranks=(2,)))


def test_published_parameter_arithmetic():
    """ALBERT: 23.04 M to 3.94 M; a TensorGPT table keeps 296 of 768 numbers a token."""
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    albert = LowRank(array(30000, 128), array(128, 768))
    assert ops.cost(array(30000, 768)).params == 23_040_000
    assert ops.cost(albert).params == 3_938_304
    # 768 = 12 * 8 * 8 at ranks (6, 4)
    tokens = TokenTrain((array(50257, 1, 12, 6), array(50257, 6, 8, 4), array(50257, 4, 8, 1)))
    assert ops.cost(tokens).params == 50257 * (12 * 6 + 6 * 8 * 4 + 4 * 8)
    assert ops.cost(tokens).params == 50257 * 296


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: t.train(t.generator(), rows=(25,)), "not smaller"),
        (lambda: t.train(t.generator(), rows=(2, 11)), "single dimension"),
        (lambda: t.train(t.generator(), cols=(3, 14)), "single dimension"),
        (lambda: TensorTrain((jnp.ones((1, 4, 5, 3)), jnp.ones((2, 6, 8, 1)))), "equal sizes"),
        (lambda: TensorTrain((jnp.ones((2, 4, 5, 3)), jnp.ones((3, 6, 8, 2)))), "TensorRing"),
        (lambda: TensorRing((jnp.ones((2, 4, 5, 3)), jnp.ones((3, 6, 8, 1)))), "equal sizes"),
        (lambda: t.ring(t.generator(), rows=(25,)), "TensorRing: got"),
        (lambda: t.tokens(t.generator(), cols=41), "1 to 40"),
    ],
)
def test_misfits_are_named(make, words):
    with pytest.raises(ShapeError, match=words):
        make().validate()
