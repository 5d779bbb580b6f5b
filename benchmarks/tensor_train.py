"""TT-SVD against tensorly, tntorch and quimb, to equal error; rings; and the use of a TT embedding.

python benchmarks/tensor_train.py [--quick] [--uses | --rings] [--case TEXT] [--clock cpu]
    [--out results.json]

Excess is the error over that of the TT-SVD in float64, minus one; of rings, over that of
the best of 32 starts. Peers that are not installed are named and left out.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Contestant, machine, options, publish, race

from lrjax import ops
from lrjax.decompose import TensorRing, solve
from lrjax.decompose.tensor_ring import tr_svd
from lrjax.decompose.tensor_train import tt_svd

CASES = {
    "tensor 240x256x384, rank 16": ((240, 1, 1), (1, 256, 384), (16, 16)),
    "embedding 30522x768, 3 cores, rank 64": ((30, 30, 34), (8, 8, 12), (64, 64)),
    "embedding 30522x768, 4 cores, rank 48": ((13, 13, 13, 14), (4, 4, 6, 8), (48, 48, 48)),
}
RINGS = {
    "ring 60x64x96, ranks 4": ((60, 1, 1), (1, 64, 96), (4, 4, 4)),
    "ring 240x256x384, ranks 8": ((240, 1, 1), (1, 256, 384), (8, 8, 8)),
}
QUICK = {"embedding 1000x64, 3 cores, rank 16": ((10, 10, 10), (4, 4, 4), (16, 16))}


def weight(rows: tuple[int, ...], cols: tuple[int, ...]) -> np.ndarray:
    """A matrix of the size that the digits hold, with decaying spectra in both directions."""
    m, n = math.prod(rows), math.prod(cols)
    rng = np.random.default_rng(0)
    if all(1 in pair for pair in zip(rows, cols, strict=True)):
        shape = [max(pair) for pair in zip(rows, cols, strict=True)]
        x = rng.standard_normal(shape).astype(np.float32)
        for k, size in enumerate(shape):
            q = np.linalg.qr(rng.standard_normal((size, size)))[0]
            q *= np.arange(1, size + 1.0) ** -0.7
            x = np.moveaxis(np.tensordot(x, q.astype(np.float32), (k, 1)), -1, k)
        return np.ascontiguousarray(x).reshape(m, n)
    w = rng.standard_normal((m, n)) * np.arange(1, n + 1) ** -0.5
    return (w @ np.linalg.qr(rng.standard_normal((n, n)))[0]).astype(np.float32)


def contestants(rows: tuple, cols: tuple, ranks: tuple) -> list[Contestant]:
    """Everybody's TT-SVD of the same tensor of digit pairs."""
    w = weight(rows, cols)
    d = len(rows)
    pairs = tuple(a * b for a, b in zip(rows, cols, strict=True))
    order = [axis for k in range(d) for axis in (k, d + k)]
    x = np.ascontiguousarray(w.reshape(*rows, *cols).transpose(order)).reshape(pairs)
    on_device = jnp.asarray(w)

    def error(cores: Any) -> float:
        full = np.ones((1, 1))
        for core in cores:
            core = np.asarray(core, np.float32)
            core = core.reshape(core.shape[0], -1, core.shape[-1])
            full = np.tensordot(full, core, (1, 0)).reshape(-1, core.shape[-1])
        return float(np.linalg.norm(full.ravel() - x.ravel()))

    best = error(reference(x, ranks))
    ours = lambda: tt_svd(on_device, rows, cols, ranks)[0]
    found = [Contestant("lrjax TT-SVD", ours, lambda t: error(t.cores) / best - 1, True)]
    for peers in (tensorly_peers, tntorch_peers, quimb_peers):
        for name, run in peers(x, ranks):
            found.append(Contestant(name, run, lambda cores: error(cores) / best - 1))
    return found


def rings(rows: tuple, cols: tuple, ranks: tuple) -> list[Contestant]:
    """TR-SVD, and all of the solver: several starts and sweeps, against tensorly's two."""
    from tensorly.decomposition import tensor_ring, tensor_ring_als

    w = weight(rows, cols)
    x = w.reshape([a * b for a, b in zip(rows, cols, strict=True)])
    on_device = jnp.asarray(w)

    def error(cores: Any) -> float:
        a, *others, c = (np.asarray(core, np.float32) for core in cores)
        others = [core.reshape(core.shape[0], -1, core.shape[-1]) for core in (*others, c)]
        full = functools.reduce(lambda y, core: np.tensordot(y, core, (-1, 0)), others)
        first = a.reshape(a.shape[0], -1, a.shape[-1])
        axes = ((2, 0), (0, full.ndim - 1))
        return float(np.linalg.norm(np.tensordot(first, full, axes).ravel() - x.ravel()))

    bonds = [*ranks, ranks[0]]
    many = TensorRing(ranks, rows=rows, cols=cols, starts=32, sweeps=50, tol=1e-5)
    best = error(solve(many, on_device)[0].cores)
    excess = lambda cores: error(cores) / best - 1
    peers = {
        "tensorly tensor_ring": lambda: tensor_ring(x, list(bonds)),
        "tensorly tensor_ring, randomised": lambda: tensor_ring(
            x, list(bonds), svd="randomized_svd"
        ),
        "tensorly tensor_ring_als, 2 sweeps": lambda: tensor_ring_als(
            x, list(bonds), ls_solve="normal_eq", n_iter_max=2, tol=0, random_state=0
        ),
        "tensorly tensor_ring_als, 20 sweeps": lambda: tensor_ring_als(
            x, list(bonds), ls_solve="normal_eq", n_iter_max=20, tol=0, random_state=0
        ),
    }
    cut = lambda: tr_svd(on_device, rows, cols, ranks)[0]
    ours = {"lrjax TR-SVD": cut}
    for starts in (1, 8):
        spec = TensorRing(ranks, rows=rows, cols=cols, starts=starts)
        ours[f"lrjax, starts={starts}"] = lambda spec=spec: solve(spec, on_device)[0]
    return [
        *(Contestant(name, run, lambda r: excess(r.cores), True) for name, run in ours.items()),
        *(Contestant(name, run, lambda ring: excess(ring.factors)) for name, run in peers.items()),
    ]


