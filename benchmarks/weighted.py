"""Element-weighted low rank: time to within 1 %, 0.3 % and 0.1 % of the best weighted error.

python benchmarks/weighted.py [--quick] [--seconds 4] [--out results.json]

Weights span about seven decades. The peers are alternating least squares by a NumPy loop over
rows, and by batched Cholesky in JAX; starts, by the same separable weights, are left out of all
times. Peak memory is what XLA assigns to the compiled solve, beside its arguments.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from harness import Contestant, compete, machine, publish, speedups, table

from lrjax.decompose.weighted import Inner, weighted_low_rank
from lrjax.formats import LowRank

TOLERANCES = (0.01, 0.003, 0.001)

MOST = 80
"""Sweeps after which a contestant counts as stuck; its excess is stated."""


def problem(m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight with a slow spectrum, and importance that is heavy-tailed, not separable."""
    rng = np.random.default_rng(0)
    size = min(m, n)
    basis = lambda d: np.linalg.qr(rng.normal(size=(d, size)))[0]
    w = (basis(m) * np.arange(1, size + 1) ** -0.5) @ basis(n).T * np.sqrt(m)
    rows, cols, each = rng.normal(size=(m, 1)), rng.normal(size=(1, n)), rng.normal(size=(m, n))
    f = np.exp(1.6 * (0.6 * rows + 0.4 * cols + 0.7 * each))
    return w.astype(np.float32), (f / f.mean()).astype(np.float32)


def numpy_sweep(w, f, a, b):
    """The textbook: a loop over rows, then over columns."""
    k = len(b)
    level = 1e-6 * np.eye(k, dtype=w.dtype)
    for i in range(len(w)):
        scaled = b * f[i]
        a[i] = np.linalg.solve(scaled @ b.T + level, scaled @ w[i])
    for j in range(w.shape[1]):
        scaled = a.T * f[:, j]
        b[:, j] = np.linalg.solve(scaled @ a + level, scaled @ w[:, j])
    return a, b


@functools.partial(jax.jit, static_argnums=4)
def cholesky_sweeps(w, f, a, b, count):
    """The same by vmap over rows, in chunks, with a batched Cholesky factorisation."""
    level = 1e-6 * jnp.eye(len(b))

    def rows(w, f, b):
        def one(w, f):
            scaled = b * f
            factor = jax.scipy.linalg.cho_factor(scaled @ b.T + level)
            return jax.scipy.linalg.cho_solve(factor, scaled @ w)

        return jax.lax.map(lambda x: one(*x), (w, f), batch_size=64)

    def sweep(_, ab):
        a = rows(w, f, ab[1])
        return a, rows(w.T, f.T, a.T).T

    return jax.lax.fori_loop(0, count, sweep, (a, b))


def least(loss: Callable[[int], float], goal: float) -> int:
    """The least number of sweeps that reaches the goal, by bisection: losses never rise."""
    low, high = 0, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(middle) <= goal else (middle, high)
    return high


class Case:
    """The problem, its start, its best known loss, and everybody's way to it."""

    def __init__(self, m: int, n: int, rank: int):
        self.name, self.rank = f"{m}x{n} r={rank}", rank
        self.w, self.f = problem(m, n)
        self.device = jnp.asarray(self.w), jnp.asarray(self.f)
        self.wide = self.w.astype(np.float64), self.f.astype(np.float64)
        start, _ = weighted_low_rank(*self.device, rank, sweeps=0)
        self.begin = LowRank(start.left, start.right)
        best, info = weighted_low_rank(*self.device, rank, sweeps=300, tol=0.0)
        self.optimum, self.gradient = self.loss((best.left, best.right)), float(info.gradient)
        # textbook iterations carry no momentum: one run says how long every goal takes
        pair, self.textbook = (start.left, start.right), []
        while len(self.textbook) < MOST and (
            not self.textbook or self.textbook[-1] > 1 + TOLERANCES[-1]
        ):
            pair = cholesky_sweeps(*self.device, *pair, 1)
            self.textbook.append(self.loss(pair) / self.optimum)

    def loss(self, p: tuple) -> float:
        """The weighted squared error, in float64."""
        w, f = self.wide
        return float(np.sum(f * (w - np.asarray(p[0], float) @ np.asarray(p[1], float)) ** 2))

    def ours(self, count: int, inner: Inner = Inner.CG) -> tuple:
        """A number of sweeps of lrjax."""
        limits = {"init": self.begin, "sweeps": count, "tol": 0.0, "inner": inner}
        p, _ = weighted_low_rank(*self.device, self.rank, **limits)
        return p.left, p.right

    def batched(self, count: int) -> tuple:
        """Of the batched Cholesky factorisation."""
        return cholesky_sweeps(*self.device, self.begin.left, self.begin.right, count)

    def looped(self, count: int) -> tuple:
        """Of the NumPy loop."""
        pair = np.array(self.begin.left), np.array(self.begin.right)
        for _ in range(count):
            pair = numpy_sweep(self.w, self.f, *pair)
        return pair

    def contestants(self, tolerance: float) -> list[Contestant]:
        """Everybody, with as many sweeps as he needs; the exact form as many as that by CG."""
        goal = self.optimum * (1 + tolerance)
        excess = lambda p: self.loss(p) / self.optimum - 1
        cg = least(lambda k: self.loss(self.ours(k)), goal)
        reached = [k + 1 for k, x in enumerate(self.textbook) if x <= 1 + tolerance]
        book = (reached or [MOST])[0]
        run = lambda f, *args: lambda: f(*args)
        return [
            Contestant(f"lrjax CG, {cg} sweeps", run(self.ours, cg), excess, True),
            Contestant(f"lrjax exact, {cg} sweeps", run(self.ours, cg, Inner.EXACT), excess, True),
            Contestant(f"jax batched Cholesky, {book} sweeps", run(self.batched, book), excess),
            Contestant(f"numpy loop, {book} sweeps", run(self.looped, book), excess),
        ]

    def memory(self, inner: Inner) -> float:
        """MiB that the compiled solve needs beside its arguments."""
        fit = lambda w, f: weighted_low_rank(w, f, self.rank, inner=inner)[0]
        compiled = jax.jit(fit).lower(*self.device).compile()
        return round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    m, n, rank = (192, 160, 32) if args.quick else (768, 768, 128)
    case, rows, leads = Case(m, n, rank), [], []
    for tolerance in TOLERANCES:
        own = compete(
            f"{case.name}, within {100 * tolerance:g} %",
            case.contestants(tolerance),
            seconds=args.seconds,
            least=1,
        )
        table(own, speedups(own))
        rows += own
        leads += [
            {"peer": p.name, "ours": o.name, "speedup": p.median / o.median}
            for p in own if not p.ours for o in own if o.ours
        ]  # fmt: skip
    result = {"machine": machine(), "rows": [r.to_json() for r in rows], "speedups": leads}
    memory = {inner.value: case.memory(inner) for inner in Inner}
    publish(result | {"peak_mib": memory, "best_gradient": case.gradient}, args.out)


if __name__ == "__main__":
    main()
