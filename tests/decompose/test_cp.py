"""CP: planted and collinear problems, divergence, correction, completion, metrics."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from lrjax import ops
from lrjax.decompose.cp import CP, correct, cp, weighted_cp
from lrjax.decompose.cp.als import als
from lrjax.decompose.cp.fit import _solve
from lrjax.decompose.probe import rank_curve
from lrjax.decompose.spec import solve, spec_from_json
from lrjax.errors import RankError, ShapeError
from lrjax.formats.layout import Layout
from lrjax.linalg import Status
from lrjax.metrics import Gram, Metric

SHAPE, R = (30, 31, 29), 10
SMALL, FEW = (6, 8, 7), 6  # one compilation for most tests


def compose(factors, scale=None):
    """The definition, in float64."""
    names = "abcd"[: len(factors)]
    terms = ",".join(f"{n}r" for n in names)
    scale = np.ones(factors[0].shape[1]) if scale is None else np.asarray(scale, float)
    return np.einsum(f"{terms},r->{names}", *(np.asarray(f, float) for f in factors), scale)


def error(t, f):
    return np.linalg.norm(t - compose(f.factors, f.scale)) / np.linalg.norm(t)


def planted(seed, shape=SHAPE, rank=R, congruence=0.0):
    """Gaussian factors, or factors whose columns all meet at one angle."""
    rng = np.random.default_rng(seed)
    factors = [rng.normal(size=(d, rank)) for d in shape]
    if congruence:
        inner = np.full((rank, rank), congruence) + (1 - congruence) * np.eye(rank)
        factors = [np.linalg.qr(f)[0] @ np.linalg.cholesky(inner).T for f in factors]
    return factors


def tensor(factors, noise=0.0):
    t = compose(factors)
    t = t + noise * t.std() * np.random.default_rng(99).normal(size=t.shape)
    return jnp.asarray(t, jnp.float32)


run = functools.partial(cp, starts=4)


def test_every_planted_problem_is_solved():
    for seed in range(10):
        t = tensor(planted(seed))
        f, info = run(t, R)
        assert error(t, f) < 1e-5, seed
        assert info.status == Status.CONVERGED
        np.testing.assert_allclose(info.residual, error(t, f) * np.linalg.norm(t), rtol=0.05)


def test_collinear_problems_are_solved():
    run(tensor(planted(0)), R)
    compiled = _solve._cache_size()
    errors = [
        error(t, run(t, R)[0]) for t in (tensor(planted(s, congruence=0.9)) for s in range(10))
    ]
    assert np.sum(np.array(errors) < 1e-4) >= 9
    assert _solve._cache_size() == compiled  # one shape and rank, one compilation


def test_noisy_factors_are_recovered():
    factors = planted(3)
    f, _ = run(tensor(factors, noise=0.05), R)
    unit = lambda x: x / np.linalg.norm(x, axis=0)
    match = np.ones((R, R))
    for a, b in zip(factors, f.factors, strict=True):
        match *= np.abs(unit(a).T @ unit(np.asarray(b)))
    assert match[linear_sum_assignment(match, maximize=True)].min() > 0.99


@pytest.mark.slow
def test_more_terms_than_any_mode_and_four_modes():
    t = tensor(planted(0, (8, 9, 7), 11))
    assert error(t, cp(t, 11, starts=8)[0]) < 1e-3
    t = tensor(planted(1, (7, 6, 5, 8), 4))
    f, _ = run(t, 4)
    assert error(t, f) < 1e-5
    assert [x.shape for x in f.factors] == [(7, 4), (6, 4), (5, 4), (8, 4)]


def test_the_form_is_canonical_and_the_bits_repeat():
    t = tensor(planted(0), noise=0.3)
    key = jax.random.key(7)
    f, _ = run(t, R, key=key)
    again, _ = run(t, R, key=key)
    assert all(map(np.array_equal, jax.tree.leaves(f), jax.tree.leaves(again)))
    scale = np.asarray(f.scale)
    assert (scale >= 0).all()
    assert (np.diff(scale) <= 0).all()
    for x in f.factors:
        np.testing.assert_allclose(np.linalg.norm(x, axis=0), 1, rtol=1e-5)


@jax.jit
def fit(t, start, sweeps, bound):
    return als(t, start, sweeps=sweeps, tol=0.0, bound=bound)


def begin(shape, rank):
    return tuple(jnp.asarray(f.T, jnp.float32) / 3 for f in planted(1, shape, rank))


def test_sweeps_never_raise_the_residual():
    t = jnp.asarray(np.random.default_rng(0).normal(size=SMALL), jnp.float32)
    t = t / jnp.linalg.norm(t)
    start = begin(SMALL, FEW)
    values = [float(fit(t, start, n, 0.0)[1].objective) for n in (0, 4, 8, 40, 400)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.97 * values[1]


def kernel():
    """A 64 x 64 x 9 tensor whose spectra fall slowly in every mode."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=(64, 64, 9))
    for k, d in enumerate(t.shape):
        q = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.arange(1, d + 1) ** -0.5
        t = np.moveaxis(np.tensordot(q, t, (1, k)), 0, k)
    return jnp.asarray(t / np.linalg.norm(t), jnp.float32)


