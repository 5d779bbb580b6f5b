"""Every format's layer against the dense layer: linear, table and convolution, batch 1, 32, 512.

python benchmarks/formats.py [--kind linear] [--format Kronecker] [--seconds 2] [--out FILE]

Weights are random; what is measured is the time of one application through `lift`, beside dense,
and the limit that FLOPs set (dense over factored; of convolutions as XLA counts them). `formed` is
`lift(order=Order.FLOPS)`, which may form the weight within the step where that is less work.
Reading rows of a table takes no FLOPs, so there the limit is left out and the bytes speak.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from apply import Layer, convolution, cost, linear, repeated
from harness import Contestant, compete, machine, publish
from rich.console import Console
from rich.table import Table

import lrjax as lr
from lrjax.formats import (
    BLAST,
    CP,
    HODLR,
    HSS,
    BlockLowRank,
    Diagonal,
    Kronecker,
    Layout,
    Monarch,
    Order,
    Sparse,
    Sum,
    TensorTrain,
    Tucker,
)
from lrjax.formats.layout import low_rank
from lrjax.ops import take

BATCHES = (1, 32, 512)
M, N = 768, 3072
VOCAB, WIDTH = 30720, 384
CHANNELS = 128


def normal(*shape: int) -> jax.Array:
    """Entries of order one over the root of the last axis."""
    values = np.random.default_rng(math.prod(shape)).standard_normal(shape)
    return jnp.asarray(values / shape[-1] ** 0.5, jnp.float32)


def table(rows: int, width: int) -> Layer:
    """Rows of a table by their numbers; the activation is as many pseudo-random numbers."""
    return Layer(
        f"table {rows}x{width}",
        (rows, width),
        Layout((0,), (1,)),
        lambda batch: (batch, 1),
        lambda w, x: take(w, _numbers(x, rows)),
        lambda left, right, x: jnp.take(left, _numbers(x, rows), axis=0) @ right,
    )


def _numbers(x: jax.Array, rows: int) -> jax.Array:
    """Row numbers that depend on the activation and hit the whole table."""
    spread = jnp.arange(x.shape[0]) * 7919
    return (spread + jnp.abs(x[:, 0] * 1000).astype(jnp.int32)) % rows


def matrix(m: int, n: int, rank: int) -> Any:
    """Low rank."""
    return low_rank(normal(m, rank), normal(rank, n), Layout((0,), (1,)), (m, n))


def train(rows: tuple[int, ...], cols: tuple[int, ...], rank: int) -> TensorTrain:
    """A train of one rank throughout."""
    bonds = (1, *(rank for _ in rows[1:]), 1)
    shapes = zip(bonds[:-1], rows, cols, bonds[1:], strict=True)
    return TensorTrain(tuple(normal(*shape) for shape in shapes))


def sparse(m: int, n: int, count: int) -> Sparse:
    """`count` entries a column, spread evenly over groups of 256 rows."""
    groups = m // 256
    index = jnp.arange(n * groups * (count // groups)).reshape(n, groups, -1) * 37 % 256
    return Sparse(normal(*index.shape), index.astype(jnp.float32), 256)


def weights(kind: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Formats of a kind of layer, at a keep where each is meant to be used."""
    if kind == "linear":
        yield "LowRank", lambda: matrix(M, N, 192)
        yield "Kronecker, 1 term", lambda: Kronecker(normal(1, 24, 96), normal(1, 32, 32))
        yield "Kronecker, 4 terms", lambda: Kronecker(normal(4, 24, 96), normal(4, 32, 32))
        yield "Kronecker, 16 terms", lambda: Kronecker(normal(16, 24, 48), normal(16, 32, 64))
        yield "TensorTrain", lambda: train((24, 32), (48, 64), 16)
        yield "BlockLowRank 4x4", lambda: BlockLowRank(normal(4, 192, 128), normal(4, 128, 768))
        yield (
            "BLAST 4x4",
            lambda: BLAST(normal(4, 192, 160), normal(4, 4, 160), normal(4, 160, 768)),
        )
        yield "Monarch", lambda: Monarch(normal(24, 32, 32, 2), normal(32, 24, 2, 96))
        yield (
            "HODLR, 2 levels",
            lambda: HODLR(
                normal(4, 192, 768),
                (normal(2, 384, 48), normal(4, 192, 24)),
                (normal(2, 48, 1536), normal(4, 24, 768)),
            ),
        )
        core = HSS(normal(2, 48, 48), siblings=True)
        core = HSS(normal(4, 48, 48), normal(2, 96, 48), core, normal(2, 48, 96), True)
        yield (
            "HSS, 2 levels",
            lambda: HSS(normal(4, 192, 768), normal(4, 192, 48), core, normal(4, 48, 768)),
        )
        yield "LowRank + Sparse", lambda: Sum((matrix(M, N, 96), sparse(M, N, 16)))
        yield "LowRank + Diagonal", lambda: Sum((matrix(M, N, 144), Diagonal(normal(1, 4, M))))
        yield (
            "Tucker, heads",
            lambda: Tucker(normal(192, 24, 64), (normal(M, 192), normal(48, 24), None), (M,), (N,)),
        )
    elif kind == "table":
        yield "LowRank", lambda: matrix(VOCAB, WIDTH, 96)
        yield "Kronecker, 8 terms", lambda: Kronecker(normal(8, 512, 16), normal(8, 60, 24))
        yield "TensorTrain", lambda: train((30, 32, 32), (6, 8, 8), 32)
        yield "BlockLowRank 8x1", lambda: BlockLowRank(normal(8, 3840, 96), normal(1, 768, WIDTH))
        yield (
            "Tucker",
            lambda: Tucker(
                normal(48, 48, 64),
                (normal(160, 48), normal(192, 48), normal(384, 64)),
                (VOCAB,),
                (WIDTH,),
            ),
        )
    else:
        shape, layout, c, r = (
            (3, 3, CHANNELS, CHANNELS),
            Layout((0, 1, 2), (3,)),
            CHANNELS,
            CHANNELS // 4,
        )
        yield "LowRank", lambda: low_rank(normal(9 * c, r), normal(r, c), layout, shape)
        yield (
            "Tucker-2",
            lambda: Tucker(
                normal(3, 3, r, r), (None, None, normal(c, r), normal(c, r)), (3, 3, c), (c,)
            ),
        )
        yield (
            "CP",
            lambda: CP(
                jnp.ones(c),
                (normal(3, c), normal(3, c), normal(c, c), normal(c, c)),
                (3, 3, c),
                (c,),
            ),
        )


