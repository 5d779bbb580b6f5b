"""What a factored weight is: a frozen pytree of factors that names its tensor network."""

from lrjax.formats.blast import BLAST as BLAST
from lrjax.formats.block_low_rank import BlockLowRank as BlockLowRank
from lrjax.formats.contract import Order as Order
from lrjax.formats.cp import CP as CP
from lrjax.formats.diagonal import Diagonal as Diagonal
from lrjax.formats.factored import Factored as Factored
from lrjax.formats.factored import is_factored as is_factored
from lrjax.formats.factored import register as register
from lrjax.formats.hodlr import HODLR as HODLR
from lrjax.formats.kronecker import Kronecker as Kronecker
from lrjax.formats.layout import Layout as Layout
from lrjax.formats.layout import default_layout as default_layout
from lrjax.formats.layout import matricize as matricize
from lrjax.formats.layout import unmatricize as unmatricize
from lrjax.formats.lazy import LazyArray as LazyArray
from lrjax.formats.low_rank import LowRank as LowRank
from lrjax.formats.monarch import Monarch as Monarch
from lrjax.formats.network import Network as Network
from lrjax.formats.network import Unsupported as Unsupported
from lrjax.formats.parts import Sum as Sum
from lrjax.formats.selection import Selection as Selection
from lrjax.formats.shared_basis import SharedBasis as SharedBasis
from lrjax.formats.sparse import Sparse as Sparse
from lrjax.formats.tensor_train import TensorTrain as TensorTrain
from lrjax.formats.token_train import TokenTrain as TokenTrain
from lrjax.formats.tucker import Tucker as Tucker
