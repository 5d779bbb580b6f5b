"""Programs inside programs, and transformations around lift."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lrjax.formats.layout import Layout
from lrjax.lift import lift
from lrjax.lift.jaxprs import opened
from lrjax.ops import densify
from tests.lift.oracle import check, close, factored, normal

X = normal(9, 5, 12)
SQUARE = {"w": factored((12, 12))}
STACK = {"w": factored((4, 12, 12), Layout((1,), (2,))), "b": normal(1, 4, 12)}
DEEP = {"w": factored((2, 3, 12, 12), Layout((2,), (3,)))}


def layers(p, x):
    return lax.scan(lambda x, q: (jnp.tanh(x @ q["w"] + q["b"]), None), x, p)[0]


def with_history(p, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, p["w"], reverse=True)


def remat_layers(p, x):
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    block = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), policy=policy)
    return lax.scan(block, x, p["w"], unroll=2)[0]


def nested(p, x):
    inner = lambda x, w: (jnp.tanh(x @ w), None)
    return lax.scan(lambda x, w: (lax.scan(inner, x, w)[0], None), x, p["w"])[0]


def recurrent(p, x):
    return lax.scan(lambda h, t: (jnp.tanh(t + h @ p["w"]), h), jnp.zeros(12), x)


def carried(p, x):
    """The weights travel in the carry, and come out."""
    (x, w), _ = lax.scan(
        lambda c, _: ((jnp.tanh(c[0] @ c[1]), c[1]), None), (x, p["w"]), None, length=3
    )
    return x @ w


def handed_on(p, x):
    """A scan over modules returns its parameters."""
    x, w = lax.scan(lambda x, w: (jnp.tanh(x @ w), w), x, p["w"])
    return jnp.einsum("td,edf->etf", x, w)


def by_index(p, x):
    return lax.fori_loop(0, 4, lambda i, x: jnp.tanh(x @ p["w"][i] + p["b"][i]), x)


def branches(p, x):
    return lax.cond(x[0, 0] > 0, lambda x: x @ p["w"], lambda x: jnp.tanh(x) @ p["w"].T, x)


def switched(p, x):
    fs = [lambda x, i=i: x @ p["w"][i] for i in range(4)]
    return lax.switch(jnp.argmax(x[0]) % 4, fs, x)


def chosen(p, x):
    """A weight comes out of a branch."""
    return x @ lax.cond(x[0, 0] > 0, lambda: p["w"][0], lambda: p["w"][1])


def custom_jvp(p, x):
    @jax.custom_jvp
    def f(x, w):
        return jnp.sin(x @ w)

    f.defjvp(lambda p, t: (f(*p), jnp.cos(p[0] @ p[1]) * (t[0] @ p[1] + p[0] @ t[1])))
    return f(x, p["w"])


def custom_vjp(p, x):
    @jax.custom_vjp
    def f(x, w):
        return x @ w

    f.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    return f(x, p["w"])


def activations(p, x):
    y = jax.nn.gelu(x @ p["w"])
    y = jax.nn.relu6(jax.nn.silu(y) @ p["w"])
    return jax.nn.log_softmax(jax.nn.leaky_relu(y))


CASES = {
    "layers": (layers, STACK),
    "with_history": (with_history, STACK),
    "remat_layers": (remat_layers, STACK),
    "nested": (nested, DEEP),
    "recurrent": (recurrent, SQUARE),
    "carried": (carried, SQUARE),
    "handed_on": (handed_on, STACK),
    "by_index": (by_index, STACK),
    "branches": (branches, SQUARE),
    "switched": (switched, STACK),
    "chosen": (chosen, STACK),
    "custom_jvp": (custom_jvp, SQUARE),
    "activations": (activations, SQUARE),
}


@pytest.mark.parametrize("name", CASES)
def test_nested_programs(name):
    f, params = CASES[name]
    check(f, params, X)


def test_while_loop():
    def f(p, x):
        step = lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"]))
        return lax.while_loop(lambda c: (c[0] < 3) & (jnp.sum(c[1] @ p["w"]) < 99), step, (0, x))

    check(f, SQUARE, X, grad=False)


def test_a_replaced_custom_vjp_warns_when_differentiated():
    check(custom_vjp, SQUARE, X, grad=False)
    with pytest.warns(UserWarning, match="custom_vjp"):
        check(custom_vjp, SQUARE, X)


def test_a_custom_vjp_without_weights_stays():
    @jax.custom_vjp
    def reverse(x):
        return x

    reverse.defvjp(lambda x: (x, None), lambda _, g: (-g,))
    f = lambda p, x: reverse(x @ p["w"])
    g = jax.grad(lambda x: jnp.sum(lift(f)(SQUARE, x)))(X)
    close(g, -jax.grad(lambda x: jnp.sum(x @ densify(SQUARE["w"])))(X))


def test_scan_stays_one_scan_and_remat_keeps_its_policy():
    program = jax.make_jaxpr(lift(remat_layers))(STACK, X)
    (scan,) = opened(program)[0].eqns
    (remat,) = opened(scan.params["jaxpr"])[0].eqns
    assert scan.primitive.name == "scan"
    assert scan.params["unroll"] == 2
    assert remat.params["policy"] is jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def test_transformations_around_lift():
    f = lift(layers)
    out = f(densify(STACK), X)
    assert jax.eval_shape(f, STACK, X).shape == out.shape
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), STACK)
    assert jax.eval_shape(f, abstract, X).shape == out.shape
    close(jax.vmap(f, (None, 0))(STACK, X), out)
    per_example = jax.vmap(jax.grad(lambda p, x: jnp.sum(f(p, x))), (None, 0))(STACK, X)
    close(
        jax.tree.map(lambda a: a.sum(0), per_example), jax.grad(lambda p: jnp.sum(f(p, X)))(STACK)
    )
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), STACK)
    each = [f(jax.tree.map(lambda a, i=i: a[i], many), X) for i in range(2)]
    close(jax.vmap(f, (0, None))(many, X), jnp.stack(each))
    tangent = jax.tree.map(jnp.ones_like, STACK)
    ours = jax.jvp(lambda p: f(p, X), (STACK,), (tangent,))[1]
    theirs = jax.jvp(lambda p: layers(densify(p), X), (STACK,), (tangent,))[1]
    close(ours, theirs)


def test_one_trace_for_equal_structures():
    count = 0

    def f(p, x):
        nonlocal count
        count += 1
        return layers(p, x)

    run = jax.jit(lift(f))
    run(STACK, X)
    run(jax.tree.map(lambda a: a + 1, STACK), X)
    assert count == 1


def test_donated_factors_are_reused():
    @functools.partial(jax.jit, donate_argnums=0)
    def step(p, x):
        g = jax.grad(lambda p: jnp.sum(lift(layers)(p, x) ** 2))(p)
        return jax.tree.map(lambda a, d: a - 0.1 * d, p, g)

    p = jax.tree.map(jnp.copy, STACK)
    new = step(p, X)
    assert all(a.is_deleted() for a in jax.tree.leaves(p))
    assert jax.tree.structure(new) == jax.tree.structure(STACK)


def test_without_factors_fn_is_called_as_it_is():
    seen = []

    def f(p, x, flag):
        seen.append(type(flag))
        return x @ p["w"]

    args = ({"w": np.ones((12, 3), np.float32)}, X, "train")
    assert lift(f)(*args).shape == (5, 3)
    assert lift(lambda p, x, flag=True: x @ p["w"] if flag else None)(SQUARE, X).shape == (5, 12)
    assert seen == [str]


def test_unchanged_parameters_come_back_as_they_went_in():
    def f(p, x):
        return x @ p["w"], p, {"again": p["w"]}

    _, p, other = lift(f)(SQUARE, X)
    assert p["w"] is SQUARE["w"]
    assert other["again"] is SQUARE["w"]
    _, p, _ = jax.jit(lift(f))(SQUARE, X)
    assert jax.tree.structure(p) == jax.tree.structure(SQUARE)


def test_bfloat16_stays_bfloat16():
    p = jax.tree.map(lambda a: a.astype(jnp.bfloat16), STACK)
    out = jax.jit(lift(layers))(p, X.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    close(out.astype(jnp.float32), layers(densify(STACK), X), 0.05)
