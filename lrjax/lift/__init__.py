"""Any JAX function on factored weights, and what it does with each of them.

The one folder that knows jaxprs: `lift` evaluates a function's program on factors, `usage` reads it, and
taps evaluate it on dense weights while reducing what each weight sees.
"""

from lrjax.lift.lift import DensifyWarning, OnDense, lift
from lrjax.lift.report import Usage, Use, UseKind, WeightUse

__all__ = ["DensifyWarning", "OnDense", "Usage", "Use", "UseKind", "WeightUse", "lift"]
