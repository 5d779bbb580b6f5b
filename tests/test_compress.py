"""Compress: optimal under the metric, pure, jittable, one compilation a shape, biases corrected."""

import dataclasses
import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.calibrate import Stats
from lrjax.compress import compress, compress_with_info
from lrjax.decompose import SVD, Options, Spec, solve
from lrjax.errors import ShapeError, StatsError
from lrjax.formats import LowRank, Sum
from lrjax.formats.layout import Layout, matricize
from lrjax.lift import Usage, Use, UseKind, WeightUse
from lrjax.metrics import Input, LedoitWolf, Moments, TwoSided
from lrjax.ops import densify
from lrjax.plan import Budget, Global, plan

M, N = 30, 20


def weight_use(path, shape, layout, stack=(), bias=None):
    use = Use(
        UseKind.DOT, layout.rows, layout.cols, stack, f"x:{path}", f"g:{path}", shape, "dot", ""
    )
    return WeightUse(path, shape, "float32", layout, (use,), bias=bias)


def gram(rng, d, tokens, stack=(), offset=0.0):
    z = rng.normal(size=(*stack, tokens, d)) * np.geomspace(1, 0.03, d) + offset
    z = z.astype(np.float32).astype(np.float64)
    second = np.swapaxes(z, -1, -2) @ z / tokens
    count = jnp.full(stack, tokens, jnp.float32)
    return z, Moments(count, jnp.asarray(z.mean(-2), jnp.float32), jnp.asarray(second, jnp.float32))


def stats_of(uses, rows, cols=None):
    inputs = {f"x:{p}": m for p, m in rows.items()}
    outputs = {f"g:{p}": m for p, m in (cols or {}).items()}
    return Stats(inputs, outputs, jnp.float32(1), Usage(uses))


def root(g):
    lam, q = np.linalg.eigh(np.asarray(g, np.float64))
    return (q * np.sqrt(np.maximum(lam, 0))) @ q.T


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def simple(rng):
    params = {f"l{i}": {"w": jnp.asarray(rng.normal(size=(M, N)), jnp.float32)} for i in range(3)}
    return params | {"bias": jnp.ones(N)}


def test_frobenius_without_stats_is_the_truncated_svd(simple):
    p = plan(simple, {"*/w": SVD(rank=5)})
    out = compress(simple, p)
    for name in ("l0", "l1", "l2"):
        w = np.asarray(simple[name]["w"], np.float64)
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        assert isinstance(out[name]["w"], LowRank)
        np.testing.assert_allclose(densify(out[name]["w"]), (u[:, :5] * s[:5]) @ vt[:5], atol=1e-4)
    assert out["bias"] is simple["bias"]


@pytest.mark.parametrize("tokens", [200, 12])
def test_input_metric_reaches_the_optimum_also_on_singular_grams(rng, tokens):
    """Independent oracle: SVD of X W, which needs no Gram at all."""
    w = rng.normal(size=(M, N))
    x, moments = gram(rng, M, tokens)
    stats = stats_of({"w": weight_use("w", (M, N), Layout((0,), (1,)))}, {"w": moments})
    params = {"w": jnp.asarray(w, jnp.float32)}
    out = compress(params, plan(params, {"w": SVD(rank=6)}, stats=stats), stats)
    s = np.linalg.svd(x @ w, compute_uv=False)
    want = np.sum(s[6:] ** 2)
    got = np.sum((x @ (w - np.asarray(densify(out["w"]), np.float64))) ** 2)
    assert got <= want * 1.001 + 1e-6 * np.sum(s**2)


