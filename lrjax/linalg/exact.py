"""Exact: the full SVD, the last resort and the reference."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from lrjax.linalg.normal import Leading, Normal
from lrjax.linalg.stack import dot
from lrjax.linalg.whitening import sqrt_psd


@dataclasses.dataclass(frozen=True)
class Exact:
    """Full SVD of S^.5 W, cut to the rank: every singular value to eps times the largest.

    Cost: about 4 m n min(m, n) at a tenth of a product's speed, hence nowhere the default.
    """

    iterations: int = 1

    def leading(self, problem: Normal, rank: int, key: Array) -> Leading:
        """The leading eigenvectors of M; the key is not used."""
        problem, finite = problem.scaled(problem.w)
        w = jnp.where(finite, problem.w * problem.unit, 0)
        rows = problem.rows
        if rows is not None:
            w = jnp.sqrt(rows)[:, None] * w if rows.ndim == 1 else dot(sqrt_psd(rows), w)
            finite &= jnp.all(jnp.isfinite(w))
            w = jnp.where(finite, w, 0)
        u, s, vt = jnp.linalg.svd(w, full_matrices=False)
        vectors = vt[:rank]
        images = problem.image(vectors) if rows is not None else (u * s).T[:rank]
        return Leading(vectors, images, s[:rank] ** 2, problem.unit, finite)
