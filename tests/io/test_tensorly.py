"""Containers of tensorly and back: the same tensors, and no state touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.errors import ShapeError
from lrjax.formats import LowRank
from lrjax.formats.cp import CP
from lrjax.formats.tensor_ring import TensorRing
from lrjax.formats.tensor_train import TensorTrain
from lrjax.formats.tucker import Tucker
from lrjax.io.tensorly import from_tensorly, to_tensorly

tl = pytest.importorskip("tensorly")

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


WEIGHTS = {
    "CPTensor": CP(normal(3), (normal(4, 3), normal(5, 3), normal(6, 3))),
    "TuckerTensor": Tucker(normal(2, 5, 3), (normal(4, 2), None, normal(6, 3))),
    "TTTensor": TensorTrain((normal(1, 4, 1, 2), normal(2, 5, 1, 3), normal(3, 6, 1, 1))),
    "TRTensor": TensorRing((normal(2, 4, 1, 3), normal(3, 5, 1, 4), normal(4, 6, 1, 2))),
    "TTMatrix": TensorTrain((normal(1, 4, 3, 2), normal(2, 5, 2, 1))),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_both_ways_are_the_same_tensor(name):
    before = tl.get_backend(), jax.config.jax_enable_x64
    w = WEIGHTS[name]
    there = to_tensorly(w)
    assert type(there).__name__ == name
    back = from_tensorly(there)
    full = there.to_matrix() if name == "TTMatrix" else there.to_tensor()
    dense = np.asarray(back.validate().densify())
    np.testing.assert_allclose(dense.reshape(full.shape), full, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dense.ravel(), np.asarray(w.densify()).ravel(), atol=1e-5)
    assert (tl.get_backend(), jax.config.jax_enable_x64) == before


def test_a_decomposition_of_theirs_is_a_weight_of_ours():
    from tensorly.decomposition import parafac, tensor_train

    x = RNG.standard_normal((4, 5, 6)).astype(np.float32)
    theirs = parafac(x, 3, n_iter_max=5, random_state=0)
    np.testing.assert_allclose(from_tensorly(theirs).densify(), theirs.to_tensor(), atol=1e-4)
    train = tensor_train(x, [1, 2, 3, 1])
    w = from_tensorly(train)
    assert w.shape == (4, 5, 6, 1)
    np.testing.assert_allclose(w.densify()[..., 0], train.to_tensor(), atol=1e-4)


def test_what_has_no_container_is_refused():
    with pytest.raises(TypeError, match="CPTensor"):
        from_tensorly(np.ones(3))
    with pytest.raises(TypeError, match="LowRank"):
        to_tensorly(LowRank(normal(4, 2), normal(2, 3)))
    with pytest.raises(ShapeError, match="stack"):
        to_tensorly(CP(normal(2, 3), (normal(2, 4, 3), normal(2, 5, 3))))
