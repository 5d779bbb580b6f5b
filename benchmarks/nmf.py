"""NMF against scikit-learn's coordinate descent and multiplicative updates, to the same loss.

python benchmarks/nmf.py [--quick] [--case TEXT] [--clock cpu] [--out results.json]

Each peer runs a number of iterations from NNDSVDa; ours runs the least number (a multiple of
five) that reaches that loss. Starts are part of all times. `excess` is relative to the peer's
residual.
"""

import functools
import warnings

import jax.numpy as jnp
import numpy as np
from harness import Contestant, machine, options, publish, race
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF

from lrjax.decompose.nmf import nmf

CASES = (
    ("digits 1797x64 r=16", "cd", 50),
    ("digits 1797x64 r=16", "cd", 200),
    ("digits 1797x64 r=16", "mu", 200),
    ("planted 3072x768 r=64", "cd", 10),
    ("planted 3072x768 r=64", "cd", 50),
    ("planted 3072x768 r=64", "cd", 200),
)


def data(name: str) -> tuple[np.ndarray, int]:
    """The matrix of a case and its rank."""
    if name.startswith("digits"):
        return load_digits().data.astype(np.float32), 16
    rng = np.random.default_rng(0)
    x = rng.gamma(0.5, size=(3072, 64)) @ rng.gamma(0.5, size=(64, 768))
    return (x + 0.05 * x.mean() * rng.random(x.shape)).astype(np.float32), 64


def contestants(name: str, solver: str, count: int) -> list[Contestant]:
    """A peer, and ours to the same loss."""
    x, rank = data(name)
    on_device = jnp.asarray(x)

    def peer():
        model = NMF(rank, init="nndsvda", solver=solver, tol=0, max_iter=count, random_state=0)
        left = model.fit_transform(x)
        return left, model.components_

    loss = lambda pair: float(np.linalg.norm(x - np.asarray(pair[0]) @ np.asarray(pair[1])))
    goal = loss(peer())

    def ours(iterations: int):
        found, _ = nmf(on_device, rank, iterations=iterations, tol=0.0)
        return found.left, found.right

    able = lambda n: loss(ours(n)) <= goal
    enough = next((n for n in range(5, 2 * count + 5, 5) if able(n)), 2 * count)
    enough = next((n for n in range(max(enough - 4, 1), enough) if able(n)), enough)
    excess = lambda pair: loss(pair) / goal - 1
    return [
        Contestant(f"lrjax, {enough} iterations", lambda: ours(enough), excess, True),
        Contestant(f"sklearn {solver}, {count} iterations", peer, excess),
    ]


def main() -> None:
    args = options(__doc__).parse_args()
    warnings.filterwarnings("ignore", message="Maximum number of iterations")
    cases = {
        f"{name}, {solver} {count}": functools.partial(contestants, name, solver, count)
        for name, solver, count in (CASES[:1] if args.quick else CASES)
    }
    result = {"benchmark": "nmf", "machine": machine()}
    publish(result | race(cases, args), args.out)


if __name__ == "__main__":
    main()
