"""Models in forms that the reference library runs: dense, as LoRA pairs, factored with code."""

from lrjax import zoo
from lrjax.export.custom_code import custom_code as custom_code
from lrjax.export.pairs import peft as peft

dense = zoo.save
"""The published layout, factored weights written dense: :func:`lrjax.zoo.save`."""
