"""Every model says what the reference implementation says, with dense or with factored weights.

Golden files are made by ``make_goldens.py``.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from lrjax import trees, zoo
from lrjax.formats import LowRank

GOLDENS = pathlib.Path(__file__).parent / "goldens"
NAMES = sorted(
    path.parent.name for path in GOLDENS.glob("*/golden.npz") if "output" in np.load(path).files
)


@functools.cache
def golden(name):
    """The model, its parameters, the inputs, what the reference says, and where it counts."""
    model, params = zoo.load(GOLDENS / name)
    inputs = {k: jnp.asarray(v) for k, v in np.load(GOLDENS / name / "golden.npz").items()}
    output = np.asarray(inputs.pop("output"))
    mask = inputs.get("attention_mask")
    real = mask > 0 if mask is not None and output.ndim == 3 else np.ones(len(output), bool)
    return model, params, inputs, output, np.asarray(real)


quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles what runs once."""


def run(model, params, inputs):
    apply = lambda params: model.apply({"params": params}, **inputs)
    # Texts of one shape share the operations that are compiled one by one; images share few.
    return np.asarray((quick(apply) if "pixel_values" in inputs else apply)(params))


def full_rank(path, leaf):
    """The weight as a product of its full rank, each expert or gate by itself."""
    if not path.endswith(("kernel", "embedding")):
        return leaf
    w = np.asarray(leaf)
    rows = w.shape[:-1] if w.ndim == 4 else None  # of a convolution
    u, s, vt = np.linalg.svd(w if rows is None else w.reshape(-1, w.shape[-1]), full_matrices=False)
    return LowRank(jnp.asarray(u * s[..., None, :]), jnp.asarray(vt), rows=rows)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_the_reference(name):
    model, params, inputs, output, real = golden(name)
    np.testing.assert_allclose(run(model, params, inputs)[real], output[real], atol=1e-5)


VARIATIONS = dict(np.load(GOLDENS / "variations.npz"))
CONFIGS = json.loads(str(VARIATIONS.pop("configs")))


@pytest.mark.parametrize("name", VARIATIONS)
def test_other_configs_mean_what_they_mean_to_the_reference(name):
    base, changes = CONFIGS[name]["golden"], CONFIGS[name]["changes"]
    config = json.loads((GOLDENS / base / "config.json").read_text()) | changes
    _, params, inputs, _, real = golden(base)
    model = zoo.model_of(config, params)
    np.testing.assert_allclose(run(model, params, inputs)[real], VARIATIONS[name][real], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_full_rank_factors_leave_the_output_where_it_was(name):
    model, params, inputs, output, real = golden(name)
    factored = trees.map_weights(full_rank, params, with_path=True)
    np.testing.assert_allclose(run(model, factored, inputs)[real], output[real], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_out_and_in_again_is_bit_equal(name, tmp_path):
    model, params, *_ = golden(name)
    zoo.save(tmp_path / "again", model, params)
    files = [folder / "model.safetensors" for folder in (GOLDENS / name, tmp_path / "again")]
    before, after = map(safetensors.numpy.load_file, files)
    assert before.keys() == after.keys()
    for tensor in before:
        np.testing.assert_array_equal(before[tensor], after[tensor], strict=True)
    assert zoo.load(tmp_path / "again")[0] == model


@pytest.mark.parametrize("name", NAMES)
def test_layout_fills_every_parameter_of_its_shape(name):
    model, params, *_ = golden(name)
    leaves, filled = trees.flatten(params)[0], {}
    for t in model.layout():
        whole = np.prod(t.published(leaves[t.path].shape), dtype=int)
        filled[t.path] = filled.get(t.path, 0) + whole // (t.part[2] if t.part else 1)
    assert filled == {path: leaf.size for path, leaf in leaves.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "resnet"])
def test_gradients_reach_every_factor(name):
    model, params, inputs, *_ = golden(name)
    factored = trees.map_weights(full_rank, params, with_path=True)
    loss = lambda params: jnp.square(model.apply({"params": params}, **inputs)).sum()
    for path, leaf in trees.flatten(quick(jax.grad(loss))(factored))[0].items():
        assert all(np.isfinite(g).all() and np.any(g != 0) for g in jax.tree.leaves(leaf)), path
