"""Block formats: fits against a loop over blocks in NumPy, layers against dense.

python benchmarks/block.py [--quick] [--seconds 6] [--out results.json]

Fits: excess is the error over that of the exact SVD of every block, minus one. Layers: all formats
hold a quarter of the dense parameters; excess is the largest error over the largest output.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Contestant, compete, machine, publish, speedups, table

from lrjax.decompose import BLAST, HODLR, HSS, SVD, BlockSVD, Monarch, Spec, solve
from lrjax.formats.layout import Layout
from lrjax.metrics import Metric

M, N = 1536, 768
KEEP = 0.25


def weight() -> np.ndarray:
    """Smooth away from a diagonal band, with noise."""
    i, j = np.arange(M)[:, None] / M, np.arange(N)[None] / N
    noise = np.random.default_rng(0).normal(size=(M, N)) / 300
    return np.float32(1 / (1 + 300 * np.abs(i - j)) + noise)


def planned(spec: Spec, w: jax.Array) -> Spec:
    """The spec with the least predicted loss within `KEEP`."""
    measured = np.asarray(jax.jit(spec.measure)(w, Metric()))
    options = spec.options(w.shape, w.dtype, Layout((0,), (1,)), measured)
    fits = np.flatnonzero(options.params <= KEEP * w.size)
    return spec.with_rank(options.ranks[fits[np.argmin(options.error[fits])]])


def loop(w: np.ndarray, grid: tuple[int, int], ranks: np.ndarray, stride: bool) -> list[tuple]:
    """One SVD after the other: (rows, cols, left, right) of every block."""
    (p, q), found = grid, []
    m, n = M // p, N // q
    for i in range(p):
        for j in range(q):
            cols = slice(j, None, q) if stride else slice(j * n, j * n + n)
            rows, r = slice(i * m, i * m + m), ranks[i, j]
            u, s, vt = np.linalg.svd(w[rows, cols], full_matrices=False)
            found.append((rows, cols, u[:, :r] * s[:r], vt[:r]))
    return found


def rebuilt(parts: list[tuple]) -> np.ndarray:
    w = np.zeros((M, N))
    for rows, cols, left, right in parts:
        w[rows, cols] += left @ right
    return w


def fits(w: np.ndarray, spec: Any) -> list[Contestant]:
    """Our solver and the loop, for a grid."""
    on_device, stride = jnp.asarray(w), isinstance(spec, Monarch)
    ranks = np.broadcast_to(spec.rank if stride else np.reshape(spec.ranks, spec.grid), spec.grid)
    exact = np.linalg.norm(w - rebuilt(loop(w, spec.grid, ranks, stride)))
    error = lambda v: float(np.linalg.norm(w - v) / exact - 1)
    run = jax.jit(lambda w: solve(spec, w)[0])
    return [
        Contestant("lrjax", lambda: run(on_device), lambda f: error(f.densify()), True),
        Contestant(
            "numpy svd, a loop over blocks",
            lambda: loop(w, spec.grid, ranks, stride),
            lambda parts: error(rebuilt(parts)),
        ),
    ]


def layers(w: np.ndarray, batch: int) -> list[Contestant]:
    """Products x W in every format, dense, and as a loop over the blocks of one of them."""
    x = np.float32(np.random.default_rng(1).normal(size=(batch, M)))
    on_device = jnp.asarray(w)
    apply = jax.jit(lambda x, f: x @ f)

    def contestant(name: str, f: Any, run: Callable[[], Any] | None = None) -> Contestant:
        dense = x @ np.asarray(f if isinstance(f, jax.Array) else f.densify())
        error = lambda y: float(np.abs(np.asarray(y) - dense).max() / np.abs(dense).max())
        ours = run is None and not isinstance(f, jax.Array)
        given = jnp.asarray(x)
        return Contestant(name, run or (lambda: apply(given, f)), error, ours)

    found = [contestant("dense", on_device)]
    for spec in (SVD(), BlockSVD(grid=(4, 4)), Monarch(), BLAST(), HODLR(), HSS()):
        fixed = planned(spec, on_device)
        f, info = solve(fixed, on_device)
        lost = float(info.residual) / np.linalg.norm(w)
        found.append(contestant(f"{type(f).__name__}, error {lost:.3f}", f))
        if isinstance(fixed, BlockSVD):
            parts = loop(w, (4, 4), np.reshape(fixed.ranks, (4, 4)), False)

            def blockwise(parts=parts):
                y = np.zeros((batch, N), np.float32)
                for rows, cols, left, right in parts:
                    y[:, cols] += (x[:, rows] @ left) @ right
                return y

            found.append(contestant("BlockLowRank, numpy loop", f, blockwise))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    w = weight()
    cases: list[tuple[str, Callable[[], list[Contestant]]]] = [
        (f"fit {M}x{N}, 4x4 blocks", lambda: fits(w, planned(BlockSVD(grid=(4, 4)), jnp.array(w)))),
        (f"fit {M}x{N}, Monarch 32x32", lambda: fits(w, Monarch(1, (32, 32)))),
        *((f"layer {M}x{N}, batch {b}", lambda b=b: layers(w, b)) for b in (1, 32, 512)),
    ]
    rows, leads = [], []
    for name, make in cases[1:3] if args.quick else cases:
        own = compete(name, make(), seconds=args.seconds)
        lead = speedups(own)
        table(own, lead)
        rows += own
        leads += lead
    publish(
        {"machine": machine(), "rows": [r.to_json() for r in rows], "speedups": leads}, args.out
    )


if __name__ == "__main__":
    main()
