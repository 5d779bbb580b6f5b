"""The SVD spec and its solver: sizes, JSON, metrics, dtypes, errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.decompose import SVD, Spec, solve, spec_from_json
from lrjax.errors import RankError, RuleError, ShapeError
from lrjax.formats.layout import Layout
from lrjax.linalg import Accuracy
from lrjax.metrics import Diagonal, Gram, Input, Metric, TwoSided

SPECS = (
    SVD(),
    SVD(rank=3),
    SVD(keep=0.5, balance=False),
    SVD(rank=7, metric=TwoSided(center=True, shrink_rows=0.1), accuracy=Accuracy.EXACT),
    SVD(rank=9, metric=Input(), allow_above_break_even=True),
)


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def second_moment(size, samples, seed=1):
    x = weights(samples, size, seed=seed)
    return x.T @ x / samples


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_json_round_trip(spec):
    data = json.loads(json.dumps(spec.to_json()))
    assert spec_from_json(data) == spec
    assert hash(spec_from_json(data)) == hash(spec)


def test_repr_is_short():
    assert repr(SVD(rank=3)) == "SVD(rank=3)"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"spec": "SVD", "rnk": 3}, "rnk"),
        ({"spec": "Svd"}, "'Svd'"),
        ({}, "None"),
    ],
)
def test_unknown_json_is_an_error(data, words):
    with pytest.raises(RuleError, match=words):
        spec_from_json(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0},
        {"rank": -2},
        {"rank": True},
        {"keep": 0.0},
        {"keep": 1.5},
        {"keep": float("nan")},
        {"rank": 2, "keep": 0.5},
    ],
)
def test_impossible_sizes_are_refused_at_once(fields):
    with pytest.raises(RankError):
        SVD(**fields)


def test_solve_refuses_what_cannot_pay():
    w = jnp.asarray(weights(30, 20))
    with pytest.raises(RankError, match=r"break-even is m n / \(m \+ n\) = 12.0"):
        solve(SVD(rank=13), w)
    with pytest.raises(RankError, match="from 1 to 20"):
        solve(SVD(rank=21, allow_above_break_even=True), w)
    with pytest.raises(RankError, match="without a size"):
        solve(SVD(), w)
    with pytest.raises(ShapeError, match="matrix"):
        solve(SVD(rank=1), w[:0])
    factors, info = solve(SVD(rank=20, allow_above_break_even=True), w)
    np.testing.assert_allclose(factors.left @ factors.right, w, atol=2e-5)
    assert float(info.residual) < 1e-4


def test_options_are_every_rank_below_break_even_with_its_cost_and_loss():
    w = jnp.asarray(weights(2, 24, 40))
    layout = Layout((1,), (2,))
    spectrum = np.asarray(SVD().measure(w, Metric()))
    options = SVD().options(w.shape, w.dtype, layout, spectrum)
    assert list(options.ranks) == list(range(1, 16))
    assert list(options.params) == [2 * r * 64 for r in range(1, 16)]
    assert np.array_equal(options.flops, 2 * options.params)
    for rank in (1, 15):
        spec = SVD().with_rank(rank)
        factors, info = solve(spec, w)
        assert factors.left.shape == (2, 24, rank)
        assert factors.right.shape == (2, rank, 40)
        np.testing.assert_allclose(
            options.error[rank - 1], np.sum(np.asarray(info.residual) ** 2), rtol=1e-4
        )
    fixed = SVD(keep=0.5).options(w.shape, w.dtype, layout, spectrum)
    assert list(fixed.ranks) == [int(0.5 * 24 * 40 / 64)]
    with pytest.raises(RankError, match="break-even"):
        SVD(rank=16).options(w.shape, w.dtype, layout, spectrum)


def test_metrics_reduce_to_their_sides():
    w = weights(26, 18)
    rows, cols = second_moment(26, 15), second_moment(18, 40)
    for metric in (
        Metric(),
        Metric(rows=Diagonal(jnp.asarray(np.diag(rows)))),
        Metric(rows=Gram(jnp.asarray(rows)), cols=Gram(jnp.asarray(cols))),
    ):
        factors, info = solve(SVD(rank=5), jnp.asarray(w), metric=metric)
        lost = jnp.asarray(w) - factors.left @ factors.right
        np.testing.assert_allclose(info.residual**2, metric.loss(lost), rtol=1e-3)
        tail = np.asarray(SVD().measure(jnp.asarray(w), metric))[5:]
        np.testing.assert_allclose(info.residual**2, np.sum(tail**2), rtol=1e-3)


def test_a_side_shared_by_a_stack_is_spread():
    w = jnp.asarray(weights(3, 16, 12))
    side = jnp.asarray(second_moment(16, 40))
    factors, _ = solve(SVD(rank=4), w, metric=Metric(rows=Gram(side)))
    for i in range(3):
        one, _ = solve(SVD(rank=4), w[i], metric=Metric(rows=Gram(side)))
        np.testing.assert_allclose(
            factors.left[i] @ factors.right[i], one.left @ one.right, atol=1e-5
        )


def test_balanced_factors_share_each_singular_value():
    w = jnp.asarray(weights(22, 16)) * 1e25
    factors, _ = solve(SVD(rank=4), w)
    unit = 1e12
    np.testing.assert_allclose(
        np.linalg.norm(factors.left / unit, axis=0),
        np.linalg.norm(factors.right / unit, axis=1),
        rtol=1e-4,
    )
    plain, _ = solve(SVD(rank=4, balance=False), w / 1e25)
    np.testing.assert_allclose(plain.right @ plain.right.T, np.eye(4), atol=1e-5)


def test_bfloat16_in_bfloat16_out_and_its_own_residual():
    w = jnp.asarray(weights(2, 40, 30), jnp.bfloat16)
    factors, info = solve(SVD(rank=6), w)
    assert factors.left.dtype == factors.right.dtype == jnp.bfloat16
    left, right = (np.asarray(x, np.float64) for x in (factors.left, factors.right))
    lost = np.asarray(w, np.float64) - left @ right
    np.testing.assert_allclose(info.residual, np.linalg.norm(lost, axis=(1, 2)), rtol=1e-4)


def test_jit_and_key_keep_the_bits():
    w = jnp.asarray(weights(33, 21))
    key = jax.random.key(3)
    eager, _ = solve(SVD(rank=5), w, key=key)
    jitted, _ = jax.jit(lambda w, key: solve(SVD(rank=5), w, key=key))(w, key)
    again, _ = solve(SVD(rank=5), w, key=key)
    assert np.array_equal(eager.left, again.left)
    np.testing.assert_allclose(eager.left @ eager.right, jitted.left @ jitted.right, atol=1e-5)


def test_a_spec_without_a_solver_says_so():
    class Unsolved(Spec):
        def options(self, shape, dtype, layout, spectrum):
            raise NotImplementedError

        def with_rank(self, rank):
            return self

    with pytest.raises(RuleError, match="Unsolved"):
        solve(Unsolved(), jnp.ones((3, 2)))
