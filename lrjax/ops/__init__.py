"""Operations on arrays of which any may be factored; on dense arrays they are jax's own."""

from lrjax.ops.arithmetic import add as add
from lrjax.ops.arithmetic import cast as cast
from lrjax.ops.arithmetic import multiply as multiply
from lrjax.ops.arithmetic import reduce_sum as reduce_sum
from lrjax.ops.arithmetic import scale as scale
from lrjax.ops.conv import conv_general_dilated as conv_general_dilated
from lrjax.ops.cost import Cost as Cost
from lrjax.ops.cost import cost as cost
from lrjax.ops.densify import densify as densify
from lrjax.ops.densify import validate as validate
from lrjax.ops.dot import dot_general as dot_general
from lrjax.ops.dot import einsum as einsum
from lrjax.ops.dot import matmul as matmul
from lrjax.ops.shape import broadcast_in_dim as broadcast_in_dim
from lrjax.ops.shape import concatenate as concatenate
from lrjax.ops.shape import reshape as reshape
from lrjax.ops.shape import slice_in_dim as slice_in_dim
from lrjax.ops.shape import split as split
from lrjax.ops.shape import squeeze as squeeze
from lrjax.ops.shape import stack as stack
from lrjax.ops.shape import transpose as transpose
from lrjax.ops.shape import unstack as unstack
from lrjax.ops.shard import sharding as sharding
from lrjax.ops.take import take as take