def reference(x: np.ndarray, ranks: tuple) -> list[np.ndarray]:
    """TT-SVD in float64, by the eigenvectors of the Gram of each shorter side."""
    cores, rest, last = [], x.astype(np.float64), 1
    for size, rank in zip(x.shape[:-1], ranks, strict=True):
        matrix = rest.reshape(last * size, -1)
        if matrix.shape[0] <= matrix.shape[1]:
            u = np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :rank]
        else:
            v = np.linalg.eigh(matrix.T @ matrix)[1][:, ::-1][:, :rank]
            u = np.linalg.qr(matrix @ v)[0]
        cores.append(u.reshape(last, size, rank))
        rest, last = u.T @ matrix, rank
    return [*cores, rest.reshape(last, x.shape[-1], 1)]


def tensorly_peers(x: np.ndarray, ranks: tuple) -> list[tuple[str, Callable]]:
    try:
        from tensorly.decomposition import tensor_train
    except ImportError:
        print("tensorly is not installed: left out", file=sys.stderr)
        return []
    run = lambda svd: tensor_train(x, [1, *ranks, 1], svd=svd).factors
    return [
        ("tensorly", lambda: run("truncated_svd")),
        ("tensorly, randomised", lambda: run("randomized_svd")),
    ]


def tntorch_peers(x: np.ndarray, ranks: tuple) -> list[tuple[str, Callable]]:
    try:
        import tntorch
        import torch
    except ImportError:
        print("tntorch is not installed: left out", file=sys.stderr)
        return []
    tensor = torch.from_numpy(x)
    run = lambda: [c.numpy() for c in tntorch.Tensor(tensor, ranks_tt=list(ranks)).cores]
    return [("tntorch", run)]


def quimb_peers(x: np.ndarray, ranks: tuple) -> list[tuple[str, Callable]]:
    try:
        import quimb.tensor as qtn
    except ImportError:
        print("quimb is not installed: left out", file=sys.stderr)
        return []

    def run():
        mps = qtn.MatrixProductState.from_dense(x, dims=x.shape, max_bond=max(ranks), cutoff=0.0)
        mps.permute_arrays("lpr")
        first, *middle, last = (t.data for t in mps)
        return [first[None], *middle, last[..., None]]

    return [("quimb", run)]


def application(rows: tuple, cols: tuple, ranks: tuple, batch: int) -> list[Contestant]:
    """Lookup of a batch of rows, and a tied head on it: dense against factored."""
    w = jnp.asarray(weight(rows, cols))
    train = tt_svd(w, rows, cols, ranks)[0]
    ids = jnp.asarray(np.random.default_rng(1).integers(0, len(w), batch))
    y = jnp.asarray(np.random.default_rng(2).standard_normal((batch, w.shape[1])), jnp.float32)
    lookup, head = jax.jit(lambda w, ids: ops.take(w, ids)), jax.jit(lambda w, y: y @ w.T)
    none = lambda result: 0.0
    return [
        Contestant("dense lookup", lambda: lookup(w, ids), none),
        Contestant("lrjax lookup", lambda: lookup(train, ids), none, True),
        Contestant("dense tied head", lambda: head(w, y), none),
        Contestant("lrjax tied head", lambda: head(train, y), none, True),
    ]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--uses", action="store_true", help="time lookups and heads, not solvers")
    parser.add_argument("--rings", action="store_true", help="tensor rings in place of trains")
    args = parser.parse_args()
    chosen = QUICK if args.quick else CASES
    if args.uses:
        cases = {
            f"{label}, batch {batch}": functools.partial(application, *case, batch)
            for label, case in chosen.items()
            if label.startswith("embedding")
            for batch in (1, 32, 512)
        }
    elif args.rings:
        cases = {label: functools.partial(rings, *case) for label, case in RINGS.items()}
    else:
        cases = {label: functools.partial(contestants, *case) for label, case in chosen.items()}
    result = {"benchmark": "tensor_train", "machine": machine()}
    publish(result | race(cases, args, least=2), args.out)


if __name__ == "__main__":
    main()
