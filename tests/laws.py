"""The laws that every format obeys, over one list of cases.

A format joins by one line in `tests/cases.py`. Each law is a function of a case;
`tests/test_laws.py` runs every law on every case.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lrjax import ops
from lrjax.formats import Factored
from lrjax.formats.lazy import LazyArray
from tests.cases import Blocks, Case, generator, normal

ROWS = 5  # activation rows, distinct from every size below


# ---- helpers -----------------------------------------------------------------------------------


def oracle(case: Case, w: Factored) -> np.ndarray:
    """The dense weight in NumPy and double precision."""
    return np.asarray(case.dense(jax.tree.map(lambda x: np.asarray(x, np.float64), w), np))


def close(got: Any, want: Any, tol: float = 3e-5) -> None:
    got = got.densify() if isinstance(got, Factored | LazyArray) else got
    want = np.asarray(want, np.float64)
    assert np.shape(got) == want.shape
    bound = tol * max(1.0, np.abs(want).max(initial=0.0))
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=bound)


def agree(f: Callable[..., list], want: list, *args: Any) -> None:
    """What `f` computes under one `jit` equals the dense results, one by one."""
    got = jax.jit(lambda *a: [y.densify() if isinstance(y, LazyArray) else y for y in f(*a)])(*args)
    for y, expected in zip(got, want, strict=True):
        close(y, expected)


def spec_of(w: Factored) -> tuple[str, str, str]:
    """Einsum letters of the activation, the weight and the product."""
    stack, rows, cols = w.layout.resolve(w.ndim)
    letters = "abcdefgh"[: w.ndim]
    pick = lambda dims: "".join(letters[d] for d in dims)
    return f"{pick(stack)}z{pick(rows)}", letters, f"{pick(stack)}z{pick(cols)}"


def activation(w: Factored, rows: int = ROWS, dtype: Any = jnp.float32) -> jax.Array:
    stack, inputs, _ = w.layout.resolve(w.ndim)
    shape = (*(w.shape[d] for d in stack), rows, *(w.shape[d] for d in inputs))
    return normal(generator(7), *shape).astype(dtype)


def apply(w: Any, x: Any) -> Any:
    """The activation through the weight, by its layout."""
    a, b, c = spec_of(w)
    return ops.einsum(f"{a},{b}->{c}", x, w)


def applied(w: Factored, dense: Any, x: Any, xp: Any = np) -> Any:
    a, b, c = spec_of(w)
    return xp.einsum(f"{a},{b}->{c}", x, dense)


def values(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all values of a jaxpr and of the jaxprs in it."""
    for eqn in jaxpr.eqns:
        for v in eqn.outvars:
            yield v.aval.shape
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from values(inner)


# ---- laws --------------------------------------------------------------------------------------


def densify_is_the_definition(case: Case) -> None:
    for stack in ((), (2, 3)):
        w = case.make(generator(), *stack)
        want = oracle(case, w)
        assert w.shape == want.shape
        assert w.shape[: len(stack)] == stack
        assert w.dtype == jnp.float32
        assert (w.ndim, w.size) == (want.ndim, want.size)
        close(ops.densify({"a": w})["a"], want)
        assert w.validate() is w
        assert ops.validate({"a": w})["a"] is w


def full_rank_is_exact(case: Case) -> None:
    if case.exact is None:
        return
    for shape in ((12, 20), (3, 20, 12)):
        w = normal(generator(), *shape)
        close(case.exact(w), w)


def products_are_dense_products(case: Case) -> None:
    for stack in ((), (3,)):
        w = case.make(generator(), *stack)
        dense, x = oracle(case, w), activation(w)
        vs = [
            np.linspace(-1, 1, 2 * n, dtype=np.float32).reshape(2, n)
            for n in w.shape  # any one dimension contracted, from either side
        ]
        agree(
            lambda w, x, vs=vs: [
                apply(w, x),
                ops.einsum("...i,...i->...", w, w),
                *(ops.dot_general(v, w, (((1,), (d,)), ((), ()))) for d, v in enumerate(vs)),
                *(ops.dot_general(w, v, (((d,), (1,)), ((), ()))) for d, v in enumerate(vs)),
            ],
            [
                applied(w, dense, x),
                np.sum(dense**2, -1),
                *(np.tensordot(v, dense, (1, d)) for d, v in enumerate(vs)),
                *(np.tensordot(dense, v, (d, 1)) for d, v in enumerate(vs)),
            ],
            w,
            x,
        )


