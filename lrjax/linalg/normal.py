"""The one operator of every truncated SVD here: M = W'SW, applied and seldom formed.

The best rank-r W' under |S^.5 (W - W')| is W V V', V the leading eigenvectors of W'SW: no inverse
and no root of S. S = I gives the plain truncated SVD.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from lrjax.linalg.draw import normal
from lrjax.linalg.stack import dot, dot_t


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normal:
    """M = unit^2 W'SW for W [m, n]; vectors are rows.

    Attributes:
        w: the matrix [m, n].
        rows: S: [m, m], its diagonal [m], or None for the identity.
        unit: scale that brings M near one, so that neither 1e30 nor 1e-30 leaves float32's range.
    """

    w: Any
    rows: Any = None
    unit: Any = 1.0

    @property
    def size(self) -> int:
        """n, the order of M."""
        return self.w.shape[1]

    def weigh(self, x: Float[Array, "b m"]) -> Float[Array, "b m"]:
        """X S."""
        if self.rows is None:
            return x
        return x * self.rows if self.rows.ndim == 1 else dot(x, self.rows)

    def image(self, v: Float[Array, "b n"]) -> Float[Array, "b m"]:
        """V W' in the operator's unit: the images of the rows of V."""
        return dot_t(v * self.unit, self.w)

    def apply(self, v: Float[Array, "b n"]) -> tuple[Float[Array, "b n"], Float[Array, "b m"]]:
        """V M, and the images on the way to it."""
        image = self.image(v)
        return dot(self.weigh(image), self.w) * self.unit, image

    def gram(self) -> Float[Array, "n n"]:
        """M itself."""
        w = self.w * self.unit
        if self.rows is None:
            return dot(w.T, w)
        weighted = self.rows[:, None] * w if self.rows.ndim == 1 else dot(self.rows, w)
        return dot(w.T, weighted)

    def sketch(self, key: Array, count: int) -> Float[Array, "b n"]:
        """Rows of a random span near M's leading eigenvectors: N(0, 1) S W."""
        omega = normal(key, (count, self.w.shape[0]), self.w.dtype)
        return dot(self.weigh(omega), self.w)

    def scaled(self, probe: Array) -> tuple["Normal", Array]:
        """The operator in the unit of a probe (W or a sketch of it), and whether it is finite."""
        # A maximum may pass over NaN (XLA's fast min-max on CPUs), so each entry is asked.
        peak = jnp.max(jnp.abs(probe))
        finite = jnp.all(jnp.isfinite(probe))
        usable = finite & (peak > 0)
        unit = jnp.where(usable, 1 / jnp.where(usable, peak, 1), 1)
        return dataclasses.replace(self, unit=unit), finite


class Leading(NamedTuple):
    """What every method returns: leading eigenvectors of M, their images, and the scale.

    Attributes:
        vectors: V' [r, n], orthonormal rows, eigenvalues falling.
        images: unit V'W' [r, m].
        energy: eigenvalues of M [r], in the scale of unit^2.
        unit: the operator's scale.
        finite: whether W and S are.
    """

    vectors: Float[Array, "r n"]
    images: Float[Array, "r m"]
    energy: Float[Array, " r"]
    unit: Float[Array, ""]
    finite: Array


def largest(ritz: Float[Array, "l l"], rank: int, finite: Array) -> tuple[Array, Array]:
    """The `rank` largest eigenvalues of a symmetric matrix (lower triangle) and their rows [r, l].

    Where the input is not finite, those of the zero matrix: the factorisation never sees a NaN.
    """
    values, vectors = jnp.linalg.eigh(jnp.where(finite, ritz, 0), symmetrize_input=False)
    return jnp.maximum(values[::-1][:rank], 0), vectors[:, ::-1][:, :rank].T
