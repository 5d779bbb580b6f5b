"""Costs, shardings and stacks of weights, as users meet them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lrjax import ops
from lrjax.errors import ShapeError
from lrjax.formats import Layout, LowRank, Sum, Unsupported
from tests.cases import Blocks, blocks, generator, low_rank
from tests.laws import close

P = PartitionSpec


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))


def specs(w, spec):
    return [s.spec for s in jax.tree.leaves(ops.sharding(w, mesh(), spec))]


def test_a_mesh_axis_goes_to_the_first_label_and_ranks_are_replicated():
    plain = low_rank(generator())
    assert specs(plain, P(None, "model")) == [P(None, None), P(None, "model")]
    assert specs(plain, P("model", None)) == [P("model", None), P(None, None)]
    assert specs(plain, P(("data", "model"))) == [P(("data", "model"), None), P(None, None)]
    stacked = low_rank(generator(), 2)
    assert specs(stacked, P("data", None, "model")) == [
        P("data", None, None),
        P("data", None, "model"),
    ]
    heads = low_rank(generator(), cols=(8, 5), order=(1, 0, 2))
    assert specs(heads, P("model", None, None)) == [P(None, None), P(None, "model")]
    assert specs(heads, P(None, "data", None)) == [P("data", None), P(None, None)]
    both = Sum((jnp.ones((24, 40)), plain))
    assert specs(both, P(None, "model")) == [P(None, "model"), P(None, None), P(None, "model")]
    grid = blocks(generator())
    assert specs(grid, P("data", "model")) == [P("data", "model", None, None)] * 2


def test_what_a_mesh_axis_does_not_divide_is_replicated():
    assert specs(low_rank(generator(), n=42), P(None, "model")) == [P(None, None)] * 2
    inner = low_rank(generator(), cols=(5, 8))  # the second label cannot carry a contiguous shard
    assert specs(inner, P(None, None, "model")) == [P(None, None)] * 2


def test_a_dense_weight_keeps_its_sharding_and_too_long_a_spec_is_refused():
    assert ops.sharding(jnp.ones((4, 4)), mesh(), P("data")).spec == P("data")
    with pytest.raises(ShapeError, match="2 entries"):
        ops.sharding(low_rank(generator()), mesh(), P(None, None, "data"))


def test_explicit_meshes_sum_over_a_sharded_label():
    w = low_rank(generator())
    x = np.ones((16, 24), np.float32)
    m = mesh(AxisType.Explicit)
    with jax.set_mesh(m):
        sharded = jax.device_put(w, ops.sharding(w, m, P("model", None)))
        inputs = jax.device_put(x, NamedSharding(m, P("data", "model")))
        y = jax.jit(lambda x, w: x @ w)(inputs, sharded)
        assert jax.typeof(y).sharding.spec[0] == "data"
        close(y, x @ np.asarray(ops.densify(w)))


def test_the_reduction_of_a_tensor_parallel_weight_is_over_rank_r():
    w = low_rank(generator(), m=64, n=96, r=4)
    m = mesh()
    x = jax.device_put(jnp.ones((16, 64)), NamedSharding(m, P("data", "model")))
    sharded = jax.device_put(w, ops.sharding(w, m, P("model", None)))
    text = jax.jit(lambda x, w: x @ w).lower(x, sharded).compile().as_text()
    reduced = [line for line in text.splitlines() if "all-reduce(" in line]
    assert len(reduced) == 1
    assert "f32[8,4]" in reduced[0]


def test_costs_add_up_over_a_tree():
    tree = {"w": low_rank(generator()), "dense": jnp.ones((24, 40)), "bias": jnp.ones(40)}
    cost = ops.cost(tree)
    assert cost.params == 3 * (24 + 40) + 24 * 40 + 40
    assert cost.bytes == 4 * cost.params
    assert cost.flops == 2 * (3 * (24 + 40) + 24 * 40)
    assert ops.cost(tree, rows=10).flops == 10 * cost.flops
    assert ops.cost(jax.eval_shape(lambda: tree)) == cost
    assert ops.cost({}) == ops.Cost(0, 0, 0)


def test_a_layout_says_which_dimensions_are_contracted():
    kernel = jnp.ones((3, 3, 8, 16))
    assert ops.cost(kernel, layout=Layout((0, 1, 2), (3,))).flops == 2 * 9 * 8 * 16
    w = LowRank(jnp.ones((24, 3)), jnp.ones((3, 40)), cols=(5, 8))
    backward = ops.cost(w, layout=Layout((1, 2), (0,)))
    assert backward.flops == ops.cost(w).flops == 2 * 3 * 64


def test_stacks_need_equal_factors():
    with pytest.raises(Unsupported, match="unequal"):
        ops.stack([low_rank(generator(), r=2), low_rank(generator(), r=3)])
    assert isinstance(ops.stack([blocks(generator())] * 2), Blocks)


def test_layers_chosen_by_a_traced_index_stay_factored():
    w = low_rank(generator(), 3)
    x = np.ones((5, 24), np.float32)
    dense = np.asarray(ops.densify(w))
    f = jax.jit(lambda i, w: x @ ops.take(w, i, 0, lazy=True))
    close(f(2, w), x @ dense[2])
    assert np.isnan(f(7, w)).all()
    experts = jax.jit(lambda i, w: ops.einsum("td,tdf->tf", x, ops.take(w, i, 0, lazy=True)))
    index = np.array([0, 2, 2, 1, 0])
    close(experts(index, w), np.einsum("td,tdf->tf", x, dense[index]))


def test_gradients_of_a_lookup_out_of_range_stay_finite():
    w = low_rank(generator())
    loss = lambda w: jnp.nansum(ops.take(w, np.array([1, 99])))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(loss)(w)))
