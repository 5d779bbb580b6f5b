"""Unmodified Linen models on factored parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from lrjax.formats.layout import Layout
from lrjax.lift import lift
from lrjax.ops import densify
from tests.lift.oracle import check, close, dense_values, factor, fill, normal

KEY = jax.random.key(0)
TOKENS = jnp.arange(14).reshape(2, 7) % 11


class Block(nn.Module):
    """Pre-norm attention and a gated feed-forward, as scanned by a language model."""

    width: int = 20

    @nn.compact
    def __call__(self, x, mask):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(4)(h, mask=mask)
        h = nn.RMSNorm()(x)
        gate, up = (nn.Dense(28, use_bias=False, name=n)(h) for n in ("gate", "up"))
        return x + nn.Dense(self.width, name="down")(nn.silu(gate) * up), None


class Language(nn.Module):
    """Tied embedding, scanned and rematerialised blocks."""

    scanned: bool = True

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(23, 20)
        x = embed(tokens) * 20**0.5
        mask = nn.make_causal_mask(tokens)
        if self.scanned:
            scan = nn.scan(
                nn.remat(Block),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=3,
            )
            x, _ = scan()(x, mask)
        else:
            for _ in range(2):
                x, _ = Block()(x, mask)
        return embed.attend(nn.LayerNorm()(x))


class Vision(nn.Module):
    """Convolutions with strides, groups and dilation, and batch statistics."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(10, (3, 3), strides=2)(x))
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Conv(14, (3, 3), kernel_dilation=2, padding="VALID", feature_group_count=2)(x)
        x = nn.ConvTranspose(6, (2, 2), strides=(2, 2))(x)
        return nn.Dense(9)(nn.avg_pool(x, (2, 2)).reshape(x.shape[0], -1))


def init(model, *args, layouts=None):
    return factor(variables(model, *args)["params"], layouts)


def variables(model, *args):
    """What init would give, without running it."""
    return fill(jax.eval_shape(lambda key: model.init(key, *args), KEY))


@pytest.mark.parametrize("scanned", [True, False])
def test_language_model(scanned):
    model = Language(scanned)
    layouts = None
    if scanned:
        at, mha = "ScanCheckpointBlock_0/", "MultiHeadDotProductAttention_0/"
        layouts = {at + n + "/kernel": Layout((1,), (2,)) for n in ("gate", "up", "down")}
        layouts |= {
            at + mha + n + "/kernel": Layout((1,), (2, 3)) for n in ("query", "key", "value")
        }
        layouts[at + mha + "out/kernel"] = Layout((1, 2), (3,))
    params = init(model, TOKENS, layouts=layouts)
    check(lambda p, t: model.apply({"params": p}, t), params, TOKENS, cheaper=True, grad=scanned)


def test_vision_model_with_batch_statistics():
    model = Vision()
    x = normal(1, 2, 12, 12, 4)
    layouts = {
        f"{n}/kernel": Layout((0, 1, 2), (3,)) for n in ("Conv_0", "Conv_1", "ConvTranspose_0")
    }
    given = variables(model, x, True)
    params = factor(given["params"], layouts)
    stats = given["batch_stats"]

    def run(p, x):
        return model.apply({"params": p, "batch_stats": stats}, x, True, mutable=["batch_stats"])

    check(run, params, x, grad=False)


@pytest.mark.parametrize(
    "cell", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell", "MGUCell"]
)
def test_recurrent_cells(cell):
    model = nn.RNN(getattr(nn, cell)(10))
    x = normal(1, 2, 6, 7)
    check(lambda p, x: model.apply({"params": p}, x), init(model, x), x)


def test_bidirectional_and_masked():
    model = nn.Bidirectional(nn.RNN(nn.LSTMCell(10)), nn.RNN(nn.GRUCell(10)))
    x = normal(1, 2, 6, 7)
    run = lambda p, x: model.apply({"params": p}, x, seq_lengths=jnp.array([6, 4]))
    check(run, init(model, x), x, grad=False)


class Odds(nn.Module):
    """Less usual modules, and a parameter of the user's own."""

    @nn.compact
    def __call__(self, x):
        x = nn.WeightNorm(nn.Dense(11))(x)
        x = nn.Einsum((11, 3, 5), "btd,dhk->bthk", use_bias=False)(x)
        x = nn.DenseGeneral(13, axis=(-2, -1))(x)
        w = self.param("own", nn.initializers.normal(), (17, 13))
        x = jnp.einsum("btd,ed->bte", x, w) + nn.Dense(17, dtype=jnp.bfloat16)(x).astype(x.dtype)
        x = nn.Dense(6, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "m")))(x)
        return nn.DenseGeneral((2, 3), batch_dims=(0,))(x) if x.shape[0] == 2 else x


def test_other_modules():
    model, x = Odds(), normal(1, 2, 4, 9)
    params = init(model, x, layouts={"DenseGeneral_1/kernel": Layout((1,), (2, 3))})
    check(lambda p, x: model.apply({"params": p}, x), params, x, tol=2e-2)


def test_vmapped_experts():
    class Experts(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.vmap(
                nn.Dense,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=None,
                axis_size=3,
            )
            y = jnp.moveaxis(dense(12)(x), 0, -1)
            return jnp.einsum("bde,be->bd", y, nn.softmax(nn.Dense(3)(x)))

    model, x = Experts(), normal(1, 5, 8)
    params = init(model, x, layouts={"VmapDense_0/kernel": Layout((1,), (2,))})
    check(lambda p, x: model.apply({"params": p}, x), params, x)


def test_dropout_and_static_arguments():
    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(12)(nn.Dropout(0.5, deterministic=not train)(x))

    model, x = Drop(), normal(1, 5, 8)
    params = {"params": init(model, x, False)}
    run = lift(model.apply)
    key = jax.random.key(3)
    ours = jax.jit(lambda p: run(p, x, True, rngs={"dropout": key}))(params)
    close(ours, model.apply(densify(params), x, True, rngs={"dropout": key}))
    assert not dense_values(lambda p: run(p, x, False), params)
