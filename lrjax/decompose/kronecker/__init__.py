"""Sums of Kronecker products: closed form, refit under a metric, search over shapes."""

from lrjax.decompose.kronecker.fit import kronecker as kronecker
from lrjax.decompose.kronecker.nearest import nearest_kronecker as nearest_kronecker
from lrjax.decompose.kronecker.spec import Kronecker as Kronecker
