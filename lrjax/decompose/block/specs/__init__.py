"""The block specs: which grid, which ranks, and the options that the planner compares."""

from lrjax.decompose.block.specs.blast import BLAST as BLAST
from lrjax.decompose.block.specs.block_svd import BlockSVD as BlockSVD
from lrjax.decompose.block.specs.hodlr import HODLR as HODLR
from lrjax.decompose.block.specs.hss import HSS as HSS
from lrjax.decompose.block.specs.monarch import Monarch as Monarch
