"""Every error is also the built-in exception that its readers would catch."""

import pytest

from lrjax import errors


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.RuleError, ValueError),
        (errors.RankError, ValueError),
        (errors.ShapeError, ValueError),
        (errors.BudgetError, ValueError),
        (errors.StatsError, ValueError),
        (errors.ArtefactError, ValueError),
        (errors.CheckpointError, ValueError),
        (errors.DtypeError, TypeError),
        (errors.DensifyError, NotImplementedError),
    ],
)
def test_errors_are_builtin_errors_too(error, builtin):
    assert issubclass(error, errors.LrjaxError)
    assert issubclass(error, builtin)


def test_a_message_says_path_got_expected_and_what_to_do():
    text = errors.message(path="a/b", got="3", expected="4", todo="Count again.")
    assert text == "a/b: got 3; expected 4. Count again."
    assert errors.message(got=1, expected=2, todo="Do.").startswith("got 1")