def test_two_sided_metric_reaches_the_optimum(rng):
    w = rng.normal(size=(M, N))
    _, rows = gram(rng, M, 100)
    _, cols = gram(rng, N, 100)
    stats = stats_of({"w": weight_use("w", (M, N), Layout((0,), (1,)))}, {"w": rows}, {"w": cols})
    params = {"w": jnp.asarray(w, jnp.float32)}
    p = plan(params, {"w": SVD(rank=6)}, stats=stats)
    rule = LedoitWolf()
    assert p["w"].kind == TwoSided(center=True, shrink_rows=rule, shrink_cols=rule)
    delta = w - np.asarray(densify(compress(params, p, stats)["w"]), np.float64)
    a, g = root(rows.second), root(cols.second)
    want = np.sum(np.linalg.svd(a @ w @ g, compute_uv=False)[6:] ** 2)
    np.testing.assert_allclose(np.sum((a @ delta @ g) ** 2), want, rtol=1e-3)
    np.testing.assert_allclose(p["w"].loss, want, rtol=1e-3)


def test_centred_metric_corrects_the_bias_to_the_joint_optimum(rng):
    """min over W', b' of E|x W + b - x W' - b'|^2, with inputs far from the origin."""
    w, b = rng.normal(size=(M, N)), rng.normal(size=N)
    x, moments = gram(rng, M, 150, offset=2.0)
    use = weight_use("w", (M, N), Layout((0,), (1,)), bias="b")
    stats = stats_of({"w": use}, {"w": moments})
    params = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    p = plan(params, {"w": SVD(rank=5)}, stats=stats)
    assert p["w"].kind == Input(center=True, shrink=LedoitWolf())
    out = compress(params, p, stats)
    got = x @ np.asarray(densify(out["w"]), np.float64) + np.asarray(out["b"], np.float64)
    centred = (x - x.mean(0)) @ w
    want = np.sum(np.linalg.svd(centred, compute_uv=False)[5:] ** 2)
    lost = np.sum((x @ w + b - got) ** 2)
    np.testing.assert_allclose(lost, want, rtol=2e-3)
    plain = compress(params, plan(params, {"w": SVD(rank=5)}, stats=stats, metric=Input()), stats)
    assert np.array_equal(plain["b"], params["b"])


def test_layouts_of_dense_general_convolution_and_stacks(rng):
    shapes = {
        "heads": ((6, 24, 5), Layout((1,), (0, 2)), ()),  # [heads, model, head_dim] contracts 1
        "conv": ((3, 3, 8, 16), Layout((0, 1, 2), (3,)), ()),
        "out": ((4, 5, 12), Layout((0, 1), (2,)), ()),
        "scanned": ((3, 14, 22), Layout((1,), (2,)), (0,)),
    }
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, (s, _, _) in shapes.items()}
    usage = Usage({k: weight_use(k, s, lay, st) for k, (s, lay, st) in shapes.items()})
    out = compress(params, plan(params, {"*": SVD(rank=4)}, usage=usage))
    for k, (shape, layout, stack) in shapes.items():
        assert out[k].shape == shape
        w = np.transpose(params[k], (*stack, *layout.rows, *layout.cols))
        flat = w.reshape(*w.shape[: len(stack)], np.prod([shape[d] for d in layout.rows]), -1)
        s = np.linalg.svd(flat, compute_uv=False)
        error = np.sum((np.asarray(densify(out[k])) - np.asarray(params[k])) ** 2)
        np.testing.assert_allclose(error, np.sum(s[..., 4:] ** 2), rtol=1e-3)


def test_stacked_weights_use_each_layer_own_statistics(rng):
    w = rng.normal(size=(3, M, N))
    x, moments = gram(rng, M, 90, stack=(3,))
    stats = stats_of({"w": weight_use("w", (3, M, N), Layout((1,), (2,)), (0,))}, {"w": moments})
    params = {"w": jnp.asarray(w, jnp.float32)}
    out = np.asarray(
        densify(compress(params, plan(params, {"w": SVD(rank=6)}, stats=stats), stats)["w"])
    )
    for i in range(3):
        s = np.linalg.svd(x[i] @ w[i], compute_uv=False)
        got = np.sum((x[i] @ (w[i] - out[i])) ** 2)
        np.testing.assert_allclose(got, np.sum(s[6:] ** 2), rtol=1e-3)


