"""Sums of Kronecker products against SVDs of the rearranged matrix by the peers.

python benchmarks/kronecker.py [--quick] [--case TEXT] [--clock cpu] [--out results.json]

Excess is the error over that of the optimal truncation, minus one, in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg as ssl
from harness import Contestant, machine, options, publish, race

from lrjax.decompose.kronecker import nearest_kronecker
from lrjax.linalg import Accuracy
from lrjax.linalg.van_loan import rearrange, restore

M, N = 3072, 768
CASES = (((64, 32), 1), ((64, 32), 8), ((1536, 384), 1), ((1536, 384), 3))


def weight(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """W whose rearranged matrix has singular values j^-0.7, and the values."""
    (i, j), rng = shape, np.random.default_rng(0)
    first, second = i * j, (M // i) * (N // j)
    size = min(first, second)
    basis = lambda n: np.linalg.qr(rng.normal(size=(n, size)))[0]
    s = np.arange(1, size + 1) ** -0.7
    r = (basis(first) * s) @ basis(second).T
    return np.asarray(restore(jnp.asarray(r, jnp.float32), i, j, M // i)), s


def contestants(shape: tuple[int, int], terms: int) -> list[Contestant]:
    """Everybody's best `terms` terms."""
    w, s = weight(shape)
    i, j = shape
    wide = np.asarray(rearrange(jnp.asarray(w), i, j), np.float64)
    opt = float(np.sqrt(np.sum(s[terms:] ** 2)))

    def excess(result) -> float:
        a, b = (np.asarray(x, np.float64).reshape(terms, -1) for x in result)
        return float(np.linalg.norm(wide - a.T @ b)) / opt - 1

    on_device, found = jnp.asarray(w), []
    for accuracy in (Accuracy.DEFAULT, Accuracy.ACCURATE):

        @jax.jit
        def ours(w, accuracy=accuracy):
            f, _ = nearest_kronecker(w, terms, shape, accuracy=accuracy)
            return f.a, f.b

        run = lambda ours=ours: ours(on_device)
        found.append(Contestant(f"lrjax {accuracy.value}", run, excess, True))

    def rearranged():
        k, l = M // i, N // j
        return w.reshape(i, k, j, l).swapaxes(1, 2).reshape(i * j, k * l)

    def pair(u, s, vt):
        return (u[:, :terms] * s[:terms]).T, vt[:terms]

    def svds():
        r = rearranged()
        if terms >= min(r.shape):
            return pair(*np.linalg.svd(r, full_matrices=False))
        u, s, vt = ssl.svds(r, terms, random_state=0)
        return pair(u[:, ::-1], s[::-1], vt[::-1])

    found.append(Contestant("scipy svds", svds, excess))
    full = lambda: pair(*np.linalg.svd(rearranged(), full_matrices=False))
    found.append(Contestant("numpy svd", full, excess))
    try:
        import torch
    except ImportError:
        return found

    def lowrank():
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(torch.from_numpy(rearranged()), q=min(terms + 6, 4), niter=4)
        return pair(u.numpy(), s.numpy(), v.numpy().T)

    if terms <= 4:
        found.append(Contestant("torch svd_lowrank niter=4", lowrank, excess))
    return found


def main() -> None:
    args = options(__doc__).parse_args()
    cases = {
        f"{M}x{N}, a {shape[0]}x{shape[1]}, {terms} terms": functools.partial(
            contestants, shape, terms
        )
        for shape, terms in (CASES[:2] if args.quick else CASES)
    }
    result = {"benchmark": "kronecker", "machine": machine()}
    publish(result | race(cases, args), args.out)


if __name__ == "__main__":
    main()
