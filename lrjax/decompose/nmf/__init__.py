"""Non-negative and semi-non-negative factorisation by accelerated HALS."""

from lrjax.decompose.nmf.fit import NMFInfo as NMFInfo
from lrjax.decompose.nmf.fit import nmf as nmf
from lrjax.decompose.nmf.spec import NMF as NMF
