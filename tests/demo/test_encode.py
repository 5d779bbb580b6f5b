"""Batches have few shapes, hold every text once, and lead back to the order of the texts."""

import numpy as np
import pytest
import tokenizers

from lrjax.demo.encode import LENGTHS, TOKENS, Tokenizer, batches, encode
from lrjax.errors import CheckpointError

RNG = np.random.default_rng(0)
SIZES = [*RNG.integers(1, LENGTHS[-1] + 1, 300), LENGTHS[-1]]
TEXTS = [RNG.integers(1, 99, n).tolist() for n in SIZES]


def test_every_text_is_in_one_batch_and_padding_is_masked():
    found = list(batches(TEXTS))
    assert sorted(i for b in found for i in b.positions) == list(range(len(TEXTS)))
    assert {b.ids.shape for b in found} == {(TOKENS // n, n) for n in LENGTHS}
    for b in found:
        for row, i in enumerate(b.positions):
            assert list(b.ids[row][b.mask[row] > 0]) == TEXTS[i]
        assert b.mask.sum() == sum(len(TEXTS[i]) for i in b.positions)


def test_encode_gives_the_rows_in_the_order_of_the_texts():
    calls = []
    totals = lambda ids, mask: np.stack([(ids * mask).sum(1), mask.sum(1)], 1)
    sums = lambda params, ids, mask: np.float32(params * totals(ids, mask))
    rows = encode(sums, 2, batches(TEXTS), len(TEXTS), lambda: calls.append(1))
    np.testing.assert_array_equal(rows, [[2 * sum(t), 2 * len(t)] for t in TEXTS])
    assert len(calls) == len(list(batches(TEXTS)))


def test_no_batch_is_longer_than_its_texts():
    (batch,) = batches([[7], [8, 9]])
    assert batch.ids.shape == (TOKENS // 2, 2)
    assert list(batches([])) == []
    assert [b.positions for b in batches([[], [1]])] == [(0, 1)]


def test_texts_are_cut_at_the_positions_of_the_model(tmp_path):
    spell = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 1}, unk_token="a"))
    spell.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    spell.save(str(tmp_path / "tokenizer.json"))
    texts = ["a a a", "a " * 500]
    assert [len(ids) for ids in Tokenizer(tmp_path)(texts)] == [3, LENGTHS[-1]]
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 20}')
    assert [len(ids) for ids in Tokenizer(tmp_path)(texts)] == [3, 20]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
