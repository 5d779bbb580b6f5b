"""Factored recurrent cells: Flax's own at full rank, step by step as at once, never formed."""

import argparse
import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrjax as lr
from lrjax.zoo.recurrent import CELLS, GRUConfig, Layer, LSTMConfig, Recurrent
from tests.laws import values
from tests.zoo.test_goldens import quick

STEPS, INPUTS, HIDDEN = 500, 7, 10
X = jax.random.normal(jax.random.key(0), (2, STEPS, INPUTS))
FLAX = {"LSTMCell": LSTMConfig, "OptimizedLSTMCell": LSTMConfig, "GRUCell": GRUConfig}
GATES = {LSTMConfig: "ifgo", GRUConfig: "rzn"}

FULL = {
    "joint": lr.SVD(HIDDEN, allow_above_break_even=True),
    "per gate": lr.BlockSVD(HIDDEN, grid=(1, 4)),
    "tucker": lr.Tucker((HIDDEN, 4, HIDDEN), smallest=1),
    "diagonal": lr.LowRankDiagonal(HIDDEN),
}
SMALL = {
    "joint": lr.SVD(3),
    "per gate": lr.BlockSVD((3, 2, 4, 0), grid=(1, 4)),
    "tucker": lr.Tucker((4, 2, 5), smallest=1),
    "diagonal": lr.LowRankDiagonal(2),
}


@functools.cache
def rnn(cell):
    """Flax's layer, its parameters off their initial values, and the zoo's layer with the same."""
    model = nn.RNN(getattr(nn, cell)(HIDDEN))
    params = model.init(jax.random.key(1), X[:, :1])["params"]
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    kind = FLAX[cell]
    return model, params, Layer(CELLS[kind], HIDDEN), stacked(params["cell"], GATES[kind])


def stacked(cell, gates):
    """Flax's kernels, one a gate, as the zoo's stacks ``[gates, in, out]``."""

    def stack(side):
        own = [cell[f"{side}{g}"] for g in gates]
        bias = [p.get("bias", np.zeros(HIDDEN)) for p in own]
        return {"kernel": jnp.stack([p["kernel"] for p in own]), "bias": jnp.stack(bias)}

    return {"input": stack("i"), "recurrent": stack("h")}


def factored(params, spec, path="recurrent/kernel"):
    """By rules, plan and compress, with the layout that usage reports."""
    layer = Layer(CELLS[LSTMConfig], HIDDEN)
    uses = lr.usage(lambda p: layer.apply({"params": p}, X[:, :2])[0], params)
    return lr.compress(params, lr.plan(params, {path: spec}, usage=uses))


def outputs(layer, params, x=X):
    return layer.apply({"params": params}, x)[0]


