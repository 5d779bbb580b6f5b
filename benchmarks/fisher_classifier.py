"""A classifier, compressed by SVD, FWSVD and TFWSVD at equal bytes: which keeps its score?

python benchmarks/fisher_classifier.py [--keep 0.6] [--seeds 3] [--out results.json]

A transformer reads the 8 x 8 images of handwritten digits row by row; it is trained here, and no
weight is tuned afterwards. Every method has the same ranks, so the same bytes. Statistics come
from training images, scores from images that neither training nor calibration has seen. Fisher
information is the true one, of labels drawn from the model, but for the lines marked `given`.
"""

import argparse
import functools
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import machine, publish
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import lrjax as lr
from lrjax.calibrate import Drawn, Fisher, Given
from lrjax.decompose import WeightedLowRank
from lrjax.metrics import ASVD, FWSVD, TFWSVD, Frobenius

WIDTH, HEADS, HIDDEN, LAYERS, CLASSES = 48, 4, 96, 2, 10
STEPS, BATCH, CALIBRATION = 600, 64, 512


def start(seed: int) -> dict[str, Any]:
    """Parameters before training."""
    draw = np.random.default_rng(seed)
    normal = lambda m, n: jnp.asarray(draw.normal(size=(m, n)) / np.sqrt(m), jnp.float32)
    layers = lambda m, n: jnp.stack([normal(m, n) for _ in range(LAYERS)])
    square = {name: layers(WIDTH, WIDTH) for name in ("query", "key", "value", "out")}
    wide = {"up": layers(WIDTH, HIDDEN), "down": layers(HIDDEN, WIDTH)}
    return {
        "pixels": normal(8, WIDTH),
        "place": normal(8, WIDTH),
        "layers": square | wide | {"bias": jnp.zeros((LAYERS, HIDDEN))},
        "head": normal(WIDTH, CLASSES),
    }


def apply(p: dict[str, Any], batch: dict[str, Any]) -> jax.Array:
    """Logits of images [n, 8, 8]."""

    def layer(x: jax.Array, w: dict[str, Any]) -> tuple[jax.Array, None]:
        y = norm(x)
        split = lambda z: z.reshape(*z.shape[:-1], HEADS, -1)
        q, k, v = (split(y @ w[name]) for name in ("query", "key", "value"))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(WIDTH / HEADS)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)
        x = x + mixed.reshape(x.shape) @ w["out"]
        return x + jax.nn.gelu(norm(x) @ w["up"] + w["bias"]) @ w["down"], None

    x, _ = jax.lax.scan(layer, batch["image"] @ p["pixels"] + p["place"], p["layers"])
    return norm(x).mean(1) @ p["head"]


def norm(x: jax.Array) -> jax.Array:
    """Layers' inputs with mean zero and variance one."""
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


def loss(y: jax.Array, batch: dict[str, Any]) -> jax.Array:
    """Mean cross-entropy."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, batch["label"]))


def data(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Images for training and calibration, and others for the score."""
    digits: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images, labels = digits.images[order] / 8 - 1, digits.target[order]
    cut = len(order) * 2 // 3
    part = lambda s: {
        "image": jnp.asarray(images[s], jnp.float32), "label": jnp.asarray(labels[s], jnp.int32)
    }  # fmt: skip
    return part(slice(cut)), part(slice(cut, None))


@jax.jit
def train(params: Any, seen: dict[str, Any], key: jax.Array) -> dict[str, Any]:
    """Adam with a falling rate, images shifted by a pixel."""
    optimiser = optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS), weight_decay=1e-2)

    def step(carry, key):
        params, state = carry
        picks, shifts = jax.random.split(key)
        at = jax.random.randint(picks, (BATCH,), 0, len(seen["label"]))
        move = jax.random.randint(shifts, (BATCH, 2), -1, 2)
        image = jax.vmap(lambda x, d: jnp.roll(x, d, (0, 1)))(seen["image"][at], move)
        batch = {"image": image, "label": seen["label"][at]}
        grads = jax.grad(lambda p: loss(apply(p, batch), batch))(params)
        updates, state = optimiser.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key, STEPS)
    (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), keys)
    return params


METHODS = {
    "SVD": (Frobenius(), lr.SVD(), "drawn"),
    "ASVD": (ASVD(), lr.SVD(), "drawn"),
    "FWSVD": (FWSVD(), lr.SVD(), "drawn"),
    "FWSVD, given": (FWSVD(), lr.SVD(), "given"),
    "TFWSVD, separable": (TFWSVD(), lr.SVD(), "drawn"),
    "TFWSVD": (TFWSVD(), WeightedLowRank(), "drawn"),
    "TFWSVD, given": (TFWSVD(), WeightedLowRank(), "given"),
}


@jax.jit
def score(params: dict[str, Any], batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Accuracy and cross-entropy."""
    y = lr.lift(apply)(params, batch)
    return jnp.mean(jnp.argmax(y, -1) == batch["label"]), loss(y, batch)


def once(seed: int, keep: float) -> dict[str, dict[str, float]]:
    """Every method on one trained model."""
    seen, held_out = data(seed)
    params = train(start(seed), seen, jax.random.key(seed))
    some = jax.tree.map(lambda x: x[:CALIBRATION], seen)
    draw = lambda key, y, batch: batch | {"label": jax.random.categorical(key, y)}
    gather = functools.partial(
        lr.calibrate, apply, params, [some], loss=loss, gradients=False, magnitudes=True
    )
    stats = {
        "given": gather(fisher=Fisher(labels=Given(), chunk=16)),
        "drawn": gather(fisher=Fisher(labels=Drawn(draw, count=4), chunk=16)),
    }
    dense, entropy = map(float, score(params, held_out))
    found = {"dense": {"accuracy": dense, "kept": 1.0, "loss": entropy, "bytes": 0}}
    for name, (kind, spec, labels) in METHODS.items():
        plan = lr.plan(
            params,
            {"layers/**": spec},
            budget=lr.Budget(keep=keep),
            stats=stats[labels],
            metric=kind,
            allocation=lr.Uniform(),
        )
        factored = lr.compress(params, plan, stats[labels])
        accuracy, entropy = map(float, score(factored, held_out))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(factored))
        found[name] = {
            "accuracy": accuracy, "kept": accuracy / dense, "loss": entropy, "bytes": size
        }  # fmt: skip
    found["dense"]["bytes"] = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    begin = time.perf_counter()
    runs = [once(seed, args.keep) for seed in range(args.seeds)]
    view = Table(title=f"digits, {100 * (1 - args.keep):.0f} % removed of the layers, no tuning")
    for column in ("", "bytes", "score kept, median", "least", "most", "loss, median"):
        view.add_column(column, justify="left" if not column else "right")
    for name in runs[0]:
        kept = [run[name]["kept"] for run in runs]
        cells = [f"{100 * x:.1f} %" for x in (statistics.median(kept), min(kept), max(kept))]
        middle = statistics.median(run[name]["loss"] for run in runs)
        view.add_row(name, f"{runs[0][name]['bytes']:,}", *cells, f"{middle:.3f}")
    Console(stderr=True).print(view)
    publish(
        {
            "machine": machine(),
            "keep": args.keep,
            "seconds": round(time.perf_counter() - begin, 1),
            "runs": runs,
        },
        args.out,
    )


if __name__ == "__main__":
    main()
