"""Low-rank compression of neural networks in JAX.

```python
stats = lr.calibrate(apply, params, batches)
plan = lr.plan(params, rules, budget=lr.Budget(keep=0.5), stats=stats)
factored = lr.compress(params, plan, stats)
outputs = lr.lift(apply)(factored, batch)
print(lr.report(params, factored, stats))
```
"""

from lrjax import export as export
from lrjax import formats as formats
from lrjax import io as io
from lrjax import linalg as linalg
from lrjax import metrics as metrics
from lrjax import ops as ops
from lrjax import trees as trees
from lrjax import zoo as zoo
from lrjax.calibrate import Drawn as Drawn
from lrjax.calibrate import Fisher as Fisher
from lrjax.calibrate import Given as Given
from lrjax.calibrate import Probes as Probes
from lrjax.calibrate import Stats as Stats
from lrjax.calibrate import calibrate as calibrate
from lrjax.compress import compress as compress
from lrjax.compress import compress_with_info as compress_with_info
from lrjax.decompose import BLAST as BLAST
from lrjax.decompose import CP as CP
from lrjax.decompose import EVBMF as EVBMF
from lrjax.decompose import HODLR as HODLR
from lrjax.decompose import HSS as HSS
from lrjax.decompose import NMF as NMF
from lrjax.decompose import SVD as SVD
from lrjax.decompose import Banded as Banded
from lrjax.decompose import BlockSVD as BlockSVD
from lrjax.decompose import Energy as Energy
from lrjax.decompose import Kronecker as Kronecker
from lrjax.decompose import LowRankDiagonal as LowRankDiagonal
from lrjax.decompose import LowRankSparse as LowRankSparse
from lrjax.decompose import Monarch as Monarch
from lrjax.decompose import SharedBasis as SharedBasis
from lrjax.decompose import TensorRing as TensorRing
from lrjax.decompose import TensorTrain as TensorTrain
from lrjax.decompose import TokenTrain as TokenTrain
from lrjax.decompose import Tucker as Tucker
from lrjax.decompose import WeightedLowRank as WeightedLowRank
from lrjax.decompose import grow as grow
from lrjax.decompose import solve as solve
from lrjax.errors import LrjaxError as LrjaxError
from lrjax.formats import Factored as Factored
from lrjax.formats import LowRank as LowRank
from lrjax.formats import Sum as Sum
from lrjax.formats import is_factored as is_factored
from lrjax.generate import Generated as Generated
from lrjax.generate import Greedy as Greedy
from lrjax.generate import Sample as Sample
from lrjax.generate import generate as generate
from lrjax.io import load as load
from lrjax.io import save as save
from lrjax.lift import lift as lift
from lrjax.lift import usage as usage
from lrjax.ops import cost as cost
from lrjax.ops import densify as densify
from lrjax.plan import Budget as Budget
from lrjax.plan import Global as Global
from lrjax.plan import Plan as Plan
from lrjax.plan import Uniform as Uniform
from lrjax.plan import plan as plan
from lrjax.report import Report as Report
from lrjax.report import report as report
from lrjax.restructure import GroupHeads as GroupHeads
from lrjax.restructure import LatentKV as LatentKV
from lrjax.restructure import QueryKeyHeads as QueryKeyHeads
from lrjax.restructure import Units as Units
from lrjax.restructure import ValueHeads as ValueHeads
from lrjax.restructure import Width as Width
from lrjax.restructure import restructure as restructure
from lrjax.sensitivity import sensitivity as sensitivity
from lrjax.trees import map_weights as map_weights
