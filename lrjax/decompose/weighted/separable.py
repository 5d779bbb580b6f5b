"""The optimum under the separable weights nearest to element-wise ones: where the search starts."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.weighted import weighted_svd
from lrjax.metrics.separable import separable_sides


def separable_start(
    w: Float[Array, "m n"], f: Float[Array, "m n"], rank: int, key: Array
) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    """The closed-form optimum under r c', with factors balanced pair by pair."""
    r, c = separable_sides(f)
    left, right, _, _ = weighted_svd(w, rank, rows=r, cols=c, key=key)
    columns, rows = jnp.linalg.norm(left, axis=0), jnp.linalg.norm(right, axis=1)
    usable = (columns > 0) & (rows > 0)
    share = jnp.sqrt(jnp.where(usable, rows / jnp.where(usable, columns, 1), 1))
    return left * share, right / share[:, None]
