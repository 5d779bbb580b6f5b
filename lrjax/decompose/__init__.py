"""Dense arrays to factored ones: specs, their options, and one solver a file."""

from lrjax.decompose.banded import Banded
from lrjax.decompose.block import BLAST, HODLR, HSS, BlockSVD, Monarch, Reordered
from lrjax.decompose.cp import CP
from lrjax.decompose.grow import Grown, grow
from lrjax.decompose.kronecker import Kronecker
from lrjax.decompose.nmf import NMF
from lrjax.decompose.rank_rule import EVBMF, Energy, RankRule
from lrjax.decompose.residual import LowRankDiagonal, LowRankSparse
from lrjax.decompose.shared import SharedBasis
from lrjax.decompose.spec import Options, Spec, solve, spec_from_json
from lrjax.decompose.svd import SVD
from lrjax.decompose.tensor_ring import TensorRing
from lrjax.decompose.tensor_train import TensorTrain, TokenTrain
from lrjax.decompose.tucker import Tucker
from lrjax.decompose.weighted import Elements, WeightedLowRank

__all__ = [
    "BLAST",
    "CP",
    "EVBMF",
    "HODLR",
    "HSS",
    "NMF",
    "SVD",
    "Banded",
    "BlockSVD",
    "Elements",
    "Energy",
    "Grown",
    "Kronecker",
    "LowRankDiagonal",
    "LowRankSparse",
    "Monarch",
    "Options",
    "RankRule",
    "Reordered",
    "SharedBasis",
    "Spec",
    "TensorRing",
    "TensorTrain",
    "TokenTrain",
    "Tucker",
    "WeightedLowRank",
    "grow",
    "solve",
    "spec_from_json",
]
