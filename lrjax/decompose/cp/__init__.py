"""Canonical polyadic decomposition: alternating least squares that does not stall or diverge."""

from lrjax.decompose.cp.correction import correct as correct
from lrjax.decompose.cp.fit import CPInfo as CPInfo
from lrjax.decompose.cp.fit import cp as cp
from lrjax.decompose.cp.masked import weighted_cp as weighted_cp
from lrjax.decompose.cp.spec import CP as CP
