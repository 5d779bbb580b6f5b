"""GramEigh: the eigenvectors of the formed Gram matrix."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from lrjax.linalg.normal import Leading, Normal, largest


@dataclasses.dataclass(frozen=True)
class GramEigh:
    """Form M = W'SW and solve its whole eigenproblem: exact above the Gram's noise floor.

    Squaring halves the digits: singular values below sqrt(eps) s_1 (3e-4 s_1 in float32) drown in
    rounding. The product of the factors stays right to eps |W| because the images W V are fresh
    products; only the order and the orthogonality of what lies below the floor are lost.

    Cost: 2 m n^2 + about 9 n^3.
    """

    iterations: int = 1

    def leading(self, problem: Normal, rank: int, key: Array) -> Leading:
        """The leading eigenvectors of M; the key is not used."""
        problem, finite = problem.scaled(problem.w)
        gram = problem.gram()
        finite &= jnp.isfinite(jnp.sum(gram))
        energy, vectors = largest(gram, rank, finite)
        return Leading(vectors, problem.image(vectors), energy, problem.unit, finite)