@pytest.mark.parametrize("cell", FLAX)
def test_full_rank_equals_flax_over_500_steps(cell):
    model, params, layer, mine = rnn(cell)
    low = jax.tree.map(lambda w: lr.LowRank.from_dense(w, w.shape[-2]) if w.ndim > 2 else w, mine)
    run = quick(lambda p, *q: [model.apply({"params": p}, X), *(outputs(layer, x) for x in q)])
    want, *got = run(params, mine, low)
    for y in got:
        np.testing.assert_allclose(y, want, atol=1e-4)
    lifted = lr.lift(lambda p, x: model.apply({"params": p}, x))
    exact = jax.tree.map(lambda w: lr.LowRank.from_dense(w, len(w)) if w.ndim > 1 else w, params)
    np.testing.assert_allclose(quick(lifted)(exact, X), want, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", FULL)
def test_every_form_is_exact_at_full_rank(form):
    _, _, layer, mine = rnn("LSTMCell")
    run = quick(functools.partial(outputs, layer))
    np.testing.assert_allclose(run(factored(mine, FULL[form])), run(mine), atol=1e-4)


@pytest.mark.parametrize(
    "form", [pytest.param("joint", marks=pytest.mark.slow), "per gate", "tucker", "diagonal"]
)
def test_no_form_rebuilds_the_kernel_in_the_loop(form):
    _, _, layer, mine = rnn("LSTMCell")
    small, x = factored(mine, SMALL[form]), X[:, :40]
    kernel = small["recurrent"]["kernel"]
    assert lr.cost(kernel).params < 4 * HIDDEN * HIDDEN
    jaxpr = jax.make_jaxpr(functools.partial(outputs, layer))(small, x)
    (loop,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
    assert max(np.prod(shape) for shape in values(loop.params["jaxpr"].jaxpr)) < 4 * HIDDEN**2
    run = quick(functools.partial(outputs, layer))
    np.testing.assert_allclose(run(small, x), run(lr.densify(small), x), atol=1e-5)


@pytest.mark.parametrize("kind", [LSTMConfig, pytest.param(GRUConfig, marks=pytest.mark.slow)])
def test_hoisted_equals_stepwise(kind):
    """The inputs' product outside the loop, all at once, is the product token by token."""
    model = Recurrent(kind(vocab_size=13, embedding_size=6, hidden_size=8, num_layers=2))
    ids = jax.random.randint(jax.random.key(2), (2, 9), 0, 13)
    mask = jnp.ones_like(ids).at[1, :3].set(0)
    params = model.init(jax.random.key(3), ids)["params"]
    low = lambda w: lr.LowRank.from_dense(w, 3) if w.ndim == 3 else w
    params = jax.tree.map(low, params)

    def stepwise(params):
        def step(cache, now):
            token, real = now
            args = (token[:, None], real[:, None])
            logits, cache = model.apply({"params": params}, *args, cache=cache)
            return cache, logits[:, 0]

        cache, logits = jax.lax.scan(step, model.cache(2, 9), (ids.T, mask.T))
        return logits.swapaxes(0, 1), cache

    def halves(params):
        first, cache = model.apply(
            {"params": params}, ids[:, :4], mask[:, :4], cache=model.cache(2, 9)
        )
        args = (ids[:, 4:], mask[:, 4:])
        end, _ = model.apply({"params": params}, *args, cache=cache, last=True)
        rest, cache = model.apply({"params": params}, *args, cache=cache)
        return jnp.concatenate([first, rest[:, :-1], end], 1), cache

    whole = lambda params: model.apply({"params": params}, ids, mask)
    want, (steps, one), (parts, two) = quick(lambda p: (whole(p), stepwise(p), halves(p)))(params)
    np.testing.assert_allclose(steps, want, atol=1e-5)
    np.testing.assert_allclose(parts, want, atol=1e-5)
    states = [jax.tree.leaves(cache.parts) for cache in (one, two)]
    assert {x.shape for x in states[0]} == {(2, 8)}
    assert len(states[0]) == 2 * CELLS[kind].states
    for a, b in zip(*states, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_calibration_sees_the_states_that_the_text_drives():
    _, _, layer, mine = rnn("LSTMCell")
    x = X[:, :30]
    apply = lambda params, x: outputs(layer, params, x)
    seen = lr.calibrate(apply, mine, [x[:1], x[1:]]).of("recurrent/kernel").rows
    states = np.pad(np.asarray(apply(mine, x)), ((0, 0), (1, 0), (0, 0)))[:, :-1]
    states = states.reshape(-1, HIDDEN).astype(np.float64)
    np.testing.assert_allclose(seen.second, states.T @ states / len(states), atol=1e-5)
    np.testing.assert_allclose(seen.mean, states.mean(0), atol=1e-5)


def texts(rng, count, length):
    """Windows of source text, as bytes; the last quarter is held out by the caller."""
    data = np.frombuffer(inspect.getsource(argparse).encode("ascii", "replace"), np.uint8)
    cut = 3 * len(data) // 4

    def windows(low, high):
        starts = rng.integers(low, high - length, count)
        return jnp.asarray(np.stack([data[i : i + length] for i in starts]).astype(np.int32))

    return windows(0, cut), windows(cut, len(data))


def trained(model, seeds, steps=250):
    """Parameters of next-byte models, one a seed, on a leading axis."""
    rng, optimizer = np.random.default_rng(0), optax.adam(8e-3)
    data = jnp.stack([texts(rng, 16, 33)[0] for _ in range(steps)])

    def train(key):
        params = model.init(key, data[0, :1, :1])["params"]

        def step(carry, batch):
            params, state = carry

            def loss(params):
                logits = model.apply({"params": params}, batch[:, :-1])
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
                return losses.mean()

            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), data)
        return params, losses[-20:].mean()

    return jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), seeds))


@pytest.mark.slow
def test_the_trajectory_metric_lowers_the_closed_loop_error():
    """States after 200 steps that feed on themselves, not the error of one step."""
    model = Recurrent(LSTMConfig(vocab_size=128, embedding_size=16, hidden_size=48))
    params, losses = trained(model, seeds=3)
    assert losses.max() < 2.2  # bytes at random: 4.9
    rng = np.random.default_rng(1)
    calibration, _ = texts(rng, 32, 64)
    _, held_out = texts(rng, 64, 200)
    apply = lambda params, ids: model.apply({"params": params}, ids)
    last = jax.jit(
        lambda params: model.apply({"params": params}, held_out, cache=model.cache(64, 200))[
            1
        ].parts["layer_0"][0]
    )
    for seed in range(3):
        own = jax.tree.map(lambda x: x[seed], params)  # noqa: B023
        stats = lr.calibrate(apply, own, [calibration])
        error = {}
        for kind in (lr.metrics.Frobenius(), lr.metrics.Input(), lr.metrics.TwoSided(center=True)):
            rules = {"**/recurrent/kernel": lr.SVD(keep=0.4)}
            plan = lr.plan(own, rules, stats=stats, metric=kind)
            missed = last(lr.compress(own, plan, stats)) - last(own)
            error[type(kind).__name__] = float(jnp.linalg.norm(missed))
        assert error["Input"] < 0.7 * error["Frobenius"]
        assert error["TwoSided"] < 0.7 * error["Frobenius"]
