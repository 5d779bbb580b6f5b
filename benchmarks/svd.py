"""Truncated and data-aware SVD against the peers: numpy, scipy, scikit-learn, torch, jax.

python benchmarks/svd.py [--quick] [--case TEXT] [--decay 0.5] [--seconds 8] [--clock cpu]
    [--out results.json]

Excess is the error over that of the optimal truncation, minus one, in float64. On a GPU it runs
unchanged; torch and JAX then both compute there.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Contestant, compete, machine, publish, speedups, table
from shapes import TRUNCATED, WEIGHTED, Case, gram, matrices

import lrjax.linalg as ll

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ACCURACIES = (ll.Accuracy.DEFAULT, ll.Accuracy.ACCURATE)


def truncated(case: Case, decay: float) -> list[Contestant]:
    """Everybody's truncated SVD of the same matrices."""
    a, s = matrices(case, decay)
    r, opt = case.rank, float(np.sqrt(np.sum(s[case.rank :] ** 2)))

    def excess(result: Any) -> float:
        u, s, vt = (np.asarray(x, np.float64) for x in result)
        lost = np.linalg.norm(a - (u * s[..., None, :]) @ vt, axis=(-2, -1))
        return float(np.max(lost)) / opt - 1

    on_device = jnp.asarray(a)
    found = []

    def add(name: str, run: Callable[[], Any], ours: bool = False):
        found.append(Contestant(name, run, excess, ours))

    for accuracy in ACCURACIES:

        def factors(x, accuracy=accuracy):
            svd, _ = ll.truncated_svd(x, r, accuracy=accuracy)
            return svd.u, svd.s, svd.vt

        def checked(x, accuracy=accuracy):
            svd, info = ll.truncated_svd(x, r, accuracy=accuracy)
            return (svd.u, svd.s, svd.vt), info.residual

        run, full = jax.jit(factors), jax.jit(checked)
        add(f"lrjax {accuracy.value}", lambda run=run: run(on_device), True)
        note = f"lrjax {accuracy.value}, with residual"
        checked_excess = lambda result: excess(result[0])
        found.append(Contestant(note, lambda full=full: full(on_device), checked_excess, True))

    # A full SVD of this size takes a minute; that it loses needs no minute each round.
    if case.shape[0] * case.shape[1] * case.stack < 2**23:
        full_svd = jax.jit(lambda x: cut(*jnp.linalg.svd(x, full_matrices=False)))
        cut = lambda u, s, vt: (u[..., :r], s[..., :r], vt[..., :r, :])
        add("jnp.linalg.svd", lambda: full_svd(on_device))
        add("numpy svd", lambda: cut(*np.linalg.svd(a, full_matrices=False)))
        scipy_peers(add, a, r, cut)
    sklearn_peers(add, a, r)
    torch_peers(add, a, r)
    return found


def scipy_peers(add: Callable, a: np.ndarray, r: int, cut: Callable) -> None:
    import scipy.linalg as sl

    each = _each(a)
    full = lambda x: cut(*sl.svd(x, full_matrices=False, check_finite=False))
    add("scipy svd", lambda: each(full))

    def gram_eigh(x):
        k = x.shape[1]
        values, v = sl.eigh(x.T @ x, subset_by_index=[k - r, k - 1], check_finite=False)
        s = np.sqrt(values[::-1])
        v = v[:, ::-1]
        return (x @ v) / s, s, v.T

    add("scipy eigh of the Gram, subset", lambda: each(gram_eigh))


def sklearn_peers(add: Callable, a: np.ndarray, r: int) -> None:
    from sklearn.utils.extmath import randomized_svd

    each = _each(a)
    for iterations in (2, "auto"):
        one = lambda x, q=iterations: randomized_svd(x, r, n_iter=q, random_state=0)
        add(f"sklearn randomized_svd n_iter={iterations}", lambda one=one: each(one))


def torch_peers(add: Callable, a: np.ndarray, r: int) -> None:
    try:
        import torch
    except ImportError:
        return
    x = torch.from_numpy(a).to("cuda" if torch.cuda.is_available() else "cpu")

    def lowrank():
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(x, q=r + 10, niter=2)
        if x.is_cuda:
            torch.cuda.synchronize()
        return _host(u[..., :r], s[..., :r], v[..., :r].mT)

    add("torch svd_lowrank niter=2", lowrank)
    if a.size < 2**23:

        def full():
            u, s, vt = torch.linalg.svd(x, full_matrices=False)
            return _host(u[..., :r], s[..., :r], vt[..., :r, :])

        add("torch svd", full)


