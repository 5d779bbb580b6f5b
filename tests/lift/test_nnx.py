"""Unmodified NNX modules, and the helper that keeps their state."""

import jax
import jax.numpy as jnp
from flax import nnx

from lrjax.formats.layout import Layout
from lrjax.lift import lift
from lrjax.lift.nnx import call
from lrjax.ops import densify
from tests.lift.oracle import check, close, factor, fill, normal


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(20, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(4, 20, rngs=rngs, decode=False)
        self.up = nnx.Linear(20, 28, rngs=rngs)
        self.down = nnx.Linear(28, 20, rngs=rngs)

    def __call__(self, x):
        x = x + self.attend(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class Language(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(23, 20, rngs=rngs)
        self.block = Block(rngs)
        self.conv = nnx.Conv(20, 20, (3,), rngs=rngs)

    def __call__(self, tokens):
        return self.embed.attend(self.conv(self.block(self.embed(tokens))))


def test_split_and_merge():
    graph, state = nnx.split(nnx.eval_shape(lambda: Language(nnx.Rngs(0))))
    state = fill(state)
    params = factor(state, {"conv/kernel": Layout((0, 1), (2,))})
    tokens = jnp.arange(14).reshape(2, 7)
    check(lambda p, t: nnx.merge(graph, p)(t), params, tokens, cheaper=True)


def test_scanned_modules():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stack(rngs):
        return Block(rngs)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, block):
        return block(x)

    graph, state = nnx.split(nnx.eval_shape(lambda: stack(nnx.Rngs(0))))
    state = fill(state)
    layouts = {f"{n}/kernel": Layout((1,), (2,)) for n in ("up", "down")}
    layouts |= {f"attend/{n}/kernel": Layout((1,), (2, 3)) for n in ("query", "key", "value")}
    layouts["attend/out/kernel"] = Layout((1, 2), (3,))
    params = factor(state, layouts)
    check(lambda p, x: run(x, nnx.merge(graph, p)), params, normal(1, 2, 5, 20))


class Stateful(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(9, 14, rngs=rngs)
        self.norm = nnx.BatchNorm(14, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.linear(x)))


def pair():
    """A factored model and the same, dense."""
    models = Stateful(nnx.Rngs(0)), Stateful(nnx.Rngs(0))
    params = factor(nnx.state(models[0], nnx.Param))
    nnx.update(models[0], params)
    nnx.update(models[1], densify(params))
    return models


def test_call_keeps_the_state():
    ours, theirs = pair()
    for seed in range(2):
        x = normal(seed, 6, 9)
        close(call(ours, x), theirs(x))
    a, b = (nnx.state(m, nnx.Not(nnx.Param)) for m in (ours, theirs))
    assert float(abs(ours.norm.mean[...]).sum()) > 0
    key = lambda leaf: (
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    )
    close(jax.tree.map(key, a), jax.tree.map(key, b))


def test_call_inside_jit_and_grad():
    ours, theirs = pair()
    x = normal(3, 6, 9)
    loss = lambda f: lambda m: jnp.sum(f(m, x) ** 2)
    grads = nnx.jit(nnx.grad(loss(call)))(ours)
    nnx.grad(loss(lambda m, x: m(x)))(theirs)
    close(ours.norm.mean[...], theirs.norm.mean[...])
    assert jax.tree.leaves(grads)


def test_plain_lift_of_a_pure_function_returns_the_state():
    ours, theirs = pair()
    graph, params, rest = nnx.split(ours, nnx.Param, ...)

    def pure(params, rest, x):
        model = nnx.merge(graph, params, rest)
        return model(x), nnx.state(model, nnx.BatchStat)

    x = normal(3, 6, 9)
    y, state = jax.jit(lift(pure))(params, rest, x)
    close(y, theirs(x))
    close(state, nnx.state(theirs, nnx.BatchStat))