def test_pure_deterministic_and_equal_under_jit(simple):
    before = jax.tree.map(np.asarray, simple)
    p = plan(simple, {"*/w": SVD()}, budget=Budget(keep=0.5), allocation=Global())
    out = compress(simple, p, key=jax.random.key(1))
    again = compress(simple, p, key=jax.random.key(1))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(again), strict=True)
    )
    jitted = jax.jit(partial(compress, plan=p))(simple)
    assert jax.tree.structure(jitted) == jax.tree.structure(out)
    for name in ("l0", "l2"):
        np.testing.assert_allclose(densify(jitted[name]["w"]), densify(out[name]["w"]), atol=1e-4)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(simple), strict=True)
    )


def test_stats_pass_through_jit(rng):
    w = jnp.asarray(rng.normal(size=(M, N)), jnp.float32)
    _, moments = gram(rng, M, 90, offset=1.0)
    stats = stats_of({"w": weight_use("w", (M, N), Layout((0,), (1,)), bias="b")}, {"w": moments})
    params = {"w": w, "b": jnp.zeros(N)}
    p = plan(params, {"w": SVD(rank=6)}, stats=stats)
    jitted = jax.jit(partial(compress, plan=p))(params, stats=stats)
    eager = compress(params, p, stats)
    np.testing.assert_allclose(jitted["b"], eager["b"], atol=1e-4)
    np.testing.assert_allclose(densify(jitted["w"]), densify(eager["w"]), atol=1e-4)


def test_compilations_grow_with_shapes_not_with_weights_or_ranks(rng):
    # the package's attribute of this name is the function
    module = importlib.import_module("lrjax.compress")
    solves = lambda: module._solve_jit._cache_size()
    make = lambda count: {
        f"{k}{i}": jnp.asarray(
            rng.normal(size=s) * np.arange(1, s[1] + 1) ** -(0.3 + 0.1 * i), jnp.float32
        )
        for k, s in {"p": (22, 18), "q": (18, 26)}.items()
        for i in range(count)
    }
    start = solves()
    params = make(5)
    for first in (1, 3):
        ranks = {path: SVD(rank=first + int(path[1])) for path in params}
        compress(params, plan(params, ranks))
        assert solves() - start == 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_in_is_dtype_out_and_the_stored_factors_are_good(rng, dtype):
    w = rng.normal(size=(M, N)) * np.arange(1, N + 1) ** -1.0
    params = {"w": jnp.asarray(w, dtype)}
    out = compress(params, plan(params, {"w": SVD(rank=8)}))["w"]
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(dtype)}
    w = np.asarray(params["w"], np.float64)
    s = np.linalg.svd(w, compute_uv=False)
    rebuilt = np.asarray(out.left, np.float64) @ np.asarray(out.right, np.float64)
    eps = float(jnp.finfo(dtype).eps)
    assert np.sum((w - rebuilt) ** 2) < np.sum(s[8:] ** 2) * 1.01 + 4 * eps**2 * np.sum(s**2)


def test_shared_leaves_stay_shared(rng):
    w = jnp.asarray(rng.normal(size=(M, N)), jnp.float32)
    params = {"embed": w, "head": w}
    out = compress(params, plan(params, {"*": SVD(rank=4)}))
    assert out["embed"] is out["head"]


@dataclasses.dataclass(frozen=True, repr=False)
class Parts(Spec):
    """A stand-in for a format of matrices alone: a sum of one low-rank part, of rank two."""

    rank: int = 2

    def options(self, shape, dtype, layout, spectrum):
        *_, m, n = layout.matrix_shape(shape)
        return Options(np.array([2]), np.array([2 * (m + n)]), np.array([9]), np.array([0.0]))

    def with_rank(self, rank):
        return self


@solve.register
def solve_parts(spec: Parts, w, *, metric=None, key=None, init=None):
    factors, info = solve(SVD(rank=2), w, metric=metric, key=key)
    return Sum((factors,)), info


