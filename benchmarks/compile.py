"""What every solver costs before it runs: seconds of tracing and of compiling, and modules.

python benchmarks/compile.py [--quick] [--case TEXT] [--limit 10] [--clock cpu] [--out FILE]

Each case starts from empty caches. The second call has other values, the third another key too:
both must compile nothing. Iterations are few, as they do not change what is compiled. `measure` is
what a plan asks of a weight before any solve. An exit code of 1 says that some case compiled for
`--limit` seconds or more, or again.
"""

import argparse
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import CLOCKS, machine, publish
from rich.console import Console
from rich.table import Table

from lrjax.decompose import (
    BLAST,
    CP,
    HODLR,
    HSS,
    NMF,
    SVD,
    Banded,
    BlockSVD,
    Kronecker,
    LowRankDiagonal,
    LowRankSparse,
    Monarch,
    SharedBasis,
    Spec,
    TensorRing,
    TensorTrain,
    TokenTrain,
    Tucker,
    WeightedLowRank,
    attention,
    solve,
)
from lrjax.decompose.cp.masked import weighted_cp
from lrjax.decompose.tensor_train import tt_als, tt_svd
from lrjax.decompose.weighted import Inner
from lrjax.linalg import Accuracy
from lrjax.metrics import Diagonal, Elements, Gram, Metric

EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
HEARD: list[tuple[str, float]] = []

Shape = tuple[int, ...]


def listen(event: str, seconds: float, **_: Any) -> None:
    """Keep what JAX says of its own compilations."""
    if event in EVENTS:
        HEARD.append((EVENTS[event], seconds))


@dataclasses.dataclass(frozen=True)
class Case:
    """One solver at one shape.

    Attributes:
        name: the solver and what is fixed of it.
        shape: of the weight.
        run: `run(w, metric, key)`.
        metric: makes a metric of that shape from a generator.
    """

    name: str
    shape: Shape
    run: Callable[[jax.Array, Any, jax.Array], Any]
    metric: Callable[[np.random.Generator, Shape], Any] = lambda rng, shape: None

    @property
    def label(self) -> str:
        """Shape and solver in one line."""
        return f"{'x'.join(map(str, self.shape))} {self.name}"


def gram(rng: np.random.Generator, size: int) -> jax.Array:
    """A full second moment, its eigenvalues spread."""
    x = rng.standard_normal((size, size), np.float32)
    return jnp.asarray(x @ x.T / size + np.diag(np.linspace(0.1, 2, size, dtype=np.float32)))


def inputs(rng: np.random.Generator, shape: Shape) -> Metric:
    """A metric of the inputs."""
    return Metric(Gram(gram(rng, shape[-2])), None)


def two_sided(rng: np.random.Generator, shape: Shape) -> Metric:
    """A metric of inputs and output gradients."""
    return Metric(Gram(gram(rng, shape[-2])), Gram(gram(rng, shape[-1])))


def diagonal(rng: np.random.Generator, shape: Shape) -> Metric:
    """Weights of the rows."""
    return Metric(Diagonal(jnp.asarray(rng.uniform(0.1, 2, shape[-2]), jnp.float32)), None)


def elements(rng: np.random.Generator, shape: Shape) -> Elements:
    """A weight for every entry, over several decades."""
    return Elements.of(jnp.asarray(rng.lognormal(0, 2, shape), jnp.float32))


MLP, ATTENTION, TABLE = (3072, 768), (768, 768), (30522, 768)
KERNEL, MODES = (9 * 512, 512), (9, 512, 512)
TENSOR = (240, 256 * 384)


