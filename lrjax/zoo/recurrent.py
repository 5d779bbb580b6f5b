"""LSTM and GRU language models: a word table, recurrent layers, a head, in PyTorch's layout.

The names are those of PyTorch's word language model: ``encoder.weight``, ``rnn.weight_ih_l0``, ...,
``decoder.weight``. ``config.json`` has ``model_type`` ("lstm" or "gru") and the fields below.

A cell's kernels are stacks ``[gates, in, out]``, which rules factor as they like: ``SVD()`` gives
all gates one basis of the inputs, ``BlockSVD(grid=(1, gates))`` each gate factors and a rank of its
own, ``Tucker(smallest=1)`` compresses gates, inputs and outputs, and ``LowRankDiagonal()`` keeps
the identity path of a recurrent kernel. Calibration runs through the loop: a recurrent kernel is
fitted to the states that the text drives it through. At keep 0.4 that more than halves the error of
a trained LSTM's states after 200 steps (three seeds; joint .135 to .051, .065 to .030 and .077 to
.032), of Tucker's form and that with a diagonal too; gate by gate it helped in two of three.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lrjax import ops
from lrjax.zoo import cache as caches
from lrjax.zoo import names
from lrjax.zoo.cache import Cache
from lrjax.zoo.config import Config, refuse
from lrjax.zoo.layers import Dense, Embed, FactorModule
from lrjax.zoo.names import Tensor

State = tuple[Array, ...]


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(Config):
    """The shape of an LSTM language model."""

    model_type: ClassVar[str] = "lstm"
    aliases: ClassVar[Mapping[str, str]] = {"num_layers": "num_hidden_layers"}
    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    tie_word_embeddings: bool = False

    def check(self) -> None:
        """A tied head needs states as wide as the words."""
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            got = f"{self.embedding_size}, with a tied head"
            refuse("embedding_size", got, f"hidden_size, {self.hidden_size}")


@dataclass(frozen=True, kw_only=True)
class GRUConfig(LSTMConfig):
    """The shape of a GRU language model."""

    model_type: ClassVar[str] = "gru"


class Recurrent(nn.Module):
    """Token ids -> the logits of the next token, at every place."""

    config: LSTMConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"] | None = None,
        position_ids: Int[Array, "#batch length"] | None = None,
        cache: Cache | None = None,
        *,
        last: bool = False,
    ) -> Float[Array, "batch _ vocab"] | tuple[Float[Array, "batch _ vocab"], Cache]:
        """The logits; at a padding token, where ``attention_mask`` is 0, the state stays.

        With a ``cache``, what :meth:`cache` made or an earlier call returned, reading goes on from
        its states, and the new cache comes back beside the logits. Positions mean nothing here.
        With ``last``, there are the logits of the last place alone.
        """
        c = self.config
        _, done = caches.place(input_ids, attention_mask, position_ids, cache)
        parts = {}
        embed = Embed(c.vocab_size, c.embedding_size, name="embed")
        x = embed(input_ids)
        for name in (f"layer_{i}" for i in range(c.num_layers)):
            layer = Layer(CELLS[type(c)], c.hidden_size, c.bias, name=name)
            x, parts[name] = layer(x, cache and cache.parts[name], attention_mask)
        x = x[:, -1:] if last else x
        bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,))
        tied = c.tie_word_embeddings
        head = embed.attend if tied else Dense(c.vocab_size, use_bias=False, name="head")
        logits = head(x) + bias
        return logits if done is None else (logits, replace(done, parts=parts))

    @property
    def positions(self) -> None:
        """A text may have any number of tokens."""

    @nn.nowrap
    def cache(self, batch: int, capacity: int, dtype: Any = jnp.float32) -> Cache:
        """The cache of a text's beginning: states of zeros, whose size no text changes.

        It has slots for ``capacity`` tokens, as every cache, which here count them and no more.
        """
        c = self.config
        zero = jnp.zeros((batch, c.hidden_size), dtype)
        return caches.empty([(zero,) * CELLS[type(c)].states] * c.num_layers, batch, capacity)

    @property
    def architecture(self) -> str:
        """What ``config.json`` calls the model."""
        return f"{self.config.model_type.upper()}LanguageModel"

    @nn.nowrap
    def layout(self) -> Iterator[Tensor]:
        """The checkpoint, tensor by tensor."""
        c, gates = self.config, CELLS[type(self.config)].gates
        tied = ("decoder.weight",) if c.tie_word_embeddings else ()
        yield from names.embed("encoder", "embed", copies=tied)
        for i in range(c.num_layers):
            for theirs, ours in (("ih", "input"), ("hh", "recurrent")):
                weight, bias = f"rnn.weight_{theirs}_l{i}", f"rnn.bias_{theirs}_l{i}"
                for k in range(gates):
                    place: Any = {"at": (k,), "part": (0, k, gates)}
                    yield Tensor(weight, f"layer_{i}/{ours}/kernel", axes=(1, 0), **place)
                    if c.bias:
                        yield Tensor(bias, f"layer_{i}/{ours}/bias", **place)
        if not c.tie_word_embeddings:
            yield from names.dense("decoder", "head", bias=False)
        yield Tensor("decoder.bias", "bias")

    @nn.nowrap
    def example(self) -> tuple[Any, ...]:
        """Inputs of the least size, from which the parameters' shapes follow."""
        return (jnp.zeros((1, 1), jnp.int32),)


