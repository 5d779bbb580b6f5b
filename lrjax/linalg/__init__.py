"""Linear algebra: arrays in, arrays out, batched, jitted, float32 inside."""

from lrjax.linalg.exact import Exact
from lrjax.linalg.gram import GramEigh
from lrjax.linalg.info import Info, Status
from lrjax.linalg.krylov import Krylov
from lrjax.linalg.policy import Accuracy, Method, choose
from lrjax.linalg.randomized import Randomized
from lrjax.linalg.truncated import SVD, singular_values, truncated_svd
from lrjax.linalg.weighted import weighted_residual, weighted_spectrum, weighted_svd
from lrjax.linalg.whitening import solve_ridge, sqrt_psd, whiten

__all__ = [
    "SVD",
    "Accuracy",
    "Exact",
    "GramEigh",
    "Info",
    "Krylov",
    "Method",
    "Randomized",
    "Status",
    "choose",
    "singular_values",
    "solve_ridge",
    "sqrt_psd",
    "truncated_svd",
    "weighted_residual",
    "weighted_spectrum",
    "weighted_svd",
    "whiten",
]
