"""Tensor trains: TT-SVD, rounding, alternating least squares, and a train for every row."""

from lrjax.decompose.tensor_train.als import tt_als as tt_als
from lrjax.decompose.tensor_train.spec import TensorTrain as TensorTrain
from lrjax.decompose.tensor_train.spec import TokenTrain as TokenTrain
from lrjax.decompose.tensor_train.svd import rounded as rounded
from lrjax.decompose.tensor_train.svd import train_ranks as train_ranks
from lrjax.decompose.tensor_train.svd import tt_svd as tt_svd
from lrjax.decompose.tensor_train.tokens import token_train as token_train
