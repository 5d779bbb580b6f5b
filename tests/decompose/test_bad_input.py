"""Bad input to every solver: a clear error, or a right result that says what it is.

Through both doors, `solve` and the user's `plan` and `compress`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import decompose as d
from lrjax.decompose.cp import cp
from lrjax.errors import DensifyError, DtypeError, RankError, RuleError, ShapeError, StatsError
from lrjax.linalg import Status
from lrjax.metrics import Diagonal, Elements, Frobenius, Gram, Metric
from lrjax.ops import densify

M, N = 12, 8
NAN, INF = float("nan"), float("inf")

SPECS = {
    "svd": d.SVD(2),
    "tucker": d.Tucker((2, 2, 3), modes=(3, 4, N)),
    "tucker2": d.Tucker((None, 2, 3), modes=(3, 4, N)),
    "cp": d.CP(2, modes=(3, 4, N), starts=2, sweeps=20),
    "train": d.TensorTrain((2,), rows=(3, 4), cols=(4, 2)),
    "ring": d.TensorRing((1, 2), rows=(3, 4), cols=(4, 2), starts=1),
    "tokens": d.TokenTrain((1, 2), (2, 2, 2)),
    "kronecker": d.Kronecker(2, (3, 4)),
    "semi_nmf": d.NMF(2, iterations=20),
    "nmf": d.NMF(2, semi=False, iterations=20),
    "blocks": d.BlockSVD((1, 2, 1, 1), (2, 2)),
    "hodlr": d.HODLR((1, 1)),
    "hss": d.HSS((1, 1)),
    "blast": d.BLAST(2, (2, 2)),
    "monarch": d.Monarch(1, (3, 4)),
    "shared": d.SharedBasis((2, 3)),
    "sparse": d.LowRankSparse((2, 1)),
    "diagonal": d.LowRankDiagonal(2),
    "weighted": d.WeightedLowRank(2, sweeps=20),
    "banded": d.Banded((2, 2), count=2),
}
EVERY = pytest.mark.parametrize("name", SPECS)


def first(*names):
    """All formats, the slow ones of which every run sees but a few."""
    slow = lambda name: [] if name in names else pytest.mark.slow
    return pytest.mark.parametrize("name", [pytest.param(n, marks=slow(n)) for n in SPECS])


HARD = first("svd", "nmf", "ring", "hss")
COUPLED = first("svd", "tokens", "blast")


def weight(name, seed=0):
    """A weight of the format's kind: stacked, with sides that divide, or without signs."""
    shape = {"shared": (3, M, N), "diagonal": (2 * N, N)}.get(name, (M, N))
    w = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.abs(w) if name == "nmf" else w


def gram(n, rank, seed=1):
    x = np.random.default_rng(seed).standard_normal((rank, n))
    return (x.T @ x / rank).astype(np.float32)


def norm(delta, rows=None, cols=None):
    """tr(D' rows D cols)^.5 in float64."""
    moved = delta if rows is None else np.asarray(rows, float) @ delta
    moved = moved if cols is None else moved @ np.asarray(cols, float)
    return np.sqrt(np.maximum(np.sum(moved * delta, axis=(-2, -1)), 0))


def assert_true(spec, w, rows=None, cols=None, rtol=1e-3):
    """Finite factors of the weight's shape, never worse than zeros, their residual the true one."""
    given = Metric(*(None if g is None else Gram(jnp.asarray(g)) for g in (rows, cols)))
    found, info = d.solve(spec, jnp.asarray(w), metric=given)
    rebuilt = np.asarray(densify(found).astype(jnp.float32), float)
    assert rebuilt.shape == w.shape
    assert np.isfinite(rebuilt).all()
    w = np.asarray(w, float)
    missed, whole = norm(w - rebuilt, rows, cols), norm(w, rows, cols)
    assert np.all(missed <= 1.001 * whole)
    np.testing.assert_allclose(info.residual, missed, rtol=rtol, atol=3e-4 * whole.max())
    assert not np.any(np.asarray(info.status) == Status.NON_FINITE)
    return info


