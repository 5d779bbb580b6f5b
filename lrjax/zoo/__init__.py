"""Small Flax models that take factored weights and published checkpoints."""

from lrjax.zoo.bert import Bert as Bert
from lrjax.zoo.bert import BertConfig as BertConfig
from lrjax.zoo.layers import Dense as Dense
from lrjax.zoo.layers import Embed as Embed
from lrjax.zoo.layers import FactorModule as FactorModule
from lrjax.zoo.layers import LayerNorm as LayerNorm
from lrjax.zoo.load import load as load
from lrjax.zoo.load import model_of as model_of
from lrjax.zoo.load import save as save
from lrjax.zoo.sentences import mean_pool as mean_pool
from lrjax.zoo.sentences import sentence_embedder as sentence_embedder
from lrjax.zoo.sentences import unit as unit
from lrjax.zoo.stack import scan_layers as scan_layers
from lrjax.zoo.stack import unroll_layers as unroll_layers