LAYERS = {
    "linear": linear(M, N),
    "table": table(VOCAB, WIDTH),
    "convolution": convolution(16, CHANNELS, CHANNELS),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """One format, one batch; microseconds."""

    layer: str
    name: str
    keep: float
    batch: int
    dense: float
    factored: float
    formed: float
    limit: float | None

    @property
    def speedup(self) -> float:
        """Dense over factored."""
        return self.dense / self.factored


def measure(layer: Layer, name: str, weight: Any, batch: int, seconds: float) -> Result:
    """Medians of both forms in turn."""
    shape = layer.activation(batch)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    params = lr.ops.cost(weight).params / math.prod(layer.shape)
    times = int(np.clip(2e9 // (2 * math.prod(layer.shape) * math.prod(shape[:-1])), 1, 400))
    forms = {
        "dense": (layer.apply, lr.densify(weight)),
        "factored": (lr.lift(layer.apply), weight),
        "formed": (lr.lift(layer.apply, order=Order.FLOPS), weight),
    }
    flops, runs = {}, []
    for form, (f, w) in forms.items():
        flops[form] = cost(jax.jit(f).lower(w, x).compile())
        run = jax.jit(repeated(f, times)).lower(w, x).compile()
        runs.append(Contestant(form, lambda run=run, w=w: run(w, x), lambda _: 0.0))
    rows = compete(f"{layer.name}, {name}, batch {batch}", runs, seconds=seconds, least=5)
    time = {r.name: 1e6 * r.median / times for r in rows}
    if layer.name.startswith("linear"):  # XLA counts the body of a loop over rows once
        flops["factored"] = float(lr.ops.cost(weight, batch).flops)
    limit = None if layer.name.startswith("table") else flops["dense"] / flops["factored"]
    measured = (time["dense"], time["factored"], time["formed"])
    return Result(layer.name, name, round(params, 4), batch, *measured, limit)


def show(results: list[Result]) -> None:
    """The table, to stderr."""
    view = Table(title="time of one application, microseconds", title_justify="left")
    for column in (
        "layer",
        "format",
        "keep",
        "batch",
        "dense",
        "factored",
        "formed",
        "speedup",
        "limit",
    ):
        view.add_column(column, justify="left" if column in ("layer", "format") else "right")
    for r in results:
        limit = "" if r.limit is None else f"{r.limit:.2f}"
        times = (f"{t:.1f}" for t in (r.dense, r.factored, r.formed))
        numbers = (f"{r.keep:.3f}", str(r.batch), *times)
        view.add_row(r.layer, r.name, *numbers, f"{r.speedup:.2f}", limit)
    Console(stderr=True, width=140).print(view)


def main() -> None:
    """Run the cases and publish them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="", help="only this kind of layer")
    parser.add_argument("--format", default="", help="only formats whose name contains this")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each case")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = []
    for kind, layer in LAYERS.items():
        for name, make in weights(kind):
            if args.kind not in kind or args.format not in name:
                continue
            weight = make()
            for batch in BATCHES[:2] if kind == "convolution" else BATCHES:
                results.append(measure(layer, name, weight, batch, args.seconds))
    show(results)
    rows = [dataclasses.asdict(r) | {"speedup": r.speedup} for r in results]
    publish({"benchmark": "formats", "machine": machine(), "rows": rows}, args.out)


if __name__ == "__main__":
    main()