@pytest.mark.slow
def test_the_correction_halves_the_intensity_at_the_same_error():
    t = kernel()
    options = {"starts": 1, "sweeps": 300, "tol": 0.0}
    diverging, before = cp(t, 60, slack=0.0, **options)
    f, after = cp(t, 60, slack=1e-3, **options)
    assert after.intensity < 0.5 * before.intensity
    assert error(t, f) <= 1.0011 * error(t, diverging)


def test_the_correction_tames_a_border_rank_tensor():
    wild, mild, tamed = (border_rank(2000, slack) for slack in (0.0, 0.1, 1.0))
    assert tamed.intensity < 0.8 * wild.intensity
    assert mild.intensity < 0.98 * wild.intensity
    assert mild.residual <= 1.1001 * wild.residual
    assert tamed.residual <= 2.0001 * wild.residual


def test_a_border_rank_tensor_is_reported():
    early, late = (border_rank(sweeps, 0.0) for sweeps in (8, 2000))
    assert late.residual < early.residual
    assert late.intensity > 2 * early.intensity
    assert late.status == Status.MAX_ITERATIONS


def border_rank(sweeps, slack):
    """What fitting a tensor of rank 3 and border rank 2 by two terms reports."""
    a, b = np.eye(6)[:2]
    outer = lambda *x: np.einsum("i,j,k->ijk", *x)
    t = jnp.asarray(outer(a, a, b) + outer(a, b, a) + outer(b, a, a), jnp.float32)
    return cp(t, 2, starts=2, sweeps=sweeps, tol=0.0, slack=slack)[1]


def test_the_correction_keeps_its_promise():
    t = tensor(planted(2, SMALL, 5, 0.8), noise=0.2)
    t = t / jnp.linalg.norm(t)
    before, _ = fit(t, begin(SMALL, FEW), 100, 0.0)
    after = correct(t, before, slack=0.01)
    norm = lambda fs: np.sqrt(np.sum(np.prod([np.sum(np.square(f), 1) for f in fs], 0)))
    residual = lambda fs: np.linalg.norm(t - compose([np.asarray(f).T for f in fs]))
    assert norm(after) < 0.9 * norm(before)
    assert residual(after) <= 1.0101 * residual(before)


def test_edge_inputs():
    f, info = run(jnp.zeros(SMALL), FEW)
    assert not compose(f.factors, f.scale).any()
    assert info.residual == 0
    assert info.intensity == 0
    f, info = run(jnp.full(SMALL, jnp.nan), FEW)
    assert info.status == Status.NON_FINITE
    assert np.isfinite(compose(f.factors, f.scale)).all()
    for scale in (1e15, 1e-15):
        t = tensor(planted(1, SMALL, 2)) * scale
        f, info = run(t, FEW)  # more terms than there are
        assert error(np.asarray(t, float), f) < 1e-4
    with pytest.raises(RankError):
        run(jnp.ones((3, 4, 5)), 0)
    with pytest.raises(ShapeError):
        run(jnp.ones(3), 1)


