"""Small Flax models that take factored weights and published checkpoints."""

from lrjax.zoo.bert import Bert, BertConfig
from lrjax.zoo.layers import Dense, Embed, FactorModule, LayerNorm
from lrjax.zoo.load import load, save
from lrjax.zoo.sentences import mean_pool, sentence_embedder, unit

__all__ = [
    "Bert",
    "BertConfig",
    "Dense",
    "Embed",
    "FactorModule",
    "LayerNorm",
    "load",
    "mean_pool",
    "save",
    "sentence_embedder",
    "unit",
]
