"""Tucker decomposition against tensorly and pyttb, to equal error.

python benchmarks/tucker.py [--quick] [--case TEXT] [--clock cpu] [--out results.json]

Excess is the error over that of the best run known (ours, 60 sweeps), minus one. Peers that are not
installed are named and left out. tensorly's JAX backend is not run: importing it switches the whole
process to float64.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from harness import Contestant, machine, options, publish, race

from lrjax.decompose.tucker import tucker

CASES = {
    "kernel 3x3x512x512, channels to 128": ((3, 3, 512, 512), (None, None, 128, 128)),
    "tensor 256x256x256, rank 32": ((256, 256, 256), (32, 32, 32)),
}
QUICK = {"kernel 3x3x64x96, channels to 24": ((3, 3, 64, 96), (None, None, 24, 24))}


def decaying(shape: tuple[int, ...], decay: float) -> np.ndarray:
    """A tensor whose long modes have singular values of about j^-decay, in random bases."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    for k, n in enumerate(shape):
        if n > 8:
            q = np.linalg.qr(rng.standard_normal((n, n)))[0] * np.arange(1, n + 1.0) ** -decay
            x = np.moveaxis(np.tensordot(x, q.astype(np.float32), (k, 1)), -1, k)
    return np.ascontiguousarray(x / x.std())


def contestants(shape: tuple[int, ...], ranks: tuple, decay: float) -> list[Contestant]:
    """Everybody's decomposition of the same tensor."""
    x = decaying(shape, decay)
    on_device = jnp.asarray(x)
    modes = [k for k, r in enumerate(ranks) if r is not None]

    def error(core: Any, factors: Any) -> float:
        y = np.asarray(core, np.float64)
        for k, f in factors:
            y = np.moveaxis(np.tensordot(y, np.asarray(f, np.float64), (k, 1)), -1, k)
        return float(np.linalg.norm(y - x))

    parts = lambda w: (w.core, [(k, w.factors[k]) for k in modes])
    best = error(*parts(tucker(on_device, ranks, sweeps=60, tol=1e-7)[0]))
    found = []
    for sweeps in (0, 1, 2, 3):
        name = f"lrjax {sweeps} sweeps" if sweeps else "lrjax ST-HOSVD"
        run = lambda sweeps=sweeps: tucker(on_device, ranks, sweeps=sweeps, tol=0.0)[0]
        found.append(Contestant(name, run, lambda w: error(*parts(w)) / best - 1, True))
    for name, run in (*tensorly_peers(x, ranks, modes), *pyttb_peers(x, ranks, modes)):
        found.append(Contestant(name, run, lambda result: error(*result) / best - 1))
    return found


def tensorly_peers(x: np.ndarray, ranks: tuple, modes: list[int]) -> list[tuple[str, Callable]]:
    try:
        from tensorly.decomposition import partial_tucker
    except ImportError:
        print("tensorly is not installed: left out", file=sys.stderr)
        return []

    def run(svd):
        (core, factors), _ = partial_tucker(
            x, [ranks[k] for k in modes], modes=modes, n_iter_max=1, svd=svd, random_state=0
        )
        return core, list(zip(modes, factors, strict=True))

    return [
        ("tensorly 1 sweep", lambda: run("truncated_svd")),
        ("tensorly 1 sweep, randomised start", lambda: run("randomized_svd")),
    ]


def pyttb_peers(x: np.ndarray, ranks: tuple, modes: list[int]) -> list[tuple[str, Callable]]:
    try:
        import pyttb
    except ImportError:
        print("pyttb is not installed: left out", file=sys.stderr)
        return []
    if len(modes) != x.ndim:
        return []  # it has no partial form
    tensor = pyttb.tensor(x.astype(np.float64))

    def result(w):
        return w.core.data, list(enumerate(w.factor_matrices))

    def st_hosvd():
        return result(pyttb.hosvd(tensor, tol=0.0, ranks=np.array(ranks), verbosity=0))

    def als():
        start = [np.random.default_rng(k).standard_normal((n, r)) for k, (n, r) in
                 enumerate(zip(x.shape, ranks, strict=True))]  # fmt: skip
        return result(pyttb.tucker_als(tensor, np.array(ranks), maxiters=1, init=start,
                                       printitn=0)[0])  # fmt: skip

    return [("pyttb ST-HOSVD float64", st_hosvd), ("pyttb 1 sweep float64", als)]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--decay", type=float, default=0.5, help="singular values j^-decay")
    args = parser.parse_args()
    cases = {
        label: functools.partial(contestants, shape, ranks, args.decay)
        for label, (shape, ranks) in (QUICK if args.quick else CASES).items()
    }
    result = {"benchmark": "tucker", "decay": args.decay, "machine": machine()}
    publish(result | race(cases, args), args.out)


if __name__ == "__main__":
    main()