def test_completion_from_two_fifths_of_the_entries():
    t = tensor(planted(4, (15, 16, 14), 4))
    seen = jnp.asarray(np.random.default_rng(1).random(t.shape) < 0.4, jnp.float32)
    f, info = weighted_cp(jnp.where(seen > 0, t, jnp.nan), seen, 4)
    assert error(t, f) < 1e-4
    assert info.status == Status.CONVERGED


def test_a_convolution_kernel_runs_as_a_chain():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(3 * 2 * 8, 7)), jnp.float32)
    spec = CP(FEW, modes=SMALL)
    f, _ = solve(spec, w)
    dense = compose(f.factors, f.scale).reshape(3, 2, 8, 7)

    f = dataclasses.replace(f, rows=(3, 2, 8), cols=(7,))
    assert f.validate().shape == (3, 2, 8, 7)
    x = jnp.asarray(rng.normal(size=(2, 9, 10, 8)), jnp.float32)
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = functools.partial(
        ops.conv_general_dilated, window_strides=(2, 1), padding="SAME", dimension_numbers=numbers
    )
    want = conv(x, jnp.asarray(dense, jnp.float32))
    np.testing.assert_allclose(conv(x, f), want, rtol=1e-3, atol=1e-3)


def test_a_metric_of_whole_modes_is_whitened_exactly():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(48, 7)), jnp.float32)
    x = rng.normal(size=(200, 8)) * np.arange(1, 9) ** -1.0
    gram = np.kron(np.eye(6), x.T @ x).astype(np.float32)
    metric = Metric(Gram(jnp.asarray(gram)), None)
    spec = CP(FEW, modes=SMALL)
    plain, aware = solve(spec, w)[0], solve(spec, w, metric=metric)
    loss = lambda f: np.einsum("mn,mk,kn->", d := w - np.asarray(f.densify()), gram, d) ** 0.5
    assert loss(aware[0]) < 0.9 * loss(plain)
    np.testing.assert_allclose(aware[1].residual, loss(aware[0]), rtol=1e-3)


def test_options_price_what_the_solver_makes():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(48, 7)), jnp.float32)
    spec = CP(FEW).fitted(SMALL, Layout((0, 1), (2,)))
    assert spec.modes == SMALL
    seen = np.asarray(spec.measure(w, Metric()))
    options = spec.options(SMALL, w.dtype, Layout((0, 1), (2,)), seen)
    f, info = solve(spec, w)
    assert sum(x.size for x in jax.tree.leaves(f)) == options.params[0] < w.size
    assert info.residual**2 < 1.1 * options.error[0]
    assert spec_from_json(spec.to_json()) == spec == spec.with_rank(FEW)
    with pytest.raises(ShapeError):
        solve(CP(3, modes=(5, 8, 7)), w)


def test_curves_are_interpolated_between_fits_and_fall():
    fitted = []

    def loss(rank):
        fitted.append(rank)
        return 100.0 / rank if rank != 22 else 90.0  # one fit that went wrong

    ranks, error = rank_curve(100, loss)
    assert len(fitted) == 4
    assert (ranks[0], ranks[-1]) == (1, 100)
    assert (np.diff(error) <= 0).all()
    np.testing.assert_allclose(error[[0, -1]], [100, 1])
    assert len(rank_curve(0, loss)[0]) == 0
    # of white noise, and of a spectrum that falls, both lost to the end as parameters are all
    for law in (lambda r: (1 - r / 21) ** 2, lambda r: 1 / r - 1 / 64):
        ranks, error = rank_curve(20, law)
        np.testing.assert_allclose(error, law(ranks), rtol=0.35)