def weighted(case: Case, decay: float) -> list[Contestant]:
    """Everybody's data-aware SVD: least |S^.5 (W - L R)| at a rank, S the inputs' second moment."""
    import scipy.linalg as sl

    w, _ = matrices(case, decay)
    s, r = gram(case.shape[0]), case.rank
    values, q = np.linalg.eigh(s.astype(np.float64))
    root = (q * np.sqrt(np.maximum(values, 0))) @ q.T
    tail = np.linalg.svd(root @ w, compute_uv=False)[r:]
    opt = float(np.sqrt(np.sum(tail**2)))

    def excess(result: Any) -> float:
        left, right = (np.asarray(x, np.float64) for x in result)
        return float(np.linalg.norm(root @ (w - left @ right))) / opt - 1

    found = []
    on_device, metric = jnp.asarray(w), jnp.asarray(s)
    for accuracy in ACCURACIES:

        def factors(w, s, accuracy=accuracy):
            return ll.weighted_svd(w, r, rows=s, accuracy=accuracy)[:2]

        run = jax.jit(factors)
        ours = lambda run=run: run(on_device, metric)
        found.append(Contestant(f"lrjax {accuracy.value}", ours, excess, True))

    def cholesky(xp, svd, chol, solve):
        """SVD-LLM (arXiv:2403.07378) in the row layout: S = L L', SVD of L'W, L^-T back."""

        def run(w, s):
            lower = chol(s)
            u, sigma, vt = svd(lower.T @ w)
            half = xp.sqrt(sigma[:r])
            return solve(lower, u[:, :r] * half), half[:, None] * vt[:r]

        return run

    forms = {
        "numpy Cholesky + svd": cholesky(
            np,
            lambda x: np.linalg.svd(x, full_matrices=False),
            np.linalg.cholesky,
            lambda lower, x: np.linalg.solve(lower.T, x),
        ),
        "scipy Cholesky + svd": cholesky(
            np,
            lambda x: sl.svd(x, full_matrices=False, check_finite=False),
            lambda s: sl.cholesky(s, lower=True, check_finite=False),
            lambda lower, x: sl.solve_triangular(lower, x, trans=1, lower=True),
        ),
    }
    for name, form in forms.items():
        found.append(Contestant(name, lambda form=form: form(w, s), excess))
    in_jax = jax.jit(
        cholesky(
            jnp,
            lambda x: jnp.linalg.svd(x, full_matrices=False),
            jnp.linalg.cholesky,
            lambda lower, x: jax.scipy.linalg.solve_triangular(lower, x, trans=1, lower=True),
        )
    )
    found.append(Contestant("jax Cholesky + svd", lambda: in_jax(on_device, metric), excess))
    try:
        import torch
    except ImportError:
        return found
    place = "cuda" if torch.cuda.is_available() else "cpu"
    tw, ts = (torch.from_numpy(x).to(place) for x in (w, s))
    in_torch = cholesky(
        torch,
        lambda x: torch.linalg.svd(x, full_matrices=False),
        torch.linalg.cholesky,
        lambda lower, x: torch.linalg.solve_triangular(lower.mT, x, upper=True),
    )
    found.append(Contestant("torch Cholesky + svd", lambda: _host(*in_torch(tw, ts)), excess))
    return found


def _each(a: np.ndarray) -> Callable:
    """Apply a form for one matrix to all of a stack."""

    def apply(form):
        if a.ndim == 2:
            return form(a)
        return tuple(np.stack(x) for x in zip(*map(form, a), strict=True))

    return apply


def _host(*tensors) -> tuple[np.ndarray, ...]:
    return tuple(t.cpu().numpy() for t in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small cases, a second each")
    parser.add_argument("--case", default="", help="only cases whose label contains this")
    parser.add_argument("--decay", type=float, default=0.5, help="singular values j^-decay")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each case")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: own time only")
    parser.add_argument("--out", type=Path, help="JSON file; default stdout")
    args = parser.parse_args()
    rows, leads = [], []
    for title, cases, contest in (
        ("truncated SVD", TRUNCATED, truncated),
        ("data-aware SVD", WEIGHTED, weighted),
    ):
        for case in cases:
            label = f"{title}, {case.label}"
            if args.case not in label or (args.quick and not case.quick):
                continue
            seconds = 1.0 if args.quick else args.seconds
            clock = CLOCKS[args.clock]
            found = compete(label, contest(case, args.decay), seconds=seconds, clock=clock)
            ahead = speedups(found)
            table(found, ahead)
            rows += found
            leads += ahead
    result = {"benchmark": "svd", "decay": args.decay, "clock": args.clock}
    result |= {"machine": machine()}
    publish({**result, "rows": [r.to_json() for r in rows], "speedups": leads}, args.out)


if __name__ == "__main__":
    main()
