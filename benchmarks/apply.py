"""Applying a factored weight: against the dense one, and against the same factors by hand.

python benchmarks/apply.py [--quick] [--seconds 4] [--out results.json]

The limit of the speedup is the ratio of FLOPs, dense over factored; `of limit` is the share of it
that is reached. FLOPs are those of XLA's cost analysis of what was compiled. All forms run in one
process, in turn; a call repeats the product, so that dispatch does not count, with an activation
that each time depends on the last result, so that nothing is hoisted.
"""

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Contestant, compete, machine, publish
from jax import lax
from rich.console import Console
from rich.table import Table

import lrjax as lr
from lrjax.formats.layout import Layout, low_rank


@dataclasses.dataclass(frozen=True)
class Layer:
    """A weight, how it is applied to an activation, and the same on left and right by hand."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    activation: Callable[[int], tuple[int, ...]]
    apply: Callable[[Any, jax.Array], jax.Array]
    by_hand: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def linear(m: int, n: int) -> Layer:
    """The product x @ W."""
    return Layer(
        f"linear {m}x{n}",
        (m, n),
        Layout((0,), (1,)),
        lambda batch: (batch, m),
        lambda w, x: jnp.dot(x, w),
        lambda left, right, x: jnp.dot(jnp.dot(x, left), right),
    )


def convolution(size: int, cin: int, cout: int) -> Layer:
    """A 3x3 convolution, SAME; by hand a 3x3 convolution to the rank and a 1x1 one."""
    names = ("NHWC", "HWIO", "NHWC")
    conv = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=names
    )
    return Layer(
        f"convolution 3x3 {cin}x{cout}, {size}x{size} pixels",
        (3, 3, cin, cout),
        Layout((0, 1, 2), (3,)),
        lambda batch: (batch, size, size, cin),
        lambda w, x: conv(x, w),
        lambda left, right, x: conv(conv(x, left.reshape(3, 3, cin, -1)), right[None, None]),
    )


LAYERS = (linear(768, 3072), linear(3072, 768), linear(768, 768), linear(2048, 2048))
CONVOLUTIONS = (convolution(8, 128, 128), convolution(8, 256, 512))
KEEPS = (0.2, 0.4, 0.5, 0.8)
TILE = 16  # rounded ranks run faster than raw ones


def repeated(f: Callable[..., jax.Array], times: int) -> Callable[..., jax.Array]:
    """The function `times` times, each on an activation that the last result has touched."""

    def many(w, x):
        def body(_, x):
            y = f(w, x)
            return x.at[(0,) * x.ndim].add(1e-20 * y[(0,) * y.ndim])

        return lax.fori_loop(0, times, body, x)

    return many


def measure(layer: Layer, keep: float, batch: int, seconds: float) -> dict[str, Any]:
    """Medians and compiled FLOPs of the three forms for one layer, keep and batch."""
    rng = np.random.default_rng(0)
    m, n = layer.layout.matrix_shape(layer.shape)
    rank = max(1, round(keep * m * n / (m + n) / TILE)) * TILE
    left = jnp.asarray(rng.standard_normal((m, rank)) / m**0.5, jnp.float32)
    right = jnp.asarray(rng.standard_normal((rank, n)) / rank**0.5, jnp.float32)
    weight = low_rank(left, right, layer.layout, layer.shape)
    x = jnp.asarray(rng.standard_normal(layer.activation(batch)), jnp.float32)
    forms = {
        "dense": (layer.apply, lr.densify(weight)),
        "factored": (lr.lift(layer.apply), weight),
        "by hand": (lambda w, x: layer.by_hand(*w, x), (left, right)),
    }
    work = 2 * m * n * int(np.prod(layer.activation(batch)[:-1]))
    times = int(np.clip(2e9 // work, 1, 400))
    flops, runs = {}, []
    for name, (f, w) in forms.items():
        flops[name] = cost(jax.jit(f).lower(w, x).compile())
        run = jax.jit(repeated(f, times)).lower(w, x).compile()
        runs.append(Contestant(name, lambda run=run, w=w: run(w, x), lambda _: 0.0))
    rows = compete(f"{layer.name}, keep {keep}, batch {batch}", runs, seconds=seconds, least=5)
    found = {r.name: r.median / times for r in rows}
    limit = flops["dense"] / flops["factored"]
    speedup = found["dense"] / found["factored"]
    return {
        "layer": layer.name,
        "keep": round(rank * (m + n) / (m * n), 4),
        "rank": rank,
        "batch": batch,
        "microseconds": {k: round(1e6 * v, 2) for k, v in found.items()},
        "flops": flops,
        "limit": limit,
        "speedup": speedup,
        "of_limit": speedup / limit,
        "by_hand_over_factored": found["by hand"] / found["factored"],
    }


def cost(compiled: Any) -> float:
    """FLOPs that XLA counts."""
    analysis = compiled.cost_analysis()
    return float((analysis[0] if isinstance(analysis, list) else analysis)["flops"])


def show(rows: list[dict[str, Any]]) -> None:
    """The table, to stderr."""
    view = Table(title="time of one application, microseconds", title_justify="left")
    names = ("layer", "keep", "batch", "dense", "factored", "by hand", "speedup", "limit")
    for name in (*names, "of limit", "by hand / factored"):
        view.add_column(name, justify="left" if name == "layer" else "right")
    for r in rows:
        t = (f"{r['microseconds'][k]:.1f}" for k in ("dense", "factored", "by hand"))
        head = (r["layer"], f"{r['keep']:.2f}", str(r["batch"]), *t)
        tail = (f"{r['speedup']:.2f}", f"{r['limit']:.2f}", f"{r['of_limit']:.0%}")
        view.add_row(*head, *tail, f"{r['by_hand_over_factored']:.2f}")
    Console(stderr=True, width=160).print(view)


def main() -> None:
    """Run the cases and publish them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two linear layers, one keep")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each case")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cases = [
        (layer, keep, batch)
        for layer in (LAYERS[:2] if args.quick else LAYERS)
        for keep in ((0.4,) if args.quick else KEEPS)
        for batch in (1, 32, 512)
    ]
    if not args.quick:
        cases += [
            (layer, keep, batch) for layer in CONVOLUTIONS for keep in KEEPS for batch in (1, 32)
        ]
    rows = [measure(*case, args.seconds) for case in cases]
    show(rows)
    chosen = [r["of_limit"] for r in rows if r["batch"] == 512 and r["keep"] <= 0.51]
    summary = {"of_limit_batch_512_keep_at_most_half": statistics.median(chosen)}
    publish({"machine": machine(), "summary": summary, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
