"""The whole job on a random little encoder: rows, artefact and picture, and nothing overwritten."""

import email
import io
import json
import string
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tokenizers
from rich.console import Console

from lrjax import demo, zoo
from lrjax.demo import corpus, job, weights
from lrjax.errors import ArtefactError, BudgetError
from lrjax.formats import is_factored
from lrjax.io import artefact


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint in the published layout whose tokenizer spells."""
    path = tmp_path_factory.mktemp("weights") / "checkpoint"
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {c: k + 2 for k, c in enumerate(string.ascii_lowercase)}
    config = zoo.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        rest='{"model_type": "bert"}',
    )
    model = zoo.Bert(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    zoo.save(path, model, jax.tree.map(lambda x: 3 * x, params))
    spell = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    spell.normalizer = tokenizers.normalizers.Lowercase()
    spell.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    spell.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def result(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    stages = []
    pairs = corpus.read(Path(email.__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "find", lambda: folder)
        patch.setattr(corpus, "read", lambda: pairs)
        with demo.progress(Console(quiet=True)) as watch:
            spy = lambda stage, steps=None: stages.append(stage) or watch(stage, steps)
            yield demo.run(out, keep=0.5, embedding_keep=0.7, watch=spy), out, stages
        with pytest.raises(ArtefactError, match="model: got something that is there"):
            demo.run(out)
        with pytest.raises(BudgetError):
            demo.run(out / "other", keep=1.5)


def test_rows_compare_dense_svd_and_compressed(result):
    found, _, stages = result
    rows = {row["name"]: row for row in json.loads(json.dumps(found.to_json()))["rows"]}
    keys = {"name", "keep", "bytes", "cosine", "recall@1", "recall@10", "sentences_per_s"}
    assert list(rows) == ["dense", "svd", "compressed"]
    assert all(row.keys() == keys for row in rows.values())
    assert rows["dense"]["keep"] == 1.0
    assert rows["dense"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert rows["compressed"]["keep"] < 1
    assert rows["compressed"]["cosine"] > rows["svd"]["cosine"]
    assert all(row["sentences_per_s"] > 0 for row in rows.values())
    assert len(stages) == len(set(stages)) > 5


def test_bytes_are_those_on_disk_and_the_artefact_loads(result):
    found, out, _ = result
    size = sum(f.stat().st_size for f in (out / "model").rglob("*") if f.is_file())
    assert {row.name: row.bytes for row in found.rows}["compressed"] == size
    loaded = artefact.load(out / "model")
    assert is_factored(loaded.params["embeddings"]["word"]["embedding"])
    assert loaded.config["hidden_size"] == 32
    assert (out / "model" / "tokenizer.json").exists()
    assert sorted(p.name for p in out.iterdir()) == ["model", "spectra.png"]


def test_the_table_says_what_the_rows_say(result):
    found, _, _ = result
    console = Console(width=100, file=io.StringIO())
    console.print(demo.table(found))
    (line,) = (x for x in console.file.getvalue().splitlines() if "compressed" in x)
    assert f"{found.rows[-1].cosine:.3f}" in line


def test_the_job_keeps_what_it_was_told_to(result):
    found, _, _ = result
    kept = {e.path: e.keep for e in found.plan.factored}
    assert kept[job.WORDS] <= 0.7
