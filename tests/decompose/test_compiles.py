"""Equal shapes and ranks compile once, whatever the values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import decompose as d

M, N = 12, 24
COMPILED: list[str] = []


def listen(event: str, seconds: float, **_) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(listen)

SPECS = [
    d.SVD(3),
    d.Tucker((2, 2, 3), modes=(3, 4, 24), smallest=2),
    d.TensorTrain((2,), rows=(3, 4), cols=(4, 6)),
    d.Kronecker(2, (3, 4)),
    d.NMF(3, iterations=5),
    d.BLAST(2, grid=(2, 2)),
    d.Monarch(1, grid=(3, 4)),
    d.LowRankDiagonal(2),
]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_second_weight_of_a_shape_compiles_nothing(spec):
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.standard_normal((M, N)), jnp.float32) for _ in range(2))
    before = len(COMPILED)
    jax.block_until_ready(d.solve(spec, first)[1])
    assert len(COMPILED) > before  # the listener hears
    before = len(COMPILED)
    jax.block_until_ready(d.solve(spec, second)[1])
    assert len(COMPILED) == before
