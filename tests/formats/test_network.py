"""Moves on labels are moves on the dense array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import ops
from lrjax.errors import ShapeError
from lrjax.formats import Network, Unsupported
from lrjax.formats.lazy import LazyArray
from tests.cases import generator, normal
from tests.laws import agree, close

A, B = normal(generator(), 4, 6), normal(generator(1), 3, 10)
KRON = Network.parse("i j, k l -> (i k) (j l)", A, B)
DENSE = np.kron(np.asarray(A), np.asarray(B))


def array_of(x):
    return jnp.asarray(x, jnp.float32)


def test_a_pattern_names_a_network():
    assert KRON.shape == (12, 60)
    close(LazyArray((KRON,)), DENSE)
    stacked = Network.parse(
        "... i r, ... r j -> ... j i", jnp.ones((2, 3, 4, 5)), jnp.ones((2, 3, 5, 6))
    )
    assert stacked.shape == (2, 3, 6, 4)
    assert Network.parse("i, j -> (i j) ()", jnp.ones(2), jnp.ones(3)).shape == (6, 1)


@pytest.mark.parametrize("pattern", ["i j -> i j", "i j, k -> i k", "i j, k l", "i j k, l m -> i"])
def test_patterns_that_do_not_fit_are_refused(pattern):
    with pytest.raises(ShapeError):
        Network.parse(pattern, A, B)


@pytest.mark.parametrize(
    "shape",
    [(720,), (4, 180), (2, 6, 60), (12, 6, 10), (2, 2, 3, 3, 2, 10), (12, 1, 60, 1), (12, 60)],
)
def test_reshapes_that_cut_where_factors_divide(shape):
    close(LazyArray((KRON.reshape(shape),)), DENSE.reshape(shape))


@pytest.mark.parametrize("shape", [(6, 120), (12, 4, 15), (5, 144)])
def test_reshapes_that_cut_through_a_factor_are_refused(shape):
    with pytest.raises(Unsupported, match="reshape"):
        KRON.reshape(shape)


def test_slices_of_a_merged_dimension():
    w = LazyArray((KRON,))
    close(ops.slice_in_dim(w, 3, 6, 0), DENSE[3:9])  # whole blocks
    close(ops.slice_in_dim(w, 7, 2, 0), DENSE[7:9])  # inside one block
    close(ops.slice_in_dim(w, 5, 1, 0), DENSE[5:6])
    close(ops.slice_in_dim(w, jnp.int32(5), 1, 0, dynamic=True), DENSE[5:6])
    close(ops.slice_in_dim(w, 0, 0, 1), DENSE[:, :0])
    for dynamic, start in ((False, 2), (True, jnp.int32(3))):
        with pytest.raises(Unsupported, match="merged"):
            ops.slice_in_dim(w, start, 3, 0, dynamic=dynamic)


def test_products_of_differently_merged_dimensions_are_refined():
    v = normal(generator(2), 60, 5)
    other = LazyArray((Network.parse("a r, r b -> a b", normal(generator(3), 60, 2), v[:2]),))
    close(
        ops.einsum("ij,jk->ik", LazyArray((KRON,)), other), DENSE @ np.asarray(other.dense()), 1e-4
    )
    odd = LazyArray((Network.parse("a, b -> (a b)", jnp.ones(15), jnp.ones(4)),))
    with pytest.raises(Unsupported, match="common refinement"):
        ops.einsum("ij,j->i", LazyArray((KRON,)), odd)


def test_a_label_in_two_dimensions_is_a_block_diagonal():
    blocks = normal(generator(), 3, 4, 5)
    w = LazyArray((Network.parse("p m n -> (p m) (p n)", blocks),))
    dense = np.zeros((12, 15))
    for p in range(3):
        dense[4 * p : 4 * p + 4, 5 * p : 5 * p + 5] = blocks[p]
    x = np.asarray(normal(generator(1), 2, 12))
    close(w, dense)
    close(x @ w, x @ dense)
    close(w.T, dense.T)
    close(ops.einsum("ij,kj->ik", w, w), dense @ dense.T)
    close(ops.reduce_sum(w, (1,)), dense.sum(1))
    close(ops.take(w, jnp.array([1, 9])), dense[[1, 9]])
    close(ops.slice_in_dim(w, 4, 8, 0), dense[4:12])
    with pytest.raises(Unsupported, match="merged dimension"):
        ops.slice_in_dim(w, 3, 4, 0)


def test_equal_networks_have_equal_structure():
    f = jax.jit(lambda net: LazyArray((net,)).dense())
    close(f(KRON), DENSE)
    f(Network.parse("i j, k l -> (i k) (j l)", A + 1, B))
    assert f._cache_size() == 1
    assert KRON.canonical().labels == KRON.labels


def test_lazy_concatenations_stay_lazy():
    w, array = LazyArray((KRON,), name="layer/kernel"), array_of(DENSE)
    wide = ops.concatenate([w, array, w], 1)
    want = np.concatenate([DENSE] * 3, 1)
    x, y = np.asarray(normal(generator(), 2, 12)), np.asarray(normal(generator(), 180, 2))
    assert wide.name == "layer/kernel"
    assert ops.concatenate([wide, w], 1).shape == (12, 240)
    assert all(
        isinstance(f(wide), LazyArray)
        for f in (lambda w: ops.transpose(w, (1, 0)), lambda w: ops.add(w, array_of(want)))
    )
    agree(
        lambda wide: [
            x @ wide,
            wide @ y,
            ops.transpose(wide, (1, 0)),
            ops.reshape(wide, (4, 3, 180)),
            ops.take(wide, np.array([3, 1])),
            ops.slice_in_dim(wide, 60, 120, 1),
            ops.slice_in_dim(wide, 30, 60, 1),
            ops.add(wide, wide),
            ops.add(wide, array_of(want)),
            ops.multiply(wide, np.arange(180, dtype=np.float32)),
            ops.multiply(np.arange(12, dtype=np.float32)[:, None], wide),
            ops.scale(wide, 3.0),
            ops.reduce_sum(wide, (0,)),
            ops.broadcast_in_dim(wide, (2, 12, 180), (1, 2)),
            ops.concatenate([wide, wide], 0),
            ops.concatenate([wide, wide], 0) @ y,
        ],
        [
            x @ want,
            want @ y,
            want.T,
            want.reshape(4, 3, 180),
            want[[3, 1]],
            want[:, 60:],
            want[:, 30:90],
            2 * want,
            2 * want,
            want * np.arange(180),
            want * np.arange(12)[:, None],
            3 * want,
            want.sum(0),
            np.stack([want] * 2),
            np.concatenate([want, want]),
            np.concatenate([want, want]) @ y,
        ],
        wide,
    )
    close(ops.cast(wide, jnp.bfloat16), want, 2e-2)
    stack = ops.concatenate([ops.broadcast_in_dim(w, (2, 12, 60), (1, 2))] * 2, 2)
    operands, rebuild = ops.unstack(stack)
    scanned = jax.lax.scan(lambda c, s: (c, x @ rebuild(s)), 0, operands)[1]
    close(scanned, np.stack([x @ np.concatenate([DENSE] * 2, 1)] * 2))
