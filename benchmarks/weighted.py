"""Element-weighted low rank: time to within 1 % and 0.3 % of the best weighted error.

python benchmarks/weighted.py [--quick] [--seconds 8] [--out results.json]

Weights span about seven decades. The peers are alternating least squares by a NumPy loop over
rows, and by batched Cholesky in JAX; starts, by the same separable weights, are left out of all
times. Peak memory of the exact method is stated as (chunk + max(m, n)) rank^2 numbers.
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
from lrjax.decompose.weighted.fit import CHUNK
from lrjax.formats import LowRank

TOLERANCES = (0.01, 0.003)


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


def least(
    run: Callable[[int], tuple], loss: Callable[[tuple], float], goal: float, most: int
) -> int:
    """The least number of sweeps that reaches the goal."""
    return next((n for n in range(1, most + 1) if loss(run(n)) <= goal), most)


def contestants(m: int, n: int, rank: int, tolerance: float) -> list[Contestant]:
    """Everybody, with as many sweeps as he needs."""
    w, f = problem(m, n)
    wide, importance = w.astype(np.float64), f.astype(np.float64)
    device = jnp.asarray(w), jnp.asarray(f)
    loss = lambda p: float(np.sum(importance * (wide - np.asarray(p[0]) @ np.asarray(p[1])) ** 2))
    start, _ = weighted_low_rank(*device, rank, sweeps=0)
    best, _ = weighted_low_rank(*device, rank, sweeps=300, tol=0.0)
    optimum = loss((best.left, best.right))
    goal = optimum * (1 + tolerance)
    excess = lambda p: loss(p) / optimum - 1
    begin = LowRank(start.left, start.right)

    def ours(count: int, inner: Inner = Inner.CG):
        p, _ = weighted_low_rank(*device, rank, init=begin, sweeps=count, tol=0.0, inner=inner)
        return p.left, p.right

    def looped(count: int):
        pair = np.array(begin.left), np.array(begin.right)
        for _ in range(count):
            pair = numpy_sweep(w, f, *pair)
        return pair

    batched = lambda count: cholesky_sweeps(*device, begin.left, begin.right, count)
    counts = [least(run, loss, goal, 80) for run in (ours, lambda k: ours(k, Inner.EXACT), batched)]
    textbook = counts[2]  # the same iteration in another form
    return [
        Contestant(f"lrjax CG, {counts[0]} sweeps", lambda: ours(counts[0]), excess, True),
        Contestant(
            f"lrjax exact, {counts[1]} sweeps", lambda: ours(counts[1], Inner.EXACT), excess, True
        ),
        Contestant(f"jax batched Cholesky, {textbook} sweeps", lambda: batched(textbook), excess),
        Contestant(f"numpy loop, {textbook} sweeps", lambda: looped(textbook), excess),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    m, n, rank = (192, 160, 32) if args.quick else (768, 768, 128)
    rows, leads = [], []
    for tolerance in TOLERANCES:
        name = f"{m}x{n} r={rank}, within {100 * tolerance:g} %"
        own = compete(name, contestants(m, n, rank, tolerance), seconds=args.seconds, least=1)
        lead = [
            {"peer": p.name, "ours": o.name, "speedup": p.median / o.median}
            for p in own if not p.ours for o in own if o.ours
        ]  # fmt: skip
        table(own, speedups(own))
        rows += own
        leads += lead
    memory = (CHUNK + max(m, n)) * rank**2 * 4 / 2**20
    result = {"machine": machine(), "rows": [r.to_json() for r in rows], "speedups": leads}
    publish(result | {"exact_peak_mib": round(memory, 1)}, args.out)


if __name__ == "__main__":
    main()
