"""What lift costs: tracing against the plain function, running against hand-written factors.

    python benchmarks/lift.py [--repeats 15] [--out lift.json]

A 12-layer transformer, unrolled and scanned.  Peers run in one process, interleaved; medians are
reported. `hand` is the same model written on factors: x @ left @ right.
"""

import argparse
import json
import platform
import statistics
import sys
import time

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lrjax import trees
from lrjax.formats.layout import Layout, low_rank
from lrjax.lift import lift
from lrjax.ops import densify

WIDTH, HEADS, HIDDEN, LAYERS, RANK, VOCAB = 256, 8, 1024, 12, 48, 1000


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    @nn.compact
    def __call__(self, x, _):  # noqa: D102
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS)(h)
        h = nn.Dense(HIDDEN)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(h)), None


class Model(nn.Module):
    """A transformer; the benchmark's subject, as anybody would write it."""

    scanned: bool

    @nn.compact
    def __call__(self, tokens):  # noqa: D102
        x = nn.Embed(VOCAB, WIDTH)(tokens)
        if self.scanned:
            scan = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
            )
            x, _ = scan()(x, None)
        else:
            for _ in range(LAYERS):
                x, _ = Block()(x, None)
        return nn.Dense(VOCAB, name="head")(nn.LayerNorm()(x))


def factor(params):
    """Random low-rank weights in place of every kernel."""
    rng = np.random.default_rng(0)

    def one(path, w):
        if not path.endswith("kernel"):
            return w
        out = "/out/" in path
        last = w.ndim - (1 if out or "Attention" not in path else 2)
        first = 1 if "Scan" in path else 0
        layout = Layout(tuple(range(first, last)), tuple(range(last, w.ndim)))
        *stack, m, n = layout.matrix_shape(w.shape)
        left = jnp.asarray(rng.normal(size=(*stack, m, RANK)) / m**0.5, jnp.float32)
        right = jnp.asarray(rng.normal(size=(*stack, RANK, n)) / RANK**0.5, jnp.float32)
        return low_rank(left, right, layout, w.shape)

    return trees.map_weights(one, params, with_path=True)


def by_hand(p, tokens):
    """The unrolled model on factors, by plain matrix products."""

    def dense(q, x):
        w = q["kernel"]
        return x @ w.left @ w.right + q["bias"].reshape(-1)

    def norm(q, x):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + 1e-6) * q["scale"] + q["bias"]

    x = p["Embed_0"]["embedding"][tokens]
    split = lambda y: y.reshape(*y.shape[:2], HEADS, -1)
    for i in range(LAYERS):
        q = p[f"Block_{i}"]
        a, h = q["MultiHeadDotProductAttention_0"], norm(q["LayerNorm_0"], x)
        query, key, value = (split(dense(a[n], h)) for n in ("query", "key", "value"))
        score = jnp.einsum("bqhd,bkhd->bhqk", query / (WIDTH // HEADS) ** 0.5, key)
        o = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(score), value)
        x = x + dense(a["out"], o.reshape(x.shape))
        h = jax.nn.gelu(dense(q["Dense_0"], norm(q["LayerNorm_1"], x)))
        x = x + dense(q["Dense_1"], h)
    return dense(p["head"], norm(p["LayerNorm_0"], x))


def interleaved(runs, repeats, clock=time.perf_counter):
    """Median seconds of each run, taken in turn."""
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def flops(compiled):
    cost = compiled.cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost).get("flops")


def tracing(scanned, repeats):
    """Seconds to trace, forward and with gradients."""
    model, tokens = Model(scanned), jnp.zeros((4, 64), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    params = factor(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    dense = densify(params)
    plain = lambda p, t: model.apply({"params": p}, t)
    # A new function each time, so that nothing is cached.
    forward = lambda f, p: lambda: jax.jit(lambda p, t: f(p, t)).trace(p, tokens)
    loss = lambda f: lambda p, t: jnp.sum(f(p, t) ** 2)
    both = lambda f, p: lambda: jax.jit(jax.value_and_grad(loss(f))).trace(p, tokens)
    found = interleaved(
        {
            "plain": forward(plain, dense),
            "lift": forward(lift(plain), params),
            "plain_grad": both(plain, dense),
            "lift_grad": both(lift(plain), params),
        },
        repeats,
        time.process_time,  # one thread's work, whatever else the machine does
    )
    found["ratio"] = found["lift"] / found["plain"]
    found["ratio_grad"] = found["lift_grad"] / found["plain_grad"]
    return found


def running(batch, repeats):
    """Seconds of a compiled call, and its FLOPs."""
    model, tokens = Model(False), jnp.zeros((batch, 64), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    params = factor(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    plain = lambda p, t: model.apply({"params": p}, t)
    runs = {
        "dense": (plain, densify(params)),
        "lift": (lift(plain), params),
        "hand": (by_hand, params),
    }
    compiled = {k: (jax.jit(f).lower(p, tokens).compile(), p) for k, (f, p) in runs.items()}
    for c, p in compiled.values():
        jax.block_until_ready(c(p, tokens))
    calls = {
        k: (lambda c=c, p=p: jax.block_until_ready(c(p, tokens))) for k, (c, p) in compiled.items()
    }
    found = interleaved(calls, repeats)
    return {"seconds": found, "flops": {k: flops(c) for k, (c, _) in compiled.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out")
    args = parser.parse_args()
    found = {
        "device": str(jax.devices()[0]),
        "platform": platform.platform(),
        "versions": {
            "python": sys.version.split()[0],
            "jax": jax.__version__,
            "flax": flax.__version__,
        },
        "model": {"width": WIDTH, "hidden": HIDDEN, "layers": LAYERS, "rank": RANK},
        "tracing": {
            "unrolled": tracing(False, args.repeats),
            "scanned": tracing(True, args.repeats),
        },
        "running": running(args.batch, args.repeats),
    }
    text = json.dumps(found, indent=2)
    if args.out:
        with open(args.out, "w") as file:
            file.write(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
