"""The errors that lrjax raises: few, each also the built-in exception that it specialises."""


class LrjaxError(Exception):
    """Base of every error raised by lrjax."""


class RuleError(LrjaxError, ValueError):
    """A rule (path glob to spec) matches nothing, or nothing that is left."""


class RankError(LrjaxError, ValueError):
    """A rank is below one, above the matrix size, or otherwise impossible."""


class ShapeError(LrjaxError, ValueError):
    """Arrays do not fit together, or not the dense weight they stand for."""


class BudgetError(LrjaxError, ValueError):
    """A budget is malformed or cannot be met."""


class StatsError(LrjaxError, ValueError):
    """Calibration statistics are missing, empty, or of another model."""


class ArtefactError(LrjaxError, ValueError):
    """A saved artefact is incomplete, corrupt, or of an unknown version."""


class CheckpointError(LrjaxError, ValueError):
    """A checkpoint does not hold what its model needs."""


class GenerationError(LrjaxError, ValueError):
    """Prompts or options from which no text can be generated."""


class DtypeError(LrjaxError, TypeError):
    """Factors have dtypes that cannot stand for one weight."""


class DensifyError(LrjaxError, NotImplementedError):
    """An operation would have to rebuild the dense weight, and may not."""


def message(*, got: object, expected: object, todo: str, path: str | None = None) -> str:
    """The three-part text of an error: what was got, what was expected, what to do.

    Args:
      got: what was found.
      expected: what should have been there.
      todo: an imperative sentence that says how to proceed.
      path: tree path of the weight, if there is one.
    """
    where = f"{path}: " if path else ""
    return f"{where}got {got}; expected {expected}. {todo}"