def specs() -> Iterator[tuple[Shape, Spec, tuple[Any, ...]]]:
    """Every spec at the shapes that it is meant for, and the metrics that matter to it."""
    plain: tuple[Any, ...] = (None,)
    for accuracy in Accuracy:
        yield MLP, SVD(192, accuracy=accuracy), plain
    yield ATTENTION, SVD(192), (None, inputs, two_sided)
    yield MLP, SVD(192), (diagonal, inputs)
    yield TABLE, SVD(128), (None, diagonal)
    yield MLP, WeightedLowRank(16, inner=Inner.EXACT, sweeps=2), (elements,)
    yield ATTENTION, WeightedLowRank(128, sweeps=2), (elements,)
    yield MLP, WeightedLowRank(384, sweeps=2), (elements,)
    yield KERNEL, Tucker((None, 128, 128), modes=MODES, sweeps=2), (None, inputs)
    yield TENSOR, Tucker((32, 32, 32), modes=(240, 256, 384), sweeps=2), plain
    yield KERNEL, CP(64, modes=MODES, sweeps=4), (None, inputs)
    yield TENSOR, CP(16, modes=(240, 256, 384), sweeps=4), plain
    yield TABLE, TensorTrain(32, count=3, sweeps=2), (None, diagonal)
    yield TABLE, TensorTrain(32, count=4, sweeps=2), plain
    yield MLP, TensorTrain(32, count=3, sweeps=2), (None, inputs, two_sided)
    yield MLP, TensorRing(16, count=3, sweeps=2), (None, inputs, two_sided)
    yield (4096, 96), TokenTrain((4, 4), (6, 4, 4)), plain
    yield MLP, Kronecker(8, (64, 32), sweeps=0), plain
    yield MLP, Kronecker(8, (64, 32), sweeps=2), (inputs, two_sided)
    yield MLP, NMF(64, iterations=2), (None, elements)
    yield MLP, NMF(64, semi=False, iterations=2), plain
    yield MLP, BlockSVD(tuple(range(8, 40, 2)), (4, 4), sweeps=2), (None, inputs, two_sided)
    yield MLP, HODLR((32, 16), sweeps=2), (None, inputs, two_sided)
    yield MLP, HSS((32, 16), sweeps=2), (None, inputs, two_sided)
    yield MLP, BLAST(64, (4, 4), sweeps=2), (None, inputs, two_sided)
    yield MLP, Monarch(1, (32, 32), sweeps=2), (None, inputs, two_sided)
    yield (6, *ATTENTION), SharedBasis(192, sweeps=2), plain
    yield (6, *ATTENTION), SharedBasis((192, 192), sweeps=2), (None, inputs)
    yield MLP, LowRankSparse((96, 16), sweeps=2), (None, inputs)
    yield MLP, LowRankDiagonal(96, sweeps=2), (None, inputs)
    yield TABLE, Banded((128, 64, 32, 16)), (None, diagonal)


def cases() -> Iterator[Case]:
    """All of them: specs, what plans measure, and the solvers that no spec names."""
    for shape, spec, metrics in specs():
        for metric in metrics:
            given = () if metric is None else (metric,)
            suffix = "".join(f", {m.__name__}" for m in given)
            run = functools.partial(_solve, spec)
            yield Case(f"{Spec.__repr__(spec)}{suffix}", shape, run, *given)
    for shape, spec, metrics in specs():
        if type(spec) is not SVD or spec.accuracy is Accuracy.DEFAULT:
            measured = jax.jit(lambda w, metric, spec=spec: spec.measure(w, metric or Metric()))
            run = lambda w, metric, key, f=measured: f(w, metric)
            given = metrics[-1:] if metrics[-1] else ()
            suffix = "".join(f", {m.__name__}" for m in given)
            yield Case(f"measure {Spec.__repr__(spec)}{suffix}", shape, run, *given)
    yield Case("tt_als, two-site", MLP, _two_site)
    observed = lambda rng, shape: jnp.asarray(rng.random(shape) < 0.4, jnp.float32)
    run = lambda w, known, key: weighted_cp(w, known, 8, key=key, sweeps=4)
    yield Case("weighted_cp, 40 % observed", (60, 50, 40), run, observed)
    yield from heads()


