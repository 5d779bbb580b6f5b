"""usage: dims, ties, stacks, distinct activations and biases, read off unmodified models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lrjax.formats.layout import Layout
from lrjax.lift import UseKind, usage
from tests.lift.oracle import factor, normal
from tests.lift.test_linen import TOKENS, Language, Vision, variables
from tests.lift.test_others import decoder

KEY = jax.random.key(0)


def shapes(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def test_a_scanned_language_model():
    model = Language(True)
    params = variables(model, TOKENS)["params"]
    found = usage(lambda p, t: model.apply({"params": p}, t), shapes(params), TOKENS)
    assert set(found) == {"Embed_0/embedding", *(p for p in found if p != "Embed_0/embedding")}
    at = "ScanCheckpointBlock_0/"
    mha = at + "MultiHeadDotProductAttention_0/"
    query, key, out = (found[f"{mha}{n}/kernel"] for n in ("query", "key", "out"))
    assert query.layout == key.layout == Layout((1,), (2, 3))
    assert query.uses[0].stack == (0,)
    assert out.layout == Layout((1, 2), (3,))
    assert query.uses[0].tap == key.uses[0].tap == found[mha + "value/kernel"].uses[0].tap
    assert found[at + "gate/kernel"].uses[0].tap == found[at + "up/kernel"].uses[0].tap
    assert query.uses[0].tap != found[at + "gate/kernel"].uses[0].tap
    assert query.bias == mha + "query/bias"
    assert found[at + "down/kernel"].bias == at + "down/bias"
    assert found[at + "gate/kernel"].bias is None
    embed = found["Embed_0/embedding"]
    assert embed.tied
    assert [u.kind for u in embed.uses] == [UseKind.LOOKUP, UseKind.DOT]
    assert (embed.uses[1].rows, embed.uses[1].cols) == ((1,), (0,))
    assert len(embed.matrix_uses) == 2
    assert embed.layout == Layout((0,), (1,))
    assert "linear.py" in embed.uses[0].source
    table = str(found)
    assert "lookup" in table
    assert len(table.splitlines()) >= len(found) + 1


def test_convolutions():
    model, x = Vision(), normal(1, 2, 12, 12, 4)
    given = variables(model, x, False)
    run = lambda p, x: model.apply({**given, "params": p}, x, False)
    found = usage(run, given["params"], x)
    for name in ("Conv_0", "Conv_1", "ConvTranspose_0"):
        use = found[f"{name}/kernel"]
        assert use.layout == Layout((0, 1, 2), (3,))
        assert use.uses[0].kind is UseKind.CONV
        assert use.bias == f"{name}/bias"


def test_a_plain_decoder_with_factored_weights():
    f = lambda *shape: normal(sum(shape), *shape)
    layers = {
        "q": f(2, 16, 4, 6),
        "lora_a": f(2, 16, 2),
        "lora_b": f(2, 2, 4, 6),
        "kv": f(2, 2, 16, 2, 6),
        "o": f(2, 4, 6, 16),
        "up": f(2, 16, 46),
        "down": f(2, 23, 16),
        "norm1": f(2, 16),
        "norm2": f(2, 16),
        "scale": f(2, 16),
    }
    params = {"embed": f(37, 16), "layers": layers}
    found = usage(decoder, params, TOKENS)
    assert found["layers/q"].layout == Layout((1,), (2, 3))
    assert found["layers/kv"].layout == Layout((2,), (1, 3, 4))
    assert found["layers/o"].layout == Layout((1, 2), (3,))
    assert found["layers/down"].uses[0].stack == (0,)
    assert found["layers/scale"].layout is None
    assert found["layers/norm1"].uses[0].kind is UseKind.ELEMENTWISE
    again = usage(decoder, factor(params, where=lambda p: p.endswith(("up", "embed"))), TOKENS)
    assert {p: u.layout for p, u in again.items()} == {p: u.layout for p, u in found.items()}


def test_casts_and_reshapes_do_not_part_activations():
    def f(p, x):
        heads = lambda w: (x.astype(jnp.bfloat16).reshape(-1, 8) @ w).reshape(2, 3, 2, 5)
        q, k = heads(p["q"]), heads(p["k"])
        v = jnp.einsum("bti,ij->btj", x.astype(jnp.bfloat16), p["v"])
        other = (2 * x).reshape(-1, 8) @ p["other"]
        return q, k, v, other, x @ p["first"][:, :5] + x @ p["first"][:, 5:]

    params = {k: normal(1, 8, 10) for k in ("q", "k", "v", "other", "first", "idle")}
    found = usage(f, params, normal(2, 2, 3, 8))
    taps = {k: found[k].uses[0].tap if found[k].uses else None for k in params}
    assert taps["q"] == taps["k"] == taps["v"] == taps["first"]
    assert taps["other"] not in (taps["q"], None)
    assert found["idle"].uses == ()
    assert found["idle"].layout is None
    assert "unused" in str(found)


def test_odd_uses():
    def f(p, x):
        y = jnp.einsum("td,edf->etf", x, p["experts"]) + x @ (
            p["norm"] / jnp.linalg.norm(p["norm"], axis=0)
        )
        z = lax.ragged_dot(x, p["ragged"], jnp.array([2, 3], jnp.int32))
        u = jnp.einsum("td,tdf->tf", x, p["routed"][jnp.argmax(x, -1) % 2])
        return (
            y + z,
            u,
            jnp.exp(p["odd"]),
            jnp.einsum("etd,edf->etf", jnp.stack([x] * 2), p["batched"]),
        )

    params = {k: normal(1, 2, 6, 7) for k in ("experts", "ragged", "routed", "batched")}
    params |= {"norm": normal(2, 6, 7), "odd": normal(3, 4, 5)}
    found = usage(f, params, normal(4, 5, 6))
    assert found["experts"].layout == Layout((1,), (0, 2))
    for name in ("ragged", "routed", "batched"):
        assert found[name].layout == Layout((1,), (2,))
        assert found[name].uses[0].stack == (0,)
    assert found["norm"].layout == Layout((0,), (1,))
    assert found["odd"].uses[0].primitive == "exp"


def test_an_aliased_leaf_is_tied():
    w = normal(1, 6, 6)
    found = usage(lambda p, x: x @ p["a"] @ p["b"], {"a": w, "b": w}, normal(2, 3, 6))
    assert found["a"].tied
    assert found["b"].tied


def test_nnx_state():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    graph, state = nnx.split(Two(nnx.Rngs(0)))
    found = usage(lambda s, x: nnx.merge(graph, s)(x), state, normal(1, 2, 5))
    assert found["a/kernel"].bias == "a/bias"
    assert found["b/kernel"].layout == Layout((0,), (1,))


def test_recurrent_cell_of_joined_kernels():
    model, x = nn.RNN(nn.OptimizedLSTMCell(6)), normal(1, 2, 5, 4)
    params = variables(model, x)["params"]
    found = usage(lambda p, x: model.apply({"params": p}, x), params, x)
    assert len({found[f"cell/h{g}/kernel"].uses[0].tap for g in "ifgo"}) == 1
    assert len({found[f"cell/i{g}/kernel"].uses[0].tap for g in "ifgo"}) == 1
    assert found["cell/hi/kernel"].layout == Layout((0,), (1,))
