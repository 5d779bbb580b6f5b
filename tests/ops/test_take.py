"""`ops.take` reads indices as `jnp.take` does."""

import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import ops
from tests.cases import generator, low_rank


@pytest.mark.parametrize("mode", ["fill", "clip", "wrap"])
def test_indices_of_one_byte_reach_rows_beyond_it(mode):
    w = low_rank(generator(), m=300, n=7, r=2)
    dense = np.asarray(w.left, float) @ np.asarray(w.right, float)
    for ids in (np.array([0, 100, 255], np.uint8), np.array([-1, 100, -128], np.int8)):
        rows = np.clip(ids, 0, None) if mode == "clip" else ids.astype(int)
        np.testing.assert_allclose(ops.take(w, jnp.asarray(ids), mode=mode), dense[rows], atol=1e-5)
