"""The oracle: the function on densified weights, and a search of the program for dense weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import trees
from lrjax.formats.layout import Layout, default_layout, low_rank
from lrjax.lift import lift
from lrjax.lift.jaxprs import live
from lrjax.ops import densify

RANK = 2


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, dtype)


def factored(shape, layout=None, rank=RANK, seed=0, dtype=jnp.float32):
    """A random low-rank weight of the given dense shape."""
    layout = layout or default_layout(shape)
    *stack, m, n = layout.matrix_shape(shape)
    left = normal(seed, *stack, m, rank, dtype=dtype)
    right = normal(seed + 1, *stack, rank, n, dtype=dtype)
    return low_rank(left, right, layout, shape)


def factor(params, layouts=None, rank=RANK, where=lambda path: True):
    """Every weight of two or more dims (biases aside) in factors."""
    layouts = layouts or {}

    def one(path, w):
        small = w.ndim < 2 or "bias" in path or not jnp.issubdtype(w.dtype, jnp.inexact)
        if small or not where(path):
            return w
        layout = layouts.get(path)
        seed = sum(map(ord, path))
        return factored(w.shape, layout, min(rank, *w.shape[-2:]), seed, w.dtype)

    return trees.map_weights(one, params, with_path=True)


def dense_values(fn, *args):
    """Values in fn's program with the dims, or as a vector the size, of a factored argument."""
    weights = [
        x for x in jax.tree.leaves(args, is_leaf=trees.is_weight_leaf) if trees.is_weight_leaf(x)
    ]
    sizes = {tuple(sorted(n for n in w.shape if n != 1)) for w in weights}
    sizes |= {(math.prod(w.shape),) for w in weights}
    found = []

    def visit(jaxpr):
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        for _, eqn in live(jaxpr):
            for v in eqn.outvars:
                if tuple(sorted(n for n in v.aval.shape if n != 1)) in sizes:
                    found.append((eqn.primitive.name, v.aval.shape))
            for p in eqn.params.values():
                for sub in p if isinstance(p, (tuple, list)) else (p,):
                    if hasattr(sub, "eqns") or hasattr(sub, "jaxpr"):
                        visit(sub)

    visit(jax.make_jaxpr(fn)(*args))
    return found


def flops(fn, *args):
    """By XLA's cost analysis, of the program as it is lowered."""
    cost = jax.jit(fn).lower(*args).cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def fill(shapes):
    """Random arrays of the given shapes: what an initialiser gives, without running it."""

    def one(path, s):
        if not isinstance(s, jax.ShapeDtypeStruct):
            return s
        if not jnp.issubdtype(s.dtype, jnp.floating):
            return jnp.zeros(s.shape, s.dtype)
        x = normal(sum(map(ord, path)), *s.shape, dtype=s.dtype)
        return abs(x) + 0.5 if path.endswith("var") else x

    return trees.map_weights(one, shapes, with_path=True)


def close(a, b, tol=1e-4):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol * max(1.0, np.abs(y).max(initial=0)))


def check(fn, params, *args, grad=True, cheaper=False, dense=(), tol=1e-4):
    """lift(fn) equals fn on densified weights, forms none of them, in values and gradients."""
    assert any(map(trees.is_weight_leaf, trees.flatten(params)[0].values()))

    def both(params, args):
        ours = lambda p: lift(fn)(p, *args)
        theirs = lambda p: fn(densify(p), *args)
        score = lambda f: lambda p: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(f(p)))
        outs = ours(params), theirs(params)
        return outs, [jax.grad(score(f))(params) for f in (ours, theirs) if grad]

    found = [f for f in dense_values(lift(fn), params, *args) if f[1] not in dense]
    assert not found, f"dense weights in the program: {found}"
    quick = {"xla_backend_optimization_level": 0}
    run = jax.jit(both).lower(params, args).compile(compiler_options=quick)
    (out, full), grads = run(params, args)
    close(out, full, tol)
    if grad:
        close(grads[0], grads[1], 10 * tol)
    if cheaper:
        assert flops(lift(fn), params, *args) < flops(fn, densify(params), *args)
    return out


ROWS_FIRST = Layout((0,), (1,))
