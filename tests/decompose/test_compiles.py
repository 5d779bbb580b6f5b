"""Equal shapes and ranks compile once, whatever the values, the key, and the ranks of blocks."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import decompose as d
from lrjax.decompose.weighted import Inner
from lrjax.metrics import Diagonal, Elements, Gram, Metric

M, N = 12, 24
COMPILED: list[str] = []


def listen(event: str, seconds: float, **_) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(listen)


def array(x) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def inputs(rng) -> Metric:
    x = rng.standard_normal((3 * M, M))
    return Metric(Gram(array(x.T @ x)), None)


def frequencies(rng) -> Metric:
    return Metric(Diagonal(array(rng.uniform(0.1, 1, M))), None)


def elements(rng) -> Elements:
    return Elements.of(array(rng.lognormal(size=(M, N))))


def slow(spec, metric=None):
    return pytest.param(spec, metric, marks=pytest.mark.slow)


CASES = [
    (d.SVD(3), None),
    slow(d.SVD(3), inputs),
    (d.Tucker((2, 2, 3), modes=(3, 4, 24), smallest=2), None),
    slow(d.Tucker((2, 2, 3), modes=(3, 4, 24), smallest=2), inputs),
    slow(d.CP(2, modes=(3, 4, 24)), None),
    slow(d.CP(2, modes=(3, 4, 24)), inputs),
    (d.TensorTrain((2,), rows=(3, 4), cols=(4, 6)), None),
    slow(d.TensorTrain((2,), rows=(3, 4), cols=(4, 6)), inputs),
    slow(d.TensorRing((2, 2), rows=(3, 4), cols=(4, 6), starts=2), None),
    slow(d.TensorRing((2, 2), rows=(3, 4), cols=(4, 6), starts=2), inputs),
    (d.TokenTrain((2,), (4, 6)), None),
    (d.Kronecker(2, (3, 4)), None),
    slow(d.Kronecker(2, (3, 4)), inputs),
    (d.NMF(3, iterations=5), None),
    slow(d.NMF(3, iterations=5), elements),
    (d.BlockSVD((1, 2, 3, 1), (2, 2)), None),
    slow(d.BlockSVD((1, 2, 3, 1), (2, 2)), inputs),
    slow(d.HODLR((2, 1)), None),
    slow(d.HODLR((2, 1)), inputs),
    slow(d.HSS((2, 1)), None),
    slow(d.HSS((2, 1)), inputs),
    slow(d.BLAST(2, grid=(2, 2)), None),
    slow(d.BLAST(2, grid=(2, 2)), inputs),
    (d.Monarch(1, grid=(3, 4)), None),
    slow(d.Monarch(1, grid=(3, 4)), inputs),
    (d.SharedBasis(3), None),
    slow(d.LowRankSparse((2, 1)), None),
    slow(d.LowRankSparse((2, 1)), inputs),
    slow(d.LowRankDiagonal(2), None),
    slow(d.LowRankDiagonal(2), inputs),
    slow(d.WeightedLowRank(2), elements),
    slow(d.WeightedLowRank(2, inner=Inner.EXACT), elements),
    slow(d.Banded((2, 2), count=2), frequencies),
]


@pytest.mark.parametrize(("spec", "metric"), CASES)
def test_a_second_weight_of_a_shape_compiles_nothing(spec, metric):
    rng, shape = np.random.default_rng(0), (M, N)
    if isinstance(spec, d.SharedBasis):
        shape = (2, *shape)

    def compiled(key: int) -> int:
        w, given = array(rng.standard_normal(shape)), metric and metric(rng)
        key = jax.random.wrap_key_data(jnp.asarray([0, key], jnp.uint32))
        jax.block_until_ready(key)
        before = len(COMPILED)
        jax.block_until_ready(d.solve(spec, w, metric=given, key=key))
        return len(COMPILED) - before

    assert compiled(0) > 0  # the listener hears
    assert compiled(0) == compiled(1) == 0


def test_blocks_of_other_ranks_compile_nothing():
    w = array(np.random.default_rng(0).standard_normal((M, N)))
    patterns = [(1, 2, 3, 1), (2, 0, 1, 4), (6, 5, 5, 6)]
    counts = []
    for ranks in patterns:
        before = len(COMPILED)
        found, _ = d.solve(d.BlockSVD(ranks, (2, 2)), w)
        counts.append(len(COMPILED) - before)
        assert np.ravel(found.block_ranks).tolist() == list(ranks)
    assert counts[1:] == [0, 0]


def test_a_tree_is_solved_in_one_compilation():
    """Blocks of one shape whose ranks all differ, and each is the best of its rank."""
    rng, ranks = np.random.default_rng(0), [(1, 2, 3, 1), (2, 0, 1, 4), (2, 2, 2, 2)]
    params = {f"w{i}": array(rng.standard_normal((M, N))) for i in range(len(ranks))}
    specs = {f"w{i}": d.BlockSVD(own, (2, 2)) for i, own in enumerate(ranks)}
    solves = importlib.import_module("lrjax.compress")._solve_jit._cache_size
    before = solves()
    found = lr.compress(params, lr.plan(params, specs))
    assert solves() == before + 1
    for (path, w), own in zip(params.items(), ranks, strict=True):
        blocks = np.asarray(w).reshape(2, M // 2, 2, N // 2).swapaxes(1, 2).reshape(4, M // 2, -1)
        s = np.linalg.svd(blocks, compute_uv=False)
        tail = sum(np.sum(values[r:] ** 2) for values, r in zip(s, own, strict=True))
        lost = np.sum((np.asarray(found[path].densify()) - np.asarray(w)) ** 2)
        np.testing.assert_allclose(lost, tail, rtol=1e-4)
        assert np.ravel(found[path].block_ranks).tolist() == list(own)
