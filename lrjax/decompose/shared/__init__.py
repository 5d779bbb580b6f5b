"""Shared bases: one basis for a stack of weights, and a core for each."""

from lrjax.decompose.shared.fit import shared_basis as shared_basis
from lrjax.decompose.shared.spec import SharedBasis as SharedBasis
