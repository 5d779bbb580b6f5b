"""Text from a decoder: prompts are read once, then token by token the model goes on.

Prompts are padded and caches sized in few steps, so that few shapes are compiled; a decode step
updates its cache in place.
"""

from lrjax.generate.generate import generate as generate
from lrjax.generate.prompts import pad as pad
from lrjax.generate.result import Finish as Finish
from lrjax.generate.result import Generated as Generated
from lrjax.generate.sampling import Greedy as Greedy
from lrjax.generate.sampling import Sample as Sample
from lrjax.generate.sampling import Sampling as Sampling
from lrjax.generate.tokenizer import Pieces as Pieces
from lrjax.generate.tokenizer import Tokenizer as Tokenizer
from lrjax.generate.tokenizer import stop_tokens as stop_tokens
