"""W as a ring of small cores: a tensor train whose two ends are joined by a bond."""

import dataclasses

from lrjax.formats.chain import Chain
from lrjax.formats.factored import register


@register(meta=("rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class TensorRing(Chain):
    """A matrix whose row and column indices are numbers with the digits i_1 ... i_d, j_1 ... j_d.

    W[(i_1 ... i_d), (j_1 ... j_d)] = trace G_1[:, i_1, j_1, :] ... G_d[:, i_d, j_d, :]

    - `cores[k]` is [*B, r_k, m_k, n_k, r_{k+1}], and the last bond closes on the first, r_d = r_0;
      leading axes B are stack axes. A train is the ring with r_0 = 1.
    - `rows`, `cols` and `order`: how digits become dense dimensions, and padding; see `Chain`.

    No digit is first or last, so that ranks can be even where those of a train must swell towards
    its middle (Zhao et al., arXiv:1606.05535). It has its price in time: whatever is cut open
    leaves a bond that the stream carries until the last core closes it, and a product costs r_0
    times that of a train of the other ranks. The order of contraction is searched with the rest,
    so that the bond left open is the cheapest one; neither products nor lookups form the table.
    """

    @property
    def rank(self) -> tuple[int, ...]:
        """The ranks of the bonds, r_0 ... r_{d-1}: each before its core."""
        return tuple(core.shape[-4] for core in self.cores)