@dataclass(frozen=True)
class Cell:
    """One step: ``(state, input parts, recurrent parts) -> state``, parts ``[batch, gates, d]``.

    ``states`` is the number of vectors in the state, of which the first is the output.
    """

    gates: int
    states: int
    step: Callable[[tuple[Array, ...], Array, Array], tuple[Array, ...]]


def lstm(state: tuple[Array, ...], x: Array, h: Array) -> tuple[Array, ...]:
    """LSTM: c <- f c + i g, h = o tanh(c), with gates i, f, g, o (Hochreiter, Schmidhuber 1997)."""
    i, f, g, o = jnp.moveaxis(x + h, 1, 0)
    cell = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def gru(state: tuple[Array, ...], x: Array, h: Array) -> tuple[Array, ...]:
    """GRU: h <- (1 - z) n + z h, n = tanh(x_n + r h_n), with gates r, z, n (arXiv:1406.1078).

    The reset gate acts after the recurrent product, as in PyTorch and in Flax.
    """
    r, z = jax.nn.sigmoid(x[:, 0] + h[:, 0]), jax.nn.sigmoid(x[:, 1] + h[:, 1])
    n = jnp.tanh(x[:, 2] + r * h[:, 2])
    return ((1 - z) * n + z * state[0],)


CELLS: Mapping[type[LSTMConfig], Cell] = {LSTMConfig: Cell(4, 2, lstm), GRUConfig: Cell(3, 1, gru)}
"""The cell of each config."""


class Layer(nn.Module):
    """One recurrent layer over all of the text; the inputs' product is taken out of the loop.

    It starts from a ``state`` and returns the last one, both None where it starts from zeros. On a
    CPU taking the product out pays at batch one; at sixteen what is stored costs as much or more.
    """

    cell: Cell
    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d"],
        state: State | None = None,
        mask: Int[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length h"], State | None]:
        gates = self.cell.gates
        inputs = Gates(gates, self.features, self.use_bias, name="input")(jnp.moveaxis(x, 1, 0))
        recurrent = Gates(gates, self.features, self.use_bias, name="recurrent")
        zero = jnp.zeros((x.shape[0], self.features), inputs.dtype)
        recur = recurrent.product(zero)
        real = None if mask is None else mask.T[..., None] > 0

        def step(state: State, now: Any) -> tuple[State, Array]:
            given, is_real = now
            new = self.cell.step(state, given, recur(state[0]))
            if is_real is not None:
                new = tuple(jnp.where(is_real, a, b) for a, b in zip(new, state, strict=True))
            return new, new[0]

        start = state or (zero,) * self.cell.states
        start = tuple(part.astype(inputs.dtype) for part in start)
        last, states = jax.lax.scan(step, start, (inputs, real))
        if state is not None:
            state = tuple(new.astype(old.dtype) for new, old in zip(last, state, strict=True))
        return jnp.moveaxis(states, 0, 1), state


class Gates(FactorModule):
    """y_g = x W_g + b_g for every gate, with W ``[gates, in, out]``."""

    gates: int
    features: int
    use_bias: bool = True

    @nn.compact
    def product(self, like: Float[Array, "*batch d"]) -> Callable[[Array], Array]:
        """The map x -> y, for inputs as wide as ``like``; it may be called inside a loop."""
        shape = (self.gates, like.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(batch_axis=0), shape)
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (self.gates, self.features)) if self.use_bias else 0
        # One matrix, put in order before the loop and not at every step.
        matrix = ops.reshape(ops.transpose(kernel, (1, 0, 2)), (shape[1], -1))
        gates = lambda y: y.reshape(*y.shape[:-1], self.gates, self.features)
        return lambda x: gates(ops.einsum("...d,de->...e", x, matrix)) + bias

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch gates f"]:
        return self.product(x)(x)


KINDS: Mapping[str, type[LSTMConfig]] = {kind.model_type: kind for kind in CELLS}
"""The configs by their ``model_type``."""


def read(config: Mapping[str, Any], tensors: Collection[str]) -> Recurrent:
    """The model that a ``config.json`` describes.

    Raises:
        CheckpointError: a key is missing or has a value of the wrong type.
    """
    return Recurrent(KINDS[config["model_type"]].from_json(config))
