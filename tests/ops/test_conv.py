"""Convolution with a factored kernel equals the dense one, for every layout and window."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lrjax import ops
from lrjax.errors import ShapeError
from lrjax.formats import Factored, LowRank, Network, Sum, Unsupported, register
from tests.cases import generator, normal
from tests.laws import close, values

CIN, COUT, KH, KW = 6, 8, 3, 2


@register
@dataclasses.dataclass(frozen=True)
class Tucker2(Factored):
    core: Any
    first: Any
    last: Any

    def networks(self):
        return (Network.parse("h w a b, i a, o b -> h w i o", self.core, self.first, self.last),)


@register
@dataclasses.dataclass(frozen=True)
class Canonical(Factored):
    h: Any
    w: Any
    i: Any
    o: Any

    def networks(self):
        return (Network.parse("h r, w r, i r, o r -> h w i o", self.h, self.w, self.i, self.o),)


@register
@dataclasses.dataclass(frozen=True)
class Spatial(Factored):
    """Cut between the window and the channels."""

    window: Any
    channels: Any

    def networks(self):
        return (Network.parse("h w r, r i o -> h w i o", self.window, self.channels),)


def kernels(cin=CIN, cout=COUT):
    n = lambda *shape: normal(generator(sum(shape)), *shape)
    return {
        "rows_hwi": LowRank(n(KH * KW * cin, 3), n(3, cout), rows=(KH, KW, cin)),
        "rows_i": LowRank(n(cin, 3), n(3, KH * KW * cout), cols=(KH, KW, cout), order=(1, 2, 0, 3)),
        "rows_hi": LowRank(
            n(KH * cin, 3), n(3, KW * cout), rows=(KH, cin), cols=(KW, cout), order=(0, 2, 1, 3)
        ),
        "tucker2": Tucker2(n(KH, KW, 2, 3), n(cin, 2), n(cout, 3)),
        "cp": Canonical(n(KH, 4), n(KW, 4), n(cin, 4), n(cout, 4)),
        "spatial": Spatial(n(KH, KW, 2), n(2, cin, cout)),
        "sum": Sum(
            (
                n(KH, KW, cin, cout),
                LowRank(n(KH * KW * cin, 3), n(3, cout), rows=(KH, KW, cin)),
            )
        ),
    }


WINDOWS = {
    "plain": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 3), "padding": "VALID"},
    "dilated": {"window_strides": (1, 2), "padding": ((2, 1), (0, 3)), "rhs_dilation": (2, 1)},
    "transposed": {"window_strides": (1, 1), "padding": ((2, 2), (1, 1)), "lhs_dilation": (2, 2)},
}


def agrees(w, x, **kw):
    got = jax.jit(lambda x, w: ops.conv_general_dilated(x, w, **kw))(x, w)
    close(got, jax.jit(lambda x, w: lax.conv_general_dilated(x, w, **kw))(x, ops.densify(w)), 1e-4)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kernel", kernels())
def test_equals_the_dense_convolution(kernel, window):
    x = normal(generator(), 2, 9, 7, CIN)
    numbers = ("NHWC", "HWIO", "NHWC")
    agrees(kernels()[kernel], x, dimension_numbers=numbers, **WINDOWS[window])


@pytest.mark.parametrize(
    "numbers",
    [("NCHW", "OIHW", "NCHW"), ("NCHW", "HWIO", "NHWC"), ("HWNC", "IHWO", "CNHW"), None],
    ids=str,
)
def test_every_layout_of_dimensions(numbers):
    dn = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, numbers)
    x = normal(generator(), 2, CIN, 9, 7).transpose(np.argsort(dn.lhs_spec))
    w = ops.transpose(
        ops.transpose(kernels()["tucker2"], (3, 2, 0, 1)), np.argsort(dn.rhs_spec).tolist()
    )
    agrees(w, x, window_strides=(2, 1), padding="SAME", dimension_numbers=numbers)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("kernel", kernels())
def test_feature_groups_are_exact(kernel, groups):
    x = normal(generator(), 2, 9, 7, CIN * groups)
    agrees(
        kernels()[kernel],
        x,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize("ndim", [1, 3])
def test_one_and_three_spatial_dimensions(ndim):
    size = (3,) * ndim
    letters = "DHW"[-ndim:]
    w = LowRank(
        normal(generator(), 3**ndim * CIN, 4), normal(generator(1), 4, COUT), rows=(*size, CIN)
    )
    x = normal(generator(), 2, *(5,) * ndim, CIN)
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    agrees(w, x, window_strides=(1,) * ndim, padding="SAME", dimension_numbers=numbers)


def test_a_low_rank_kernel_runs_as_two_convolutions_and_never_forms():
    w = LowRank(normal(generator(), 3 * 3 * 64, 4), normal(generator(1), 4, 96), rows=(3, 3, 64))
    x = normal(generator(), 1, 6, 6, 64)
    f = lambda x, w: ops.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    jaxpr = jax.make_jaxpr(jax.grad(lambda x, w: f(x, w).sum(), (0, 1)))(x, w).jaxpr
    assert max(int(np.prod(shape)) for shape in values(jaxpr)) < w.size
    flops = jax.jit(f).lower(x, w).compile().cost_analysis()["flops"]
    dense = jax.jit(f).lower(x, ops.densify(w)).compile().cost_analysis()["flops"]
    assert flops < dense * (9 * 64 * 4 + 4 * 96) / (9 * 64 * 96) * 1.05


def test_lazy_concatenations_of_kernels():
    a, b = kernels()["rows_hwi"], kernels()["tucker2"]
    x = normal(generator(), 2, 9, 7, CIN)
    kw = {
        "window_strides": (1, 1),
        "padding": "SAME",
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }
    agrees(ops.concatenate([a, b], 3), x, **kw)
    agrees(ops.concatenate([a, b], 2), jnp.concatenate([x, x], -1), **kw)
    with pytest.raises(Unsupported, match="concatenated"):
        ops.conv_general_dilated(x, ops.concatenate([a, b], 0), **kw)


def test_bfloat16_and_preferred_element_type():
    w = kernels()["tucker2"].astype(jnp.bfloat16)
    x = normal(generator(), 2, 9, 7, CIN).astype(jnp.bfloat16)
    kw = {
        "window_strides": (1, 1),
        "padding": "SAME",
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }
    assert ops.conv_general_dilated(x, w, **kw).dtype == jnp.bfloat16
    wide = ops.conv_general_dilated(x, w, preferred_element_type=jnp.float32, **kw)
    assert wide.dtype == jnp.float32
    dense = lax.conv_general_dilated(x, ops.densify(w), preferred_element_type=jnp.float32, **kw)
    close(wide, dense, 3e-2)


def test_refusals():
    w = kernels()["rows_hwi"]
    kw = {
        "window_strides": (1, 1),
        "padding": "SAME",
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }
    with pytest.raises(ShapeError, match="5 input channels"):
        ops.conv_general_dilated(jnp.ones((1, 9, 7, 5)), w, **kw)
    with pytest.raises(Unsupported, match="batch groups"):
        ops.conv_general_dilated(jnp.ones((2, 9, 7, CIN)), w, batch_group_count=2, **kw)
    with pytest.raises(Unsupported, match="factored array"):
        ops.conv_general_dilated(w, jnp.ones((1, 1, CIN, 2)), **kw)
