"""Low rank under element-wise weights: TFWSVD, weighted approximation, matrix completion."""

from lrjax.decompose.weighted.fit import Inner as Inner
from lrjax.decompose.weighted.fit import WeightedInfo as WeightedInfo
from lrjax.decompose.weighted.fit import weighted_low_rank as weighted_low_rank
from lrjax.decompose.weighted.spec import WeightedLowRank as WeightedLowRank
from lrjax.metrics import Elements as Elements
