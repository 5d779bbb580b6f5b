"""What error means: statistics of what a weight sees, and the metrics made of them.

A weight as a matrix W [m, n] maps its input side (rows, m) to its output side (cols, n). A metric
weighs a change D of W; a *kind* is the static recipe that binds statistics to a metric.
"""

from lrjax.metrics.elements import Elements as Elements
from lrjax.metrics.importance import ASVD as ASVD
from lrjax.metrics.importance import FWSVD as FWSVD
from lrjax.metrics.importance import TFWSVD as TFWSVD
from lrjax.metrics.kind import Kind as Kind
from lrjax.metrics.kind import Need as Need
from lrjax.metrics.kind import kind_from_json as kind_from_json
from lrjax.metrics.metric import Diagonal as Diagonal
from lrjax.metrics.metric import Gram as Gram
from lrjax.metrics.metric import Metric as Metric
from lrjax.metrics.metric import Side as Side
from lrjax.metrics.moments import Moments as Moments
from lrjax.metrics.moments import SquaredGradients as SquaredGradients
from lrjax.metrics.moments import WeightStats as WeightStats
from lrjax.metrics.moments import merge_moments as merge_moments
from lrjax.metrics.moments import merge_squares as merge_squares
from lrjax.metrics.second import Frobenius as Frobenius
from lrjax.metrics.second import Input as Input
from lrjax.metrics.second import TwoSided as TwoSided
from lrjax.metrics.second import default_kind as default_kind
from lrjax.metrics.shrinkage import LedoitWolf as LedoitWolf
from lrjax.metrics.shrinkage import Scatter as Scatter
from lrjax.metrics.shrinkage import Shrinkage as Shrinkage
