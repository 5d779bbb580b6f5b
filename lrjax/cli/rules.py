"""Rules, budgets and metrics as they are written on a command line."""

import ast
import enum
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lrjax.errors import BudgetError, LrjaxError, RuleError, message

T = TypeVar("T")

SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def read_rules(
    texts: Sequence[str] | None, file: Path | None, metric: Any = None
) -> dict[str, Any]:
    """Glob to spec, list of specs, or None (stay dense); every matrix by SVD if nothing is given.

    Where the metric weighs entries, which no SVD can, it is by `WeightedLowRank`.

    Raises:
        RuleError: a rule that cannot be read, or two for one glob.
    """
    from lrjax.metrics import Need

    by_entries = metric is not None and Need.ELEMENT_FISHER in metric.needs
    usual = "WeightedLowRank" if by_entries else "SVD"
    pairs = [_split(text, usual) for text in texts or ()]
    if file is not None:
        pairs += _file(file)
    if not pairs:
        pairs = [("**", usual)]
    rules: dict[str, Any] = {}
    for glob, value in pairs:
        if glob in rules:
            raise RuleError(
                message(path=glob, got="two rules", expected="one", todo="Drop one of them.")
            )
        rules[glob] = _spec(glob, value)
    return rules


def read_budget(
    keep: Sequence[str] | None, nbytes: Sequence[str] | None, flops: Sequence[str] | None
) -> Any:
    """One budget, a budget for each glob, or None where nothing is given.

    Raises:
        BudgetError: a number that cannot be read, or one budget for all beside one for a glob.
    """
    from lrjax.plan import Budget

    found: dict[str | None, Any] = {}
    kinds: tuple[tuple[str, Sequence[str] | None, Callable[[str], Any]], ...] = (
        ("keep", keep, _number),
        ("bytes", nbytes, _count),
        ("flops", flops, _count),
    )
    for name, texts, parse in kinds:
        for text in texts or ():
            glob, value = _split(text, None)
            key, value = (None, glob) if value is None else (glob, value)
            if key in found:
                todo = "Give one of --keep, --bytes, --flops for each glob."
                got = f"two budgets for {key or 'all weights'}"
                raise BudgetError(message(got=got, expected="one", todo=todo))
            limit: dict[str, Any] = {name: parse(value)}
            found[key] = Budget(**limit)
    if None in found and len(found) > 1:
        todo = "Write '**=0.5' for the rest."
        got = "a budget for all weights beside one for a glob"
        raise BudgetError(message(got=got, expected="one of the two", todo=todo))
    return found[None] if None in found else (found or None)


def needs(rules: Mapping[str, Any], metric: Any) -> set[Any]:
    """The statistics that the metric, and those of the rules' own specs, are bound from."""
    specs = [s for value in rules.values() for s in _listed(value) if s is not None]
    kinds = [metric, *(spec.metric for spec in specs)]
    return {need for kind in kinds if kind is not None for need in kind.needs}


def read_metric(text: str | None) -> Any:
    """A metric kind such as `Input`, `TwoSided(center=True)`, `FWSVD` or `ASVD(alpha=0.5)`.

    Raises:
        RuleError: no such kind.
    """
    from lrjax.metrics import Kind

    found = None if text is None else _value("--metric", text)
    if found is None or isinstance(found, Kind):
        return found
    raise _unknown("--metric", text or "", "it is no metric")


def _split(text: str, default: Any) -> tuple[str, Any]:
    glob, sign, value = text.partition("=")
    return glob.strip(), value.strip() if sign else default


def _file(file: Path) -> list[tuple[str, Any]]:
    try:
        rules = json.loads(file.read_text())
        return list(rules.items())
    except (ValueError, AttributeError) as cause:
        raise RuleError(
            message(
                path=str(file),
                got=f"no JSON object ({cause})",
                expected='an object such as {"**/kernel": "SVD(rank=64)"}',
                todo="Correct the file.",
            )
        ) from cause


def _spec(glob: str, value: Any) -> Any:
    from lrjax.decompose import spec_from_json

    if value is None:
        return None
    if isinstance(value, str):
        return _value(glob, value)
    if isinstance(value, list):
        return [_spec(glob, item) for item in value]
    try:
        return spec_from_json(value)
    except LrjaxError:
        raise
    except Exception as cause:
        raise _unknown(glob, json.dumps(value), f"{type(cause).__name__}: {cause}") from cause


def _value(glob: str, text: str) -> Any:
    """The object that a restricted expression names: constructors with constants, nothing else."""
    names = _names()
    try:
        return _evaluate(ast.parse(text, mode="eval").body, names)
    except LrjaxError:
        raise
    except Exception as cause:
        known = ", ".join(sorted(name for name in names if name[0].isupper()))
        raise _unknown(glob, text, f"{cause}; known are dense, {known}") from cause


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.UnaryOp(ast.USub(), operand):
            return -_evaluate(operand, names)
        case ast.Tuple(items) | ast.List(items):
            return tuple(_evaluate(item, names) for item in items)
        case ast.BinOp(left, ast.BitOr(), right):
            return _listed(_evaluate(left, names)) + _listed(_evaluate(right, names))
        case ast.Name("dense"):
            return None
        case ast.Name(name) if name in names:
            found = names[name]
            return found if isinstance(found, enum.Enum) else found()
        case ast.Call(ast.Name(name), args, keywords) if name in names:
            given = {str(k.arg): _evaluate(k.value, names) for k in keywords}
            return names[name](*(_evaluate(arg, names) for arg in args), **given)
    raise ValueError(f"no {ast.unparse(node)!r} here")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names() -> dict[str, Any]:
    """Everything that a rule may name: specs, metric kinds, their rules, members of enums."""
    from lrjax.decompose import Spec
    from lrjax.linalg import Accuracy
    from lrjax.metrics import Kind, Shrinkage

    members = {member.name: member for member in Accuracy}
    classes = {cls.__name__: cls for base in (Spec, Kind, Shrinkage) for cls in _below(base)}
    return members | classes


def _below(base: type) -> Iterable[type]:
    for cls in base.__subclasses__():
        if not inspect.isabstract(cls):
            yield cls
        yield from _below(cls)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as cause:
        raise _no_number(text, "a share such as 0.5") from cause


def _count(text: str) -> int:
    found = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)\s*([kKmMgG]i?)?[bB]?", text.strip())
    if found is None:
        raise _no_number(text, "a number such as 40e6, 40MB or 38MiB")
    try:
        return int(float(found[1]) * SIZES[(found[2] or "").lower()])
    except ValueError as cause:
        raise _no_number(text, "a number such as 40e6, 40MB or 38MiB") from cause


def _no_number(text: str, expected: str) -> BudgetError:
    return BudgetError(message(got=repr(text), expected=expected, todo="Correct the budget."))


def _unknown(glob: str, text: str, why: str) -> RuleError:
    return RuleError(
        message(
            path=glob,
            got=f"{text!r} ({why})",
            expected="a spec such as SVD, SVD(rank=64) or dense",
            todo="Correct the rule.",
        )
    )
