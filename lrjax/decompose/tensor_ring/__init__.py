"""Tensor rings: TR-SVD, several starts on a small tensor, alternating least squares."""

from lrjax.decompose.tensor_ring.als import tr_als as tr_als
from lrjax.decompose.tensor_ring.spec import TensorRing as TensorRing
from lrjax.decompose.tensor_ring.svd import tr_svd as tr_svd
