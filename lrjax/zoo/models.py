"""The models of the zoo by the ``model_type`` of their published config."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from lrjax.zoo import albert, bert, gpt2, llama, llama_family, recurrent, resnet, vit

READERS: Mapping[str, Callable[[Mapping[str, Any], Collection[str]], Any]] = {
    "albert": albert.read,
    "bert": bert.read,
    "gpt2": gpt2.read,
    "resnet": resnet.read,
    **dict.fromkeys(llama_family.FAMILY, llama.read),
    **dict.fromkeys(recurrent.KINDS, recurrent.read),
    **dict.fromkeys(("vit", "deit"), vit.read),
}
"""``model_type`` -> the function that builds the model from its config and the file's names."""
