"""Randomized: the randomised range finder, with power passes by Cholesky QR."""

import dataclasses

from jax import Array, lax
from jaxtyping import Float

from lrjax.linalg.normal import Leading, Normal, largest
from lrjax.linalg.orthonormal import cholesky_qr2
from lrjax.linalg.stack import dot


@dataclasses.dataclass(frozen=True)
class Randomized:
    """Rayleigh-Ritz on a sketch of rank + oversample rows after `passes` power steps.

    Halko, Martinsson and Tropp (arXiv:0909.4061). The fewest and widest products, hence the choice
    where latency counts for more than arithmetic; `Krylov` needs less arithmetic for an error.

    Cost: (4 passes + 4) m n l + O((m + n passes) l^2), l = rank + oversample.
    """

    oversample: int = 16
    passes: int = 2

    @property
    def iterations(self) -> int:
        """Power passes."""
        return self.passes

    def leading(self, problem: Normal, rank: int, key: Array) -> Leading:
        """The leading eigenvectors of M from the sketched range."""
        width = min(rank + self.oversample, problem.size)
        start = problem.sketch(key, width)
        problem, finite = problem.scaled(start)
        basis = range_finder(problem, start * problem.unit, self.passes)
        images = problem.image(basis)
        energy, mix = largest(dot(problem.weigh(images), images.T), rank, finite)
        return Leading(dot(mix, basis), dot(mix, images), energy, problem.unit, finite)


def range_finder(problem: Normal, start: Float[Array, "b n"], passes: int) -> Float[Array, "b n"]:
    """Orthonormal rows [b, n] of the span of start M^passes, orthonormal between the passes."""
    body = lambda _, basis: cholesky_qr2(problem.apply(basis)[0])
    return lax.fori_loop(0, passes, body, cholesky_qr2(start))
