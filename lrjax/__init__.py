"""Low-rank compression of neural networks in JAX."""

from lrjax.formats import LowRank as LowRank
from lrjax.formats import Sum as Sum
from lrjax.formats import is_factored as is_factored
from lrjax.ops import densify as densify
