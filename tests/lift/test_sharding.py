"""Eight simulated devices: sharded factors give the unsharded result."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lrjax.formats.layout import Layout
from lrjax.lift import lift
from lrjax.ops import densify, sharding
from tests.lift.oracle import close, factored, normal

P = PartitionSpec
PARAMS = {"up": factored((16, 32)), "down": factored((32, 16))}
X = normal(1, 8, 16)


def mlp(p, x):
    return jax.nn.gelu(x @ p["up"]) @ p["down"]


def placed(mesh):
    specs = {"up": P(None, "model"), "down": P("model", None)}
    put = {k: jax.device_put(w, sharding(w, mesh, specs[k])) for k, w in PARAMS.items()}
    return put, jax.device_put(X, NamedSharding(mesh, P("data")))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_tensor_parallel(kind):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        params, x = placed(mesh)

        def run(p, x):
            h = jnp.einsum("bd,df->bf", x, p["up"])
            y = jnp.einsum(
                "bf,fd->bd",
                jax.nn.gelu(h),
                p["down"],
                out_sharding=P("data") if kind is AxisType.Explicit else None,
            )
            return y

        out, grads = jax.jit(
            lambda p, x: (lift(run)(p, x), jax.grad(lambda p: jnp.sum(lift(run)(p, x) ** 2))(p))
        )(params, x)
    close(jax.device_get(out), mlp(densify(PARAMS), X))
    want = jax.grad(lambda p: jnp.sum(mlp(densify(p), X) ** 2))(PARAMS)
    close(jax.device_get(grads), want)


def test_constraints_move_to_the_factors():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def run(p, x):
        w = jax.lax.with_sharding_constraint(p["up"], NamedSharding(mesh, P(None, "model")))
        return jax.nn.gelu(x @ w) @ p["down"]

    params, x = placed(mesh)
    close(jax.jit(lift(run))(params, x), mlp(densify(PARAMS), X))


def test_inside_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(lift(mlp), mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    close(jax.jit(run)(PARAMS, X), mlp(densify(PARAMS), X))


def test_stacked_layers_over_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    w = factored((3, 16, 16), Layout((1,), (2,)))
    f = lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    close(jax.jit(lift(f))(w, x), f(densify(w), X))
