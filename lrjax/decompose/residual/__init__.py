"""Low rank and what it cannot hold: a sparse part, or a diagonal one."""

from lrjax.decompose.residual.alternate import alternate as alternate
from lrjax.decompose.residual.spec import LowRankDiagonal as LowRankDiagonal
from lrjax.decompose.residual.spec import LowRankSparse as LowRankSparse