def heads() -> Iterator[Case]:
    """Attention's solvers: 12 heads of 64 on 768 inputs, jitted as a whole."""
    shape = (24, 768, 64)
    pair = lambda w: (w[:12], w[12:])
    flip = lambda w: jnp.swapaxes(w, -1, -2)

    def case(name: str, f: Callable[..., Any]) -> Case:
        side = lambda rng, shape: gram(rng, 768)
        run = jax.jit(lambda w, g: f(*pair(w), g))
        return Case(name, shape, lambda w, g, key: run(w, g), side)

    a = attention
    yield case("joint_basis", lambda q, k, g: a.joint_basis([q, k], 192, rows=g))
    yield case("joint_spectrum", lambda q, k, g: a.joint_spectrum([q, k], rows=g))
    yield case("score_product", lambda q, k, g: a.score_product(q[:, None], k, 48, query_gram=g))
    yield case("value_product", lambda q, k, g: a.value_product(q, flip(k)[:, None], 48, gram=g))
    yield case("merge_values", lambda q, k, g: a.merge_values(q, flip(k), 4, gram=g))
    yield case("merge_keys", lambda q, k, g: a.merge_keys(q, k, 4, query_gram=g))
    yield case("merge_rotated_keys", lambda q, k, g: a.merge_rotated_keys(q, k, 4, key_gram=g))


def _solve(spec: Spec, w: jax.Array, metric: Any, key: jax.Array) -> Any:
    return solve(spec, w, metric=metric, key=key)


def _two_site(w: jax.Array, metric: Any, key: jax.Array) -> Any:
    start, _ = tt_svd(w, (12, 16, 16), (8, 8, 12), (16, 16), key=key)
    return tt_als(w, start, sweeps=2, ranks=(24, 24))


def measure(case: Case, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Its row: the first call from empty caches, then two with other values.

    `extra_s` is what the first call took more than the second. JAX's own figures are the wall's.
    """
    jax.clear_caches()
    row: dict[str, Any] = {"case": case.label}
    for call, (seed, key) in {"first": (0, 0), "second": (1, 0), "third": (2, 1)}.items():
        rng = np.random.default_rng(seed)
        w = jnp.asarray(rng.standard_normal(case.shape, np.float32) / case.shape[-1] ** 0.5)
        if "semi=False" in case.name:  # the one format of weights without signs
            w = jnp.asarray(np.abs(w))
        operands = w, case.metric(rng, case.shape), jnp.asarray(np.uint32([0, key]))
        operands = (*operands[:2], jax.random.wrap_key_data(operands[2]))
        jax.block_until_ready(operands)
        HEARD.clear()
        begin = clock()
        jax.block_until_ready(case.run(*operands))
        row[f"{call}_s"] = round(clock() - begin, 3)
        row[f"{call}_modules"] = sum(name == "compile" for name, _ in HEARD)
        if call == "first":
            for name in EVENTS.values():
                row[f"{name}_s"] = round(math.fsum(s for n, s in HEARD if n == name), 3)
    row["extra_s"] = round(row["first_s"] - row["second_s"], 3)
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """The table, to stderr."""
    columns = ["case", *(k for k in rows[0] if k != "case")]
    view = Table(title="compilation", title_justify="left")
    for name in columns:
        view.add_column(name.replace("_", " "), justify="left" if name == "case" else "right")
    for row in rows:
        view.add_row(*(str(row[name]) for name in columns))
    Console(stderr=True, width=160).print(view)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every fifth case")
    parser.add_argument("--case", default="", help="only cases whose label contains this")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds that are too many")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: own time only")
    parser.add_argument("--out", type=Path, help="JSON file; default stdout")
    args = parser.parse_args()
    jax.monitoring.register_event_duration_secs_listener(listen)
    chosen = [c for c in cases() if args.case in c.label][:: 5 if args.quick else 1]
    rows = []
    for case in chosen:
        rows.append(measure(case, CLOCKS[args.clock]))
        print(rows[-1], file=sys.stderr, flush=True)
    show(rows)
    result = {"benchmark": "compile", "clock": args.clock, "machine": machine(), "rows": rows}
    publish(result, args.out)
    again = [r for r in rows if r["second_modules"] or r["third_modules"]]
    slow = [r for r in rows if r["extra_s"] >= args.limit]
    sys.exit(1 if again or slow else 0)


if __name__ == "__main__":
    main()