def test_sums_serve_matrices_and_kernels_of_more_dimensions(rng):
    params = {"w": jnp.asarray(rng.normal(size=(M, N)), jnp.float32)}
    out = compress(params, plan(params, {"w": Parts()}))["w"]
    assert isinstance(out, Sum)
    s = np.linalg.svd(params["w"], compute_uv=False)
    error = np.sum((np.asarray(densify(out)) - np.asarray(params["w"])) ** 2)
    np.testing.assert_allclose(error, np.sum(s[2:] ** 2), rtol=1e-3)
    heads = {"w": jnp.asarray(rng.normal(size=(M, 4, 5)), jnp.float32)}
    entries = plan(heads, {"w": Parts()})
    out, (layout,) = compress(heads, entries)["w"], (e.layout for e in entries.entries)
    assert out.shape == (M, 4, 5)
    matrix = lambda x: np.asarray(matricize(jnp.asarray(x), layout))
    s = np.linalg.svd(matrix(heads["w"]), compute_uv=False)
    error = np.sum(matrix(densify(out) - heads["w"]) ** 2)
    np.testing.assert_allclose(error, np.sum(s[2:] ** 2), rtol=1e-3)


def test_infos_are_by_path(simple):
    _, infos = compress_with_info(simple, plan(simple, {"*/w": SVD(rank=5)}))
    assert list(infos) == ["l0/w", "l1/w", "l2/w"]


def test_foreign_parameters_and_statistics_are_named(rng, simple):
    p = plan(simple, {"*/w": SVD(rank=5)})
    other = simple | {"l1": {"w": jnp.ones((M, N + 1))}}
    with pytest.raises(ShapeError, match=r"l1/w.*\(30, 21\).*\(30, 20\)"):
        compress(other, p)
    with pytest.raises(ShapeError, match="l1/w"):
        compress({k: v for k, v in simple.items() if k != "l1"}, p)
    with pytest.raises(ShapeError, match=r"l0/w.*factored already"):
        compress(compress(simple, p), p)
    _, moments = gram(rng, M + 2, 50)
    stats = stats_of({"l0/w": weight_use("l0/w", (M, N), Layout((0,), (1,)))}, {"l0/w": moments})
    with pytest.raises(StatsError, match=r"l0/w.*size 32.*size 30"):
        plan(simple, {"l0/w": SVD(rank=5)}, stats=stats)
    with pytest.raises(StatsError, match=r"l1/w.*no statistics"):
        plan(simple, {"l1/w": SVD(rank=5)}, stats=stats)


def test_planned_with_statistics_but_compressed_without(rng):
    params = {"w": jnp.asarray(rng.normal(size=(M, N)), jnp.float32)}
    _, moments = gram(rng, M, 50)
    stats = stats_of({"w": weight_use("w", (M, N), Layout((0,), (1,)))}, {"w": moments})
    with pytest.raises(StatsError, match=r"w: .*input statistics"):
        compress(params, plan(params, {"w": SVD(rank=5)}, stats=stats))


def test_a_solve_that_is_not_finite_is_named_and_never_handed_on(simple):
    p = plan(simple, {"*/w": SVD(rank=5)})
    bad = simple | {"l1": {"w": simple["l1"]["w"].at[0, 0].set(jnp.nan)}}
    with pytest.raises(StatsError, match="l1/w"):
        compress(bad, p)


def test_zero_and_rank_deficient_weights(rng):
    low = rng.normal(size=(M, 3)) @ rng.normal(size=(3, N))
    params = {"zero": jnp.zeros((M, N)), "low": jnp.asarray(low, jnp.float32)}
    out = compress(params, plan(params, {"*": SVD(rank=6)}))
    np.testing.assert_allclose(densify(out["zero"]), 0, atol=1e-7)
    np.testing.assert_allclose(densify(out["low"]), low, atol=1e-4)
