"""Small sources of every kind, and a way to run a command as a user would."""

import dataclasses
import json
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import io, zoo
from lrjax.cli import main


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self):
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def reason(self):
        """The last line on stderr; progress stands above it."""
        return self.err.rstrip().splitlines()[-1]


@pytest.fixture
def run(capsys):
    def run(*argv):
        with pytest.raises(SystemExit) as exit:
            main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Outcome(exit.value.code, captured.out, captured.err)

    return run


def decaying(key, m, n):
    """A matrix with singular values 1, 1/2, 1/3, ..."""
    u, _, vt = np.linalg.svd(np.asarray(jax.random.normal(key, (m, n))), full_matrices=False)
    return (u / np.arange(1, 1 + min(m, n))) @ vt


@pytest.fixture(scope="session")
def weights():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "layers.0.weight": decaying(keys[0], 48, 32).astype(np.float32),
        "layers.0.bias": np.zeros(48, np.float32),
        "layers.1.weight": decaying(keys[1], 48, 32).astype(np.float32),
        "head.weight": decaying(keys[2], 16, 48).astype(np.float32),
    }


@pytest.fixture(scope="session")
def bare(weights, tmp_path_factory):
    """A safetensors file of somebody's model."""
    file = tmp_path_factory.mktemp("bare") / "theirs.safetensors"
    io.hf.write_file(file, weights)
    return file


@pytest.fixture(scope="session")
def orbax(weights, tmp_path_factory):
    """The same as a nested tree saved by orbax."""
    import orbax.checkpoint as ocp

    folder = tmp_path_factory.mktemp("orbax") / "step"
    tree = {
        "layers": [
            {"weight": weights["layers.0.weight"], "bias": weights["layers.0.bias"]},
            {"weight": weights["layers.1.weight"]},
        ],
        "head": {"weight": weights["head.weight"]},
    }
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A tiny BERT in the published layout, whose tokenizer spells."""
    import tokenizers

    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {c: k + 2 for k, c in enumerate(string.ascii_lowercase)}
    config = zoo.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
        rest='{"model_type": "bert"}',
    )
    model = zoo.Bert(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda s: draw.normal(0, 0.5, s.shape).astype(np.float32), shapes)
    zoo.save(folder, model, params)
    spell = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    spell.normalizer = tokenizers.normalizers.Lowercase()
    spell.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    spell.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    words = ["join", "open", "close", "read", "write", "the", "file", "path", "of", "a"]
    draw = np.random.default_rng(0)
    file.write_text("\n".join(" ".join(draw.choice(words, 5)) for _ in range(60)) + "\n\n")
    return file
