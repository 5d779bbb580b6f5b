"""Alternating least squares for tensor rings."""

from jax import Array
from jaxtyping import Float

from lrjax.decompose.chain.digits import check_digits, pairs
from lrjax.decompose.chain.sweeps import SWEEPS, TOL, refine
from lrjax.decompose.tensor_ring.ranks import check_bonds
from lrjax.formats.tensor_ring import TensorRing
from lrjax.linalg import Info
from lrjax.metrics import Metric


def tr_als(
    w: Float[Array, "*S M N"],
    init: TensorRing,
    *,
    metric: Metric | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = TOL,
) -> tuple[TensorRing, Info]:
    """A ring of the ranks of `init` that lowers tr(D' rows D cols), D = W - W', core by core.

    The sweeps are those of `tt_als`. No gauge makes what is around a core of a ring orthonormal, so
    that its best value is the solution of normal equations of order r_k r_{k+1}, exact and with a
    ridge of rounding size; under a metric they precondition conjugate-gradient steps. No sweep
    raises the loss. A ring of rank one before its first core is swept as the train that it is.

    Args:
      w: matrices, stack axes leading.
      init: a ring for the same matrices, e.g. from `tr_svd`.
      metric: what error means; None is the Frobenius norm.
      sweeps: most sweeps.
      tol: relative decrease of the loss that ends the run; may be traced.

    Returns:
      The weight and Info; the residual is the square root of the loss.

    Raises:
      ShapeError: `init` is of another shape.
      RankError: a rank of `init` is more than its neighbours and digits can use.
    """
    rows, cols = init.modes
    check_digits(w, rows, cols)
    check_bonds(pairs(rows, cols), init.rank)
    return refine(w, init, metric, sweeps=sweeps, tol=tol)
