"""What generation gives back."""

import enum
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int


class Finish(enum.Enum):
    """Why a row ended."""

    STOP = "stop"
    LENGTH = "length"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generated:
    """The new tokens of every row.

    Attributes:
        tokens: the new tokens, without the prompt; a stop token is a row's last, zeros follow it.
        lengths: how many tokens each row has, its stop token among them.
        stopped: whether a row ended with a stop token.
    """

    tokens: Int[Array, "batch new"] | Any
    lengths: Int[Array, " batch"] | Any
    stopped: Bool[Array, " batch"] | Any

    @property
    def rows(self) -> list[list[int]]:
        """Each row's tokens, as far as it goes."""
        tokens, lengths = np.asarray(self.tokens), np.asarray(self.lengths)
        return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]

    @property
    def finish(self) -> list[Finish]:
        """Why each row ended."""
        return [Finish.STOP if stopped else Finish.LENGTH for stopped in np.asarray(self.stopped)]
