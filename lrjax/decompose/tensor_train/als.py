"""Alternating least squares for tensor trains, with two-site sweeps where ranks are to change."""

from collections.abc import Sequence

from jax import Array, lax
from jaxtyping import Float

from lrjax.decompose.chain.cores import Chain
from lrjax.decompose.chain.digits import check_digits, check_ranks, pairs
from lrjax.decompose.chain.sweeps import SWEEPS, TOL, Problem, refine, sweep
from lrjax.decompose.tensor_train import two_site
from lrjax.decompose.tensor_train.svd import resized
from lrjax.formats.tensor_train import TensorTrain
from lrjax.linalg import Info
from lrjax.metrics import Metric

PAIRED = 2
"""Two-site sweeps before single-site ones take over: the first turn the bonds, but every cut after
a pair is optimal without the metric only, and under one the others go on falling."""


def tt_als(
    w: Float[Array, "*S M N"],
    init: TensorTrain,
    *,
    metric: Metric | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = TOL,
    ranks: Sequence[int] | None = None,
) -> tuple[TensorTrain, Info]:
    """A train of the ranks of `init` that lowers tr(D' rows D cols), D = W - W', core by core.

    With the frames left and right of core k orthonormal (L, R), its best value solves
    L'A(L G R)R' = L'A(W)R', A the metric: at once where there is none, else by a few
    conjugate-gradient steps from the present core, preconditioned by the mean weight of each digit.
    They cannot raise the loss, nor can a sweep: the objective is monotone, and the best iterate is
    what comes back. Padding weighs nothing.

    With `ranks`, the first sweeps are two-site ones (`two_site.sweep`): neighbours are solved
    together and cut apart again at these ranks, which may be higher or lower than those of `init`.
    A pair sees directions that no single core can turn to; it costs a digit times more.

    Args:
      w: matrices, stack axes leading.
      init: a train for the same matrices, e.g. from `tt_svd`.
      metric: what error means; None is the Frobenius norm.
      sweeps: most sweeps.
      tol: relative decrease of the loss that ends the run; may be traced.
      ranks: of the result, by two-site sweeps first; None keeps those of `init`, core by core.

    Returns:
      The weight and Info; the residual is the square root of the loss.

    Raises:
      ShapeError: `init` is of another shape.
      RankError: the ranks of `init`, or those asked for, are more than its digits can use.
    """
    rows, cols = init.modes
    check_digits(w, rows, cols)
    check_ranks(pairs(rows, cols), init.rank)
    if ranks is None:
        return refine(w, init, metric, sweeps=sweeps, tol=tol)
    init = resized(init, check_ranks(pairs(rows, cols), ranks))
    return refine(w, init, metric, sweeps=sweeps, tol=tol, step=_paired_first)


def _paired_first(train: Chain, i: Array, problem: Problem) -> Chain:
    single = lambda train: sweep(train, i, problem)
    return lax.cond(i < PAIRED, lambda train: two_site.sweep(train, problem), single, train)
