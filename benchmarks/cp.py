"""Sweeps of CP-ALS against tensorly (numpy, torch), and planted problems to a true residual.

python benchmarks/cp.py [--quick] [--case TEXT] [--clock cpu] [--out results.json]

A sweep updates every factor once, from the same start. `excess` is the residual after five
sweeps over the least of all contestants, minus one: all do the same arithmetic.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from harness import Contestant, machine, options, publish, race

from lrjax.decompose.cp import cp
from lrjax.decompose.cp.als import update
from lrjax.linalg.khatri_rao import sweep

SWEEPS = 5
CASES = (
    ((64, 64, 64), 16),
    ((64, 64, 64), 64),
    ((256, 256, 9), 16),
    ((256, 256, 9), 64),
    ((512, 512, 9), 64),
    ((100, 100, 100), 16),
    ((100, 100, 100), 64),
    ((40, 40, 40, 40), 32),
)
QUICK = 4


def contestants(shape: tuple[int, ...], rank: int) -> list[Contestant]:
    """The same sweeps from the same start, by everybody."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=shape).astype(np.float32)
    start = [rng.normal(size=(d, rank)).astype(np.float32) for d in shape]
    names = "abcd"[: len(shape)]
    spec = ",".join(f"{n}r" for n in names) + "->" + names

    def residual(factors) -> float:
        wide = [np.asarray(f, np.float64) for f in factors]
        return float(np.linalg.norm(t - np.einsum(spec, *wide, optimize=True)))

    @jax.jit
    def ours(t, factors):
        again = lambda _, f: sweep(t, f, update)
        return jax.lax.fori_loop(0, SWEEPS, again, factors)

    held = tuple(jnp.asarray(f.T) for f in start)
    on_device = jnp.asarray(t)
    base = residual([f.T for f in ours(on_device, held)])
    found = [
        Contestant("lrjax", lambda: ours(on_device, held), lambda r: _over(residual, r, base), True)
    ]
    found += tensorly(t, start, rank, lambda factors: residual(factors) / base - 1)
    return found


def _over(residual, factors, base: float) -> float:
    return residual([np.asarray(f).T for f in factors]) / base - 1


def tensorly(t, start, rank, excess) -> list[Contestant]:
    """The parafac of tensorly, stopping tests off, on NumPy and torch."""
    import tensorly as tl
    from tensorly.decomposition import parafac

    def run(backend, tensor):
        with tl.backend_context(backend):
            copy = [tl.tensor(f.copy()) for f in start]
            init = tl.cp_tensor.CPTensor((tl.ones(rank, **tl.context(tensor)), copy))
            weights, factors = parafac(tensor, rank, n_iter_max=SWEEPS, init=init, tol=0)
            first = np.asarray(factors[0]) * np.asarray(weights)
            return [first, *map(np.asarray, factors[1:])]

    found = [Contestant("tensorly numpy", lambda: run("numpy", t), excess)]
    try:
        import torch
    except ImportError:
        return found
    tensor = torch.from_numpy(t)
    return [*found, Contestant("tensorly torch", lambda: run("pytorch", tensor), excess)]


def planted(seeds: int = 10) -> list[dict]:
    """Problems of 30^3 and R = 10 solved to a relative residual of 1e-4, of `seeds` each."""
    import tensorly as tl
    from tensorly.decomposition import parafac

    results = []
    for congruence in (0.0, 0.5, 0.9):
        solved = {"lrjax": 0, "tensorly numpy": 0}
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            factors = [rng.normal(size=(30, 10)) for _ in range(3)]
            if congruence:
                inner = np.full((10, 10), congruence) + (1 - congruence) * np.eye(10)
                factors = [np.linalg.qr(f)[0] @ np.linalg.cholesky(inner).T for f in factors]
            t = np.einsum("ar,br,cr->abc", *factors).astype(np.float32)
            norm = np.linalg.norm(t)
            ours, _ = cp(jnp.asarray(t), 10)
            back = np.einsum("r,ar,br,cr->abc", ours.scale, *ours.factors)
            solved["lrjax"] += bool(np.linalg.norm(t - back) < 1e-4 * norm)
            found = parafac(t, 10, n_iter_max=500, init="random", tol=0, random_state=seed)
            back = tl.cp_to_tensor(found)
            solved["tensorly numpy"] += bool(np.linalg.norm(t - back) < 1e-4 * norm)
        results += [
            {"congruence": congruence, "name": name, "solved": count, "of": seeds}
            for name, count in solved.items()
        ]
    return results


def main() -> None:
    args = options(__doc__).parse_args()
    cases = {
        "x".join(map(str, shape)) + f" R={rank}, {SWEEPS} sweeps": functools.partial(
            contestants, shape, rank
        )
        for shape, rank in (CASES[:QUICK] if args.quick else CASES)
    }
    result = {"benchmark": "cp", "machine": machine()} | race(cases, args)
    if not args.case:
        result["planted"] = planted(2 if args.quick else 10)
    publish(result, args.out)


if __name__ == "__main__":
    main()
