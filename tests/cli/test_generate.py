"""`lrjax generate`: text and ids from published checkpoints and from artefacts."""

import shutil

import pytest

from lrjax import io, zoo
from lrjax.generate import generate
from tests.zoo.test_goldens import GOLDENS

NEW = ("--max-new-tokens", 5)


@pytest.fixture(scope="module")
def spelling(tmp_path_factory):
    """A tiny Llama whose tokenizer spells in bytes, beginning with a token of its own."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("decoder") / "llama"
    shutil.copytree(GOLDENS / "llama", folder)
    alphabet = [*"abcdefghijklmnopqrstuvwxyz", *sorted(pre_tokenizers.ByteLevel.alphabet())[-30:]]
    vocabulary = {"<s>": 1, "</s>": 2, "Ġ": 0}
    for letter in alphabet:
        vocabulary.setdefault(letter, len(vocabulary))
    vocabulary = {token: i for token, i in vocabulary.items() if i < 61}
    spell = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    spell.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spell.decoder = decoders.ByteLevel()
    spell.add_special_tokens(["<s>", "</s>"])
    spell.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    spell.save(str(folder / "tokenizer.json"))
    return folder


def test_one_prompt_is_streamed_and_several_are_listed(run, spelling):
    one = run("generate", spelling, "--prompt", "abc", *NEW)
    assert one.code == 0, one.err
    both = run("generate", spelling, "--prompt", "abc", "--prompt", "a", *NEW, "--json").json
    first, second = both["texts"]
    assert first["prompt_ids"] == [1, 3, 4, 5]
    assert one.out == first["text"] + "\n"
    assert len(second["ids"]) <= 5
    model, params = zoo.load(spelling)
    assert (
        first["ids"] == generate(model, params, [[1, 3, 4, 5]], max_new_tokens=5, stop=(2,)).rows[0]
    )


def test_ids_need_no_tokenizer_and_artefacts_answer_like_their_source(run, spelling, tmp_path):
    model, params = zoo.load(GOLDENS / "llama")
    io.save(tmp_path / "artefact", params, config=model.config.to_json())
    asked = ("--ids", "1 3 4 5", *NEW, "--json")
    rows = [run("generate", p, *asked).json["texts"] for p in (tmp_path / "artefact", spelling)]
    assert rows[0][0]["ids"] == rows[1][0]["ids"]
    assert "text" not in rows[0][0]


def test_equal_seeds_draw_equal_texts(run, spelling):
    draw = lambda seed: run(
        *("generate", spelling, "--prompt", "abc", *NEW, "--json"),
        *("--temperature", 2, "--top-k", 40, "--top-p", 0.99, "--seed", seed),
    ).json["texts"]
    assert draw(1) == draw(1) != draw(2)


def test_a_stop_token_ends_the_text(run, spelling):
    asked = ("generate", spelling, "--prompt", "abc", *NEW, "--json")
    ids = run(*asked).json["texts"][0]["ids"]
    text = run(*asked, "--stop", ids[0]).json["texts"][0]
    assert (text["ids"], text["finish"], text["text"]) == (ids[:1], "stop", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prompt", "a", "--temperature", "-1"), "temperature: got -1.0"),
        (("--prompt", "a", "--top-k", "3"), "at temperature 0"),
        (("--prompt", "a", "--temperature", "1", "--top-p", "2"), "top_p: got 2.0"),
        (("--prompt", "a", "--max-new-tokens", "0"), "max_new_tokens: got 0"),
        (("--prompt", "a", "--max-new-tokens", "99"), "expected at most 24"),
        (("--prompt", "a", "--stop", "<oops>"), "--stop: got '<oops>'"),
        (("--ids", "1 x"), "--ids: got '1 x'"),
        (("--ids", ""), "no token in row 0"),
        (("--ids", "61"), "got ids from 61 to 61"),
        ((), "no prompt"),
    ],
)
def test_bad_input_gives_one_line_and_code_2(run, spelling, words, said):
    outcome = run("generate", spelling, *words)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert said in outcome.reason, outcome.reason


@pytest.mark.parametrize(
    ("golden", "said"),
    [("llama", "tokenizer.json: got no such file"), ("vit", "expected a decoder")],
)
def test_a_folder_that_cannot_answer_is_refused(run, golden, said):
    words = ("--prompt", "a") if golden == "llama" else ("--ids", "1")
    outcome = run("generate", GOLDENS / golden, *words)
    assert outcome.code == 2
    assert said in outcome.reason
