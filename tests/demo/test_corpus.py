"""The corpus pairs what a function is called with what it says, and never mixes files."""

import pytest

from lrjax.demo import corpus

SOURCE = '''
"""Module docstring, not a function's."""

class Parser:
    def parse_args(self, args=None, *, strict, **rest):
        """Read the arguments
        from the command line.

        A second paragraph.
        """

    async def close(self): "Close the parser for good."

def short(x): "Too short"

def doctested(x):
    """>>> doctested(1) is only an example"""

def outer():
    """The outer function of two."""
    def inner(): "The inner function is not public."

def _again(y, /, z): "The outer function of two."
'''


@pytest.fixture
def library(tmp_path):
    (tmp_path / "pkg" / "test").mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").write_text('def hello(name): "Greet a person by name."')
    (tmp_path / "pkg" / "cmd_line.py").write_text(SOURCE)
    (tmp_path / "pkg" / "test" / "x.py").write_text('def f(): "A test is not a document."')
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "null.py").write_bytes(b"\0")
    return tmp_path


def test_queries_are_names_in_words_and_documents_are_first_paragraphs(library):
    pairs = {p.query: p.document for p in corpus.read(library)}
    assert pairs == {
        "pkg hello (name)": "Greet a person by name.",
        "pkg cmd line Parser parse args (args, strict)": (
            "Read the arguments from the command line."
        ),
        "pkg cmd line Parser close ()": "Close the parser for good.",
        "pkg cmd line outer ()": "The outer function of two.",
    }


def test_the_split_keeps_files_whole_and_does_not_depend_on_the_order():
    pairs = [
        corpus.Pair(f"f {i} ()", f"Document {i} here.", f"file{i % 40}.py") for i in range(400)
    ]
    calibration, held_out = corpus.split(pairs)
    assert {p.file for p in calibration}.isdisjoint(p.file for p in held_out)
    assert set(calibration) | set(held_out) == set(pairs)
    assert min(len(calibration), len(held_out)) > 100
    assert corpus.split(pairs[::-1]) == (calibration, held_out)


def test_the_corpus_id_tells_corpora_apart():
    a, b = corpus.Pair("f ()", "Some text.", "a.py"), corpus.Pair("g ()", "Some text.", "a.py")
    assert corpus.corpus_id([a]) == corpus.corpus_id([a]) != corpus.corpus_id([b])


def test_the_standard_library_has_enough_to_say():
    calibration, held_out = corpus.split(corpus.read())
    assert len(calibration) > 1000
    assert len(held_out) > 1000
    assert not {p.document for p in calibration} & {p.document for p in held_out}