def assert_refused(spec, w, metric=None):
    """NON_FINITE, and zeros for factors."""
    found, info = d.solve(spec, jnp.asarray(w), metric=metric)
    assert np.all(np.asarray(info.status) == Status.NON_FINITE)
    assert np.isnan(info.residual).all()
    assert not np.any(np.asarray(densify(found)))


KERNEL = d.CP(2, modes=(3, 4, N))
FIELDS = [
    (KERNEL, "rank", 2.5),
    (KERNEL, "rank", (2,)),
    (KERNEL, "modes", (0, 4, 8)),
    (KERNEL, "starts", 0),
    (KERNEL, "slack", NAN),
    (d.SVD(2), "accuracy", "high"),
    (d.Tucker((2, 2, 3)), "rank", (2.5, 2, 3)),
    (d.Tucker((2, 2, 3)), "rank", 3),
    (d.Tucker((2, 2, 3)), "rank", [2, 2, 3]),
    (d.Tucker((2, 2, 3)), "tol", NAN),
    (d.TensorTrain(2), "count", 0),
    (d.TensorTrain(2), "rank", 2.5),
    (d.TokenTrain((2, 2), (2, 2, 2)), "rank", None),
    (d.TokenTrain((2, 2), (2, 2, 2)), "rank", (2.5, 2)),
    (d.Kronecker(2, (3, 4)), "rank", 2.5),
    (d.Kronecker(2, (3, 4)), "shape", (3.0, 4.0)),
    (d.Kronecker(2, (3, 4)), "shape", (3, 2, 2)),
    (d.NMF(2), "rank", -1),
    (d.NMF(2), "l1", -1.0),
    (d.BlockSVD(1, (2, 2)), "ranks", 2.5),
    (d.BlockSVD(1, (2, 2)), "grid", (0, 2)),
    (d.Monarch(1, (2, 2)), "grid", (2, 2, 2)),
    (d.BLAST(2, (2, 2)), "rank", True),
    (d.BLAST(2, (2, 2)), "grid", (-2, -2)),
    (d.HODLR((2,)), "ranks", (2.5,)),
    (d.HODLR((2,)), "ranks", 2),
    (d.HODLR((2,)), "levels", 3),
    (d.HSS((2,)), "levels", 3),
    (d.HSS((2,)), "ranks", (2.5,)),
    (d.SharedBasis(2), "rank", (-1, 2)),
    (d.SharedBasis(2, right=False), "left", False),
    (d.SharedBasis(2), "rank", (2, 3, 4)),
    (d.LowRankDiagonal(2), "rank", (2, 3)),
    (d.LowRankSparse(2), "group", 0),
    (d.WeightedLowRank(2), "sweeps", -1),
    (d.WeightedLowRank(2), "ridge", -1.0),
    (d.Banded((2, 2)), "ratio", 0.0),
    (d.Banded((2, 2)), "floor", INF),
]


@pytest.mark.parametrize(("spec", "field", "value"), FIELDS)
def test_fields_that_mean_nothing_are_refused_at_once(spec, field, value):
    wrong = dataclasses.replace(spec)
    object.__setattr__(wrong, field, value)  # past the type checks of this suite
    with pytest.raises(RankError, match=r"got .*expected"):
        wrong.__post_init__()