def matmul_is_dense_matmul(case: Case) -> None:
    for stack in ((), (3,)):
        w = case.make(generator(), *stack)
        if w.ndim != 2 + len(stack):
            continue
        dense = oracle(case, w)
        m, n = w.shape[-2:]
        x = np.asarray(normal(generator(), *stack, ROWS, m))
        y = np.asarray(normal(generator(), n, 2))
        close(x @ w, x @ dense)  # NumPy defers
        agree(
            lambda w, x=x, y=y: [jnp.asarray(x) @ w, x[..., :1, :] @ w, w @ y, w @ y[:, 0], w.T],
            [x @ dense, x[..., :1, :] @ dense, dense @ y, dense @ y[:, 0], dense.T],
            w,
        )
        if not stack:
            close(y[:, 0] @ w.T, y[:, 0] @ dense.T)


def shape_operations_are_dense(case: Case) -> None:
    w = case.make(generator(), 3)
    dense = oracle(case, w)
    n = w.ndim
    split = (3, *w.shape[1:-1], 2, w.shape[-1] // 2)
    even = [d for d in range(1, n) if w.shape[d] % 2 == 0]
    perms = list(itertools.islice(itertools.permutations(range(n)), 4))
    agree(
        lambda w: [
            *(ops.transpose(w, perm) for perm in perms),
            ops.reshape(w, split),
            ops.reshape(w, (3, -1)),
            ops.reshape(ops.reshape(w, (-1,)), w.shape),
            ops.squeeze(ops.slice_in_dim(w, 1, 1, 0), (0,)),
            ops.slice_in_dim(w, jnp.int32(2), 1, 0, dynamic=True),
            *(ops.slice_in_dim(w, 1, 1, d) for d in range(1, n)),
            *(half for d in even for half in ops.split(w, (w.shape[d] // 2,) * 2, d)),
            ops.broadcast_in_dim(w, (2, *w.shape), range(1, n + 1)),
            ops.reduce_sum(w, (1,)),
            ops.reduce_sum(w, (0, n - 1)),
        ],
        [
            *(dense.transpose(perm) for perm in perms),
            dense.reshape(split),
            dense.reshape(3, -1),
            dense,
            dense[1],
            dense[2:3],
            *(np.take(dense, [1], d) for d in range(1, n)),
            *(half for d in even for half in np.split(dense, 2, d)),
            np.stack([dense, dense]),
            dense.sum(1),
            dense.sum((0, n - 1)),
        ],
        w,
    )


def arithmetic_is_dense(case: Case) -> None:
    w, other = case.make(generator()), case.make(generator(1))
    dense = oracle(case, w)
    array = dense.astype(np.float32)
    v = np.linspace(0.5, 2, w.shape[-1], dtype=np.float32)
    u = np.linspace(0.5, 2, w.shape[-2], dtype=np.float32).reshape(-1, 1)
    x = normal(generator(), ROWS, 3 * w.shape[0])
    across = np.concatenate([dense, 2 * dense, dense])

    def operations(w):
        wide = ops.concatenate([w, ops.scale(w, 2.0), array], 0)
        return [
            ops.scale(w, 2.5),
            ops.multiply(w, v[(None,) * (w.ndim - 1)]),
            ops.multiply(u, w),
            ops.multiply(w, w),
            ops.add(w, w),
            ops.add(w, array),
            ops.add(v, w),
            wide,
            ops.dot_general(x, wide, (((1,), (0,)), ((), ()))),
            ops.stack([w.lazy(), w.lazy()], 1),
        ]

    expected = [
        2.5 * dense,
        dense * v,
        dense * u,
        dense**2,
        2 * dense,
        2 * dense,
        dense + v,
        across,
        np.tensordot(x, across, (1, 0)),
        np.stack([dense, dense], 1),
    ]
    agree(operations, expected, w)
    both = ops.stack([w, other])
    assert isinstance(both, type(w))
    close(both, np.stack([dense, oracle(case, other)]))


def lookups_are_dense(case: Case) -> None:
    w = case.make(generator(), 3)
    dense = jnp.asarray(oracle(case, w), jnp.float32)
    looks = [(axis, np.array([[0, n - 1], [-1, n // 2]]), "fill") for axis, n in enumerate(w.shape)]
    looks += [
        (axis, np.array([n, -n - 1, 1]), mode)
        for axis, n in enumerate(w.shape)
        for mode in ("fill", "clip", "wrap")
    ]
    agree(
        lambda w: [
            ops.take(w, jnp.int32(1), 0, lazy=True),
            *(ops.take(w, index, axis, mode=mode) for axis, index, mode in looks),
        ],
        [
            dense[1],
            *(jnp.take(dense, index, axis, mode=mode) for axis, index, mode in looks),
        ],
        w,
    )


def jit_is_eager(case: Case) -> None:
    w = case.make(generator())
    x = activation(w)
    close(jax.jit(apply)(w, x), apply(w, x), 1e-6)
    close(jax.jit(ops.densify)(w), ops.densify(w), 1e-6)


def vmap_is_a_loop(case: Case) -> None:
    w, one = case.make(generator(), 3), case.make(generator())
    x = activation(one)
    slices = [jax.tree.map(lambda leaf, i=i: leaf[i], w) for i in range(3)]
    close(jax.vmap(apply, (0, None))(w, x), np.stack([apply(s, x) for s in slices]))
    close(jax.vmap(apply, (None, 0))(one, jnp.stack([x, 2 * x])), np.stack([apply(one, x)] * 2) *
          np.array([1, 2]).reshape(2, *[1] * (apply(one, x).ndim)))  # fmt: skip


def gradients_are_dense(case: Case) -> None:
    w = case.make(generator())
    x = activation(w)

    def factored(w, x):
        return jnp.sum(jnp.sin(apply(w, x)))

    def dense(w, x):
        return jnp.sum(jnp.sin(applied(w, case.dense(w, jnp), x, jnp)))

    def derivatives(f):
        tangent = (case.make(generator(3)), x)
        twice = jax.jvp(jax.grad(f, 1), (w, x), tangent)[1]
        return jax.grad(f, (0, 1))(w, x), jax.jvp(f, (w, x), tangent), twice

    got, want = (jax.jit(lambda f=f: derivatives(f))() for f in (factored, dense))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), got, want)


def the_dense_weight_never_forms(case: Case) -> None:
    if not case.streams:
        return
    w = case.make(generator())
    x = activation(w)

    def train(w, x):
        y, back = jax.vjp(apply, w, x)
        return y, back(y), ops.take(w, jnp.arange(2), 0), ops.scale(w, 2.0), w.T

    jaxpr = jax.make_jaxpr(train)(w, x).jaxpr
    assert max(int(np.prod(shape)) for shape in values(jaxpr)) < w.size


def cost_is_what_xla_counts(case: Case) -> None:
    for stack in ((), (3,)):
        w = case.make(generator(), *stack)
        x = activation(w, 64)
        counted = jax.jit(apply).lower(w, x).compile().cost_analysis()["flops"]
        cost = ops.cost(w, rows=64)
        assert abs(cost.flops - counted) <= 0.02 * counted, (cost.flops, counted)
        assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(w))
        assert cost.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(w))


def any_leaves_make_a_tree(case: Case) -> None:
    w = case.make(generator())
    leaves, treedef = jax.tree.flatten(w)
    for sentinel in (object(), True, "spec", 0):
        back = jax.tree.unflatten(treedef, [sentinel] * len(leaves))
        assert jax.tree.leaves(back) == [sentinel] * len(leaves)
        assert jax.tree.structure(back) == treedef
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, w)
    assert isinstance(mask, type(w))
    assert isinstance(repr(mask), str)
    assert hash(treedef) == hash(jax.tree.structure(case.make(generator(1))))
    assert jax.eval_shape(lambda: case.make(generator())).shape == w.shape


def scan_visits_the_stack(case: Case) -> None:
    w, one = case.make(generator(), 3), case.make(generator())
    x = activation(one)
    want = np.stack([apply(jax.tree.map(lambda leaf, i=i: leaf[i], w), x) for i in range(3)])
    close(jax.lax.scan(lambda c, s: (c, apply(s, x)), 0, w)[1], want)
    operands, rebuild = ops.unstack(w)
    a, b, c = spec_of(one)
    body = lambda carry, s: (carry, ops.einsum(f"{a},{b}->{c}", x, rebuild(s)))
    close(jax.lax.scan(body, 0, operands)[1], want)


def equal_shapes_trace_once(case: Case) -> None:
    traces = []

    @jax.jit
    def f(w, x):
        traces.append(None)
        return apply(w, x)

    for seed in range(3):
        w = case.make(generator(seed))
        f(w, activation(w))
    assert len(traces) == 1


def an_optimiser_steps(case: Case) -> None:
    w = case.make(generator())
    x = activation(w)
    loss = lambda w: jnp.mean(apply(w, x) ** 2)
    tx = optax.sgd(jnp.float32(1e-2), momentum=0.9)

    @jax.jit
    def step(w, state):
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return optax.apply_updates(w, updates), state

    new, state = w, tx.init(w)
    for _ in range(3):
        new, state = step(new, state)
    assert jax.tree.structure(new) == jax.tree.structure(w)
    assert loss(new) < loss(w)


def sharded_is_unsharded(case: Case) -> None:
    w = case.make(generator())
    x = activation(w, 16)
    want = apply(w, x)
    _, rows, cols = w.layout.resolve(w.ndim)
    for kind, dim in itertools.product((AxisType.Auto, AxisType.Explicit), (rows[0], cols[0])):
        mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
        spec = PartitionSpec(*("model" if d == dim else None for d in range(w.ndim)))
        placed = ops.sharding(w, mesh, spec)
        assert jax.tree.structure(placed) == jax.tree.structure(w)
        with jax.set_mesh(mesh):
            sharded = jax.device_put(w, placed)
            inputs = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
            close(jax.jit(apply)(sharded, inputs), want)


def bfloat16_stays(case: Case) -> None:
    exact = case.make(generator())
    w = exact.astype(jnp.bfloat16)
    x = activation(w, dtype=jnp.bfloat16)
    dense = oracle(case, w)
    assert w.dtype == ops.cast(exact, jnp.bfloat16).dtype == jnp.bfloat16
    a, b, c = spec_of(w)

    @jax.jit
    def use(w, x):
        wide = ops.einsum(f"{a},{b}->{c}", x, w, preferred_element_type=jnp.float32)
        return apply(w, x), wide, ops.densify(w), ops.take(w, jnp.arange(2))

    y, wide, full, rows = use(w, x)
    assert y.dtype == full.dtype == rows.dtype == jnp.bfloat16
    assert wide.dtype == jnp.float32
    want = applied(w, dense, np.asarray(x, np.float64))
    close(y, want, 2e-2)
    close(wide, want, 2e-2)
    jaxpr = jax.make_jaxpr(apply)(w, x)
    kinds = {v.aval.dtype for eqn in jaxpr.eqns for v in eqn.outvars}
    assert {k for k in kinds if jnp.issubdtype(k, jnp.inexact)} == {jnp.dtype(jnp.bfloat16)}


def edges_hold(case: Case) -> None:
    for make in case.edges:
        w = make()
        dense, x = oracle(case, w), activation(w)
        agree(
            lambda w, x: [w.densify(), apply(w, x), w.T],
            [dense, applied(w, dense, x), dense.T],
            w.validate(),
            x,
        )
        jax.eval_shape(jax.grad(lambda w, x=x: jnp.sum(apply(w, x))), w)
        assert ops.cost(w).params == sum(leaf.size for leaf in jax.tree.leaves(w))


def disk_keeps_every_bit(case: Case, folder: Path) -> None:
    from lrjax import io  # the top of the house, which only this law needs

    tree = {
        "layer": {
            "kernel": case.make(generator()),
            "half": case.make(generator(), 2).astype(jnp.bfloat16),
        }
    }
    io.save(folder / "artefact", tree)
    back = io.load(folder / "artefact", formats=(Blocks,)).params
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


LAWS: list[Callable[[Case], None]] = [
    densify_is_the_definition,
    full_rank_is_exact,
    products_are_dense_products,
    matmul_is_dense_matmul,
    shape_operations_are_dense,
    arithmetic_is_dense,
    lookups_are_dense,
    jit_is_eager,
    vmap_is_a_loop,
    gradients_are_dense,
    the_dense_weight_never_forms,
    cost_is_what_xla_counts,
    any_leaves_make_a_tree,
    scan_visits_the_stack,
    equal_shapes_trace_once,
    an_optimiser_steps,
    sharded_is_unsharded,
    bfloat16_stays,
    edges_hold,
]
