"""Generation against the loop that reads the whole text again for every token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax import trees, zoo
from lrjax.errors import GenerationError
from lrjax.generate import Finish, Greedy, Sample, generate, pad
from tests.zoo.test_goldens import full_rank, golden, quick

PROMPTS = [[1, 2, 3, 4, 5], [7, 8], [9, 10, 11]]
NEW = 6


@functools.cache
def by_hand(name):
    """The likeliest tokens after every prompt, each from the logits of the whole text."""
    model, params, *_ = golden(name)
    apply = quick(lambda ids: model.apply({"params": params}, ids))
    texts = [list(prompt) for prompt in PROMPTS]
    for _ in range(NEW):
        ids = jnp.asarray([text + (12 - len(text)) * [0] for text in texts])
        logits = apply(ids)
        for row, text in enumerate(texts):
            text.append(int(logits[row, len(text) - 1].argmax()))
    return [text[-NEW:] for text in texts]


def run(name, prompts=PROMPTS, **options):
    model, params, *_ = golden(name)
    ids, mask = pad(prompts)
    return generate(model, params, ids, attention_mask=mask, max_new_tokens=NEW, **options)


@pytest.mark.parametrize("name", ["gpt2", "lstm", "mixtral"])
def test_greedy_text_is_that_of_the_whole_forward_pass(name):
    out = run(name)
    assert out.rows == by_hand(name)
    assert out.finish == 3 * [Finish.LENGTH]


def test_factored_and_scanned_weights_write_the_same_text():
    model, params, *_ = golden("llama")
    factored = trees.map_weights(full_rank, params, with_path=True)
    ids, mask = pad(PROMPTS)
    scanned = zoo.scan_layers(model, factored)
    out = generate(*scanned, ids, attention_mask=mask, max_new_tokens=NEW)
    assert out.rows == by_hand("llama")


def test_stop_tokens_end_their_row_alone():
    expected = by_hand("llama")
    stop = expected[0][2]
    assert stop not in expected[0][:2] + expected[1]
    out = run("llama", stop=(stop,))
    assert out.rows[:2] == [expected[0][:3], expected[1]]
    assert out.finish[:2] == [Finish.STOP, Finish.LENGTH]
    np.testing.assert_array_equal(out.tokens[0, 3:], 0)


def test_tokens_are_handed_out_as_they_come():
    said = []
    stop = (by_hand("llama")[0][2],)
    out = run("llama", stop=stop, on_token=lambda *given: said.append(given))
    assert out.rows == run("llama", stop=stop).rows
    for row, tokens in enumerate(out.rows):
        assert tokens == [int(t[row]) for t, goes_on in said if goes_on[row]]


def test_the_loop_ends_when_all_rows_have_stopped():
    said = []
    out = run("llama", stop=range(60), on_token=lambda *given: said.append(given))
    assert len(said) == max(map(len, out.rows)) < NEW
    assert out.finish == 3 * [Finish.STOP]


def test_draws_depend_on_the_key_and_on_no_other_row():
    draw = lambda seed, **more: run(
        "llama", sampling=Sample(1.5, top_k=20, top_p=0.95), key=jax.random.key(seed), **more
    )
    assert draw(3).rows == draw(3).rows != draw(4).rows
    other = draw(3, prompts=[PROMPTS[0], [3], [1, 1, 1, 1, 1, 1]])
    assert other.rows[0] == draw(3).rows[0]


def test_padding_may_be_on_the_right():
    model, params, *_ = golden("llama")
    ids, mask = pad([prompt[::-1] for prompt in PROMPTS])
    right = {"input_ids": ids[:, ::-1], "attention_mask": mask[:, ::-1]}
    assert generate(model, params, **right, max_new_tokens=NEW).rows == by_hand("llama")


def test_few_lengths_are_compiled():
    from lrjax.generate import decode

    before = decode.begin._cache_size(), decode.finish._cache_size()
    for length in (1, 2, 6):
        run("llama", prompts=[length * [5], [3], [4]])
    after = decode.begin._cache_size(), decode.finish._cache_size()
    assert all(b <= a + 1 for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input_ids": [[]]}, "input_ids: got no token in row 0"),
        ({"input_ids": np.zeros((0, 3), int)}, "input_ids: got no rows"),
        ({"input_ids": [[1.5]]}, "input_ids: got float64"),
        ({"input_ids": [1, 2]}, r"expected integers \[batch, length\]"),
        ({"input_ids": [[61]]}, "got ids from 61 to 61; expected ids from 0 to 60"),
        ({"attention_mask": [[0, 0]]}, "no token in row 0"),
        ({"attention_mask": [[1]]}, r"attention_mask: got shape \(1, 1\)"),
        ({"input_ids": [24 * [1]]}, "got 24 tokens, and 2 to come; expected at most 24"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"max_new_tokens": 24}, "got 2 tokens, and 24 to come"),
        ({"sampling": Sample(0.0), "key": jax.random.key(0)}, "temperature: got 0.0"),
        ({"sampling": Sample()}, "key: got None, with Sample"),
        ({"stop": (99,)}, r"stop: got \(99,\)"),
    ],
)
def test_what_cannot_be_generated_is_refused(change, said):
    model, params, *_ = golden("llama")
    given = {"input_ids": [[1, 2]], "max_new_tokens": 2} | change
    with pytest.raises(GenerationError, match=said):
        generate(model, params, **given)


def test_encoders_are_refused():
    model, params, *_ = golden("vit")
    with pytest.raises(GenerationError, match="got a ViT; expected a decoder"):
        generate(model, params, [[1]], max_new_tokens=1, sampling=Greedy())