MISFITS = [
    (d.SVD(9), "from 1 to 8"),
    (d.SVD(5), "break-even"),
    (d.Tucker((4, 2, 3), modes=(3, 4, N)), "size of the mode"),
    (d.Tucker((1, 1, 3), modes=(3, 4, N)), "product of the other ranks"),
    (d.Tucker((0, 2, 3), modes=(3, 4, N)), "1 to 3"),
    (d.Tucker((2, 3), modes=(3, 4, N)), "one rank a mode"),
    (d.Tucker((2, 2, 3), modes=(3, 5, N)), "12 rows"),
    (d.CP(0, modes=(3, 4, N)), "positive"),
    (d.CP(2, modes=(M, N)), "three or more"),
    (d.TensorTrain((13,), rows=(3, 4), cols=(4, 2)), "1 to 8"),
    (d.TensorTrain((0,), rows=(3, 4), cols=(4, 2)), "1 to 8"),
    (d.TensorTrain((2,), rows=(3, 3), cols=(4, 2)), "digits whose product"),
    (d.TensorTrain((2,), rows=(3, 4), cols=(2, 2, 2)), "as many digits"),
    (d.TensorTrain((2, 2), rows=(3, 4), cols=(4, 2)), "one a bond"),
    (d.TensorRing((2, 99), rows=(3, 4), cols=(4, 2)), "1 to"),
    (d.TensorRing((0, 2), rows=(3, 4), cols=(4, 2)), "1 to"),
    (d.TensorRing((2, 2), rows=(3, 3), cols=(4, 2)), "digits whose product"),
    (d.TokenTrain((3, 2), (2, 2, 2)), "1 to 2"),
    (d.TokenTrain((2,), (2, 2)), "digits whose product"),
    (d.Kronecker(13, (3, 4)), "1 to 8"),
    (d.Kronecker(0, (3, 4)), "1 to 8"),
    (d.Kronecker(2, (5, 4)), "divi"),
    (d.NMF(9), "from 1 to 8"),
    (d.NMF(0), "from 1 to 8"),
    (d.BlockSVD((5, 1, 1, 1), (2, 2)), "0 to 4"),
    (d.BlockSVD(1, (5, 2)), "divides 12"),
    (d.BlockSVD((1, 2), (2, 2)), "4 for a grid"),
    (d.Monarch(0, (3, 4)), "at least 1"),
    (d.Monarch(5, (3, 4)), "0 to 2"),
    (d.Monarch(1, (5, 4)), "divides 12"),
    (d.BLAST(9, (2, 2)), "from 1 to 8"),
    (d.BLAST(2, (5, 2)), "divides 12"),
    (d.BLAST(2), "grid|all its sizes"),
    (d.HODLR((5,)), "0 to 4"),
    (d.HODLR((1, 1, 1)), "divides 12"),
    (d.HSS((9, 1)), "0 to"),
    (d.HSS((1, 1, 1)), "divides 12"),
    (d.LowRankSparse(9), "from 1 to 8"),
    (d.LowRankSparse((2, 13)), "at most all"),
    (d.LowRankSparse(2, group=5), "divisor of 12"),
    (d.LowRankDiagonal(2), "multiple of the other"),
    (d.SharedBasis(2), "stack axis"),
    (d.WeightedLowRank(9), "from 1 to 8"),
    (d.Banded((9, 2), count=2), "from 1 to"),
    (d.Banded((2,), count=2), "from 1 to"),
    (d.Banded((1,) * 13, count=13), "1 to 12"),
    (d.NMF(2, semi=False), "non-negative entries"),
]


@pytest.mark.parametrize(("spec", "words"), MISFITS, ids=repr)
def test_sizes_that_a_weight_cannot_have_are_refused_with_its_path(spec, words):
    w = jnp.asarray(weight("svd"))
    with pytest.raises((RankError, ShapeError, RuleError), match=words):
        d.solve(spec, w)
    with pytest.raises((RankError, ShapeError, RuleError), match=f"net/kernel: .*({words})"):
        lr.plan({"net": {"kernel": w}}, {"**/kernel": spec})


def test_a_plan_among_several_formats_says_which_could_not_be():
    tree = {"net": {"kernel": jnp.asarray(weight("svd"))}}
    rules = {"**": [d.SVD(), d.NMF(semi=False), d.HODLR((1, 1, 1)), d.SharedBasis()]}
    (entry,) = lr.plan(tree, rules, budget=lr.Budget(keep=0.9), trials=False).entries
    assert isinstance(entry.spec, d.SVD)
    for word in ("NMF: got a weight with", "HODLR: got", "SharedBasis: got"):
        assert word in entry.reason


