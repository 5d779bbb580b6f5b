"""The models of the zoo by the ``model_type`` of their published config."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from lrjax.zoo import bert

READERS: Mapping[str, Callable[[Mapping[str, Any], Collection[str]], Any]] = {"bert": bert.read}
"""``model_type`` -> the function that builds the model from its config and the file's names."""
