"""Weights as grids and hierarchies of low-rank blocks."""

from lrjax.decompose.block.blast import blast as blast
from lrjax.decompose.block.grid import block_low_rank as block_low_rank
from lrjax.decompose.block.hodlr import hodlr as hodlr
from lrjax.decompose.block.hss import hss as hss
from lrjax.decompose.block.monarch import monarch as monarch
from lrjax.decompose.block.reorder import Reordered as Reordered
from lrjax.decompose.block.reorder import seriate as seriate
from lrjax.decompose.block.specs import BLAST as BLAST
from lrjax.decompose.block.specs import HODLR as HODLR
from lrjax.decompose.block.specs import HSS as HSS
from lrjax.decompose.block.specs import BlockSVD as BlockSVD
from lrjax.decompose.block.specs import Monarch as Monarch