@EVERY
def test_what_is_no_floating_matrix_is_refused(name):
    w, spec = weight(name), SPECS[name]
    for dtype in (np.int32, np.bool_, np.complex64):
        with pytest.raises(DtypeError, match="floating"):
            d.solve(spec, jnp.asarray(w.astype(dtype)))
    for shape in ((), (M,), (0, N), (M, 0), (0, M, N)):
        with pytest.raises(ShapeError, match="a matrix"):
            d.solve(spec, jnp.zeros(shape))
    with pytest.raises(ShapeError, match="Densify"):
        d.solve(spec, d.solve(d.SVD(1), jnp.asarray(weight("svd")))[0])


@EVERY
def test_a_metric_of_other_sizes_is_refused(name):
    w = weight(name)
    *stack, m, n = w.shape
    ones = lambda *shape: jnp.ones(shape)
    wrong = [
        Metric(Gram(ones(m + 1, m + 1))),
        Metric(None, Gram(ones(n + 1, n + 1))),
        Metric(Gram(ones(n, n)), Gram(ones(m, m))),
        Metric(Diagonal(ones(m - 1))),
        Metric(Diagonal(ones())),
        Metric(Gram(ones(m, m - 1))),
        Metric(Gram(ones(5, m, m))),
        Metric(mean=ones(n)),
        Elements(weights=ones(*stack, m, n + 1)),
    ]
    for metric in wrong:
        with pytest.raises(ShapeError, match=r"metric (rows|cols|mean|weights) of"):
            d.solve(SPECS[name], jnp.asarray(w), metric=metric)
    for metric in (gram(m, m), Frobenius()):
        with pytest.raises(StatsError, match="a Metric"):
            d.solve(SPECS[name], jnp.asarray(w), metric=metric)


@HARD
def test_weights_of_any_size_and_rank_have_true_residuals(name):
    spec, w = SPECS[name], weight(name)
    info = assert_true(spec, np.zeros_like(w))
    assert not np.any(np.asarray(info.residual))
    one = np.ones_like(w) * np.arange(1, w.shape[-1] + 1, dtype=np.float32)
    for scale in (1, 1e-30, 1e30):
        assert_true(spec, np.float32(scale) * w)
        assert_true(spec, np.float32(scale) * one)


@HARD
def test_a_weight_with_nan_or_infinity_gives_zeros_and_says_so(name):
    for bad in (NAN, INF) if name == "nmf" else (NAN, INF, -INF):
        w = weight(name)
        w[..., 1, 2] = bad
        assert_refused(SPECS[name], w)


@COUPLED
def test_singular_zero_and_broken_grams(name):
    spec, w = SPECS[name], weight(name)
    if name == "weighted":  # refuses Grams: they mix the entries that it weighs
        with pytest.raises(StatsError, match="element-wise"):
            d.solve(spec, jnp.asarray(w), metric=Metric(Gram(jnp.eye(M))))
        return
    m, n = w.shape[-2:]
    singular, cols = gram(m, 3), gram(n, n)
    rounded = singular - 1e-6 * np.eye(m, dtype=np.float32)  # a little indefinite
    for rows in (singular, np.zeros_like(singular), rounded, 1e-20 * singular):
        assert_true(spec, w, rows, cols)
    assert_true(spec, 1e20 * w, singular, cols)
    for entry in ((1, 1), (1, 2)):
        broken = singular.copy()
        broken[entry] = NAN
        assert_refused(spec, w, Metric(Gram(jnp.asarray(broken)), Gram(jnp.asarray(cols))))


@pytest.mark.parametrize("name", ["svd", "kronecker"])
def test_residuals_under_weights_of_entries_are_not_those_of_the_separable_ones(name):
    w = weight(name)
    f = np.random.default_rng(3).lognormal(0, 2, w.shape).astype(np.float32)
    found, info = d.solve(SPECS[name], jnp.asarray(w), metric=Elements.of(jnp.asarray(f)))
    missed = np.sqrt(np.sum(f * (w - np.asarray(densify(found), float)) ** 2, axis=(-2, -1)))
    np.testing.assert_allclose(info.residual, missed, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cp", jnp.float16),
        ("tokens", jnp.bfloat16),
        ("train", jnp.float16),
        ("banded", jnp.bfloat16),
    ],
)
def test_residuals_of_low_precision_are_those_of_what_is_stored(name, dtype):
    w = weight(name).astype(dtype)
    found, info = d.solve(SPECS[name], jnp.asarray(w))
    assert found.dtype == dtype
    missed = norm(np.asarray(w, float) - np.asarray(densify(found.astype(jnp.float32)), float))
    np.testing.assert_allclose(info.residual, missed, rtol=2e-2)


