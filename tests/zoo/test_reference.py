"""Random configurations of every family equal the reference: dense, factored, decoded, written."""

import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from lrjax import trees, zoo
from tests.reference import ask, reference
from tests.zoo.test_goldens import full_rank, golden, run

SCRIPT = pathlib.Path(__file__).with_name("random_models.py")
TOLERANCE = 1e-4
PROMPT = 5


def decode(model, params, ids, mask):
    """The outputs of a prompt in one piece and the rest token by token, through the cache."""
    cache = model.cache(*ids.shape)
    apply = lambda ids, mask, cache: model.apply({"params": params}, ids, mask, None, cache=cache)
    head, cache = apply(ids[:, :PROMPT], mask[:, :PROMPT], cache)
    outputs, step = [head], jax.jit(apply)
    for i in range(PROMPT, ids.shape[1]):
        output, cache = step(ids[:, i : i + 1], mask[:, i : i + 1], cache)
        outputs.append(output)
    return np.concatenate(outputs, axis=1)


def errors(folder):
    """How far each way of running the model is from the reference; writes it whole and factored."""
    model, params, inputs, wanted, real = golden(folder)
    leaves = trees.flatten(params)[0]
    factored = trees.replace(params, {path: full_rank(path, w) for path, w in leaves.items()})
    found = {"dense": run(model, params, inputs), "factored": run(model, factored, inputs)}
    if hasattr(model, "cache"):
        found["decoded"] = decode(model, factored, inputs["input_ids"], inputs["attention_mask"])
    zoo.save(folder / "same", model, params)
    zoo.save(folder / "dense", model, factored)
    return {name: np.abs(output - wanted)[real].max() for name, output in found.items()}


def tensors(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [7, 8])
def test_random_models_equal_the_reference(tmp_path, seed):
    python = reference("torch", "transformers")
    ask(python, SCRIPT, "make", tmp_path, seed)
    worst = {folder.name: errors(folder) for folder in sorted(tmp_path.iterdir())}
    assert len(worst) > 20
    assert not {name: e for name, e in worst.items() if not max(e.values()) < TOLERANCE}
    for name in worst:
        old, new = tensors(tmp_path / name), tensors(tmp_path / name / "same")
        assert old.keys() == new.keys()
        for key in old:
            np.testing.assert_array_equal(old[key], new[key], err_msg=f"{name}: {key}")
    ask(python, SCRIPT, "judge", tmp_path)
