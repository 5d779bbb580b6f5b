"""Any JAX function on factored weights, and what it does with each of them.

The one folder that knows jaxprs: `lift` evaluates a function's program on factors, `usage` reads
it, and taps evaluate it while reducing what each weight sees.
"""

from lrjax.lift.lift import DensifyWarning, OnDense, lift
from lrjax.lift.report import Usage, Use, UseKind, WeightUse
from lrjax.lift.taps import Tap, Tapped, with_taps
from lrjax.lift.usage import usage

__all__ = [
    "DensifyWarning",
    "OnDense",
    "Tap",
    "Tapped",
    "Usage",
    "Use",
    "UseKind",
    "WeightUse",
    "lift",
    "usage",
    "with_taps",
]