def test_float64_without_x64_and_integer_metrics_are_float32():
    w = weight("svd").astype(np.float64)
    counts = Metric(Diagonal(jnp.arange(1, M + 1)), Gram(gram(N, N).astype(np.float64)))
    found, info = d.solve(d.SVD(2), w, metric=counts)
    assert found.dtype == jnp.float32
    assert np.isfinite(info.residual)


def test_cancelling_terms_show_in_intensity_and_words():
    """x x y + x y x + y x x is no sum of two terms, but their limit (de Silva and Lim, 2008)."""
    rng = np.random.default_rng(0)
    (a, b, c), (x, y, z) = ([rng.standard_normal(n) for n in (4, 5, 6)] for _ in range(2))
    outer = lambda *v: np.einsum("i,j,k->ijk", *v)
    w = outer(a, b, z) + outer(a, y, c) + outer(x, b, c)
    _, info = cp(jnp.asarray(w, jnp.float32), 2, starts=4, sweeps=400, slack=0.0, tol=0.0)
    assert float(info.intensity) > 5
    found, info = d.solve(
        d.CP(2, modes=(4, 5, 6), sweeps=400), jnp.asarray(w.reshape(20, 6), jnp.float32)
    )
    terms = [np.asarray(f, float) for f in (found.scale, *found.factors)]
    each = np.einsum("r,ir,jr,kr->rijk", *terms)
    cancels = np.sqrt(np.sum(each**2)) / np.linalg.norm(each.sum(0))
    np.testing.assert_allclose(info.intensity, cancels, rtol=1e-2)


def test_terms_that_cancel_to_nothing_are_as_intense_as_rounding_can_tell():
    column = lambda n: jnp.ones((n, 2)) / n**0.5
    for gap, intensity in ((1.0, 1.0), (1e-6, 2896.3), (0.0, 2896.3)):
        signed = column(5) * jnp.asarray([1.0, gap - 1.0])
        weight = lr.formats.CP(jnp.ones(2), (column(3), column(4), signed))
        np.testing.assert_allclose(weight.intensity, intensity, rtol=1e-3)
    assert float(lr.formats.CP(jnp.zeros(2), (column(3), column(4), column(5))).intensity) == 0


@pytest.mark.slow
@pytest.mark.parametrize("groups", [4, 8])
def test_grouped_and_depthwise_kernels_factor_exactly_or_name_another_format(groups):
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 8 // groups, 24)).astype(np.float32)
    x = jnp.asarray(rng.standard_normal((2, 6, 5, 8)), jnp.float32)
    apply = lambda p, x: jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", **numbers)
    tree = {"conv": jnp.asarray(kernel)}
    usage = lr.usage(apply, tree, x)
    for spec in (d.SVD(2), d.Tucker((None, None, None, 6)), d.CP(3, starts=1, sweeps=8)):
        small = lr.compress(tree, lr.plan(tree, {"**": spec}, usage=usage))
        rebuilt = {"conv": jnp.asarray(np.asarray(densify(small["conv"])))}
        np.testing.assert_allclose(
            lr.lift(apply)(small, x), apply(rebuilt, x), atol=1e-4, err_msg=repr(spec)
        )
    with pytest.raises(ShapeError, match=r"conv: .*a matrix alone"):
        lr.plan(tree, {"**": d.Banded((1, 1), count=2)}, usage=usage)
    train = lr.compress(tree, lr.plan(tree, {"**": d.TensorTrain(2)}, usage=usage))
    with pytest.raises(DensifyError, match=r"conv: .*cuts a factor"):
        lr.lift(apply)(train, x)
