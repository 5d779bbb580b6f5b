"""`restructure`: a smaller model of the same family, by rules over its modules."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax.traverse_util import unflatten_dict

from lrjax import trees
from lrjax.calibrate import Stats
from lrjax.errors import BudgetError, RuleError, ShapeError, message
from lrjax.formats import is_factored
from lrjax.plan import Budget
from lrjax.restructure.structure import Module, Structure
from lrjax.zoo.load import shapes_of

Rules = Mapping[str, Structure | Sequence[Structure]]


def restructure(
    model: Any,
    params: Mapping[str, Any],
    rules: Rules,
    stats: Stats | None = None,
    *,
    budget: Budget | None = None,
) -> tuple[Any, dict[str, Any]]:
    """A model with another shape, and its parameters, computed from those of the old one.

    A rule is a glob over module paths (``layer_*/mlp``, ``layer_*/attention``; ``**`` is all, the
    whole model included) and a `Structure`, or several that are applied in turn. A rule takes those
    of the modules it matches that its structure knows, unless an earlier rule took them.

    Args:
        model: a model of the zoo, its layers unrolled.
        params: its parameters, dense where a rule matches; not changed.
        rules: what to do to which modules.
        stats: what `lrjax.calibrate` found on this model.
        budget: for structures that share one out.

    Returns:
        The new model, whose config says the new shape, and its parameters.
        ``lrjax.save(..., config=model.config.to_json())`` keeps both.

    Raises:
        RuleError: a rule matches no module that its structure knows, or none that is left.
        ShapeError: a matched weight is factored, or the layers are scanned.
        StatsError: statistics are missing or of another model.
        BudgetError: a budget that no structure reads.
    """
    _check(model, rules, budget)
    for structure, paths in _assign(rules, trees.flatten(params)[0]):
        leaves = trees.flatten(params)[0]
        old = [Module(path, _dense(path, leaves), stats) for path in paths]
        config, new = structure.rebuild(model.config, old, budget)
        for before, after in zip(old, new, strict=True):
            for name in before.weights:
                del leaves[_join(before.path, name)]
            leaves |= {_join(after.path, name): leaf for name, leaf in after.weights.items()}
        model, params = model.clone(config=config), unflatten_dict(leaves, sep="/")
        _agree(model, leaves, structure)
    return model, dict(params)


def _check(model: Any, rules: Rules, budget: Budget | None) -> None:
    if getattr(model, "scanned", False):
        todo = "Unroll them first: lrjax.zoo.unroll_layers(model, params)."
        raise ShapeError(message(got="scanned layers", expected="unrolled ones", todo=todo))
    reads = any(s.uses_budget for value in rules.values() for s in _structures(value))
    if budget is not None and not reads:
        todo = "Say the size in the structures themselves."
        expected = "none, for no structure of these rules reads one"
        raise BudgetError(message(got=f"a budget of {budget}", expected=expected, todo=todo))


def _structures(value: Structure | Sequence[Structure]) -> tuple[Structure, ...]:
    return (value,) if isinstance(value, Structure) else tuple(value)


def _assign(rules: Rules, leaves: Mapping[str, Any]) -> Iterator[tuple[Structure, list[str]]]:
    """Every structure and the modules that are its own, rule by rule."""
    modules = {path: Module(path, dict(_within(path, leaves))) for path in _modules(leaves)}
    taken: dict[str, str] = {}
    plan: list[tuple[Structure, list[str]]] = []
    for pattern, value in rules.items():
        structures = _structures(value)
        known = [p for p, m in modules.items() if all(s.fits(m) for s in structures)]
        hits = [path for path in known if trees.match(pattern, path)]
        free = [path for path in hits if path not in taken]
        if not free:
            _unmatched(pattern, structures, known, taken, hits)
        taken |= dict.fromkeys(free, pattern)
        plan += [(structure, free) for structure in structures]
    return iter(plan)


def _modules(leaves: Mapping[str, Any]) -> list[str]:
    """Paths of all modules, the whole model's empty one first."""
    found: dict[str, None] = {"": None}
    for path in leaves:
        parts = path.split("/")[:-1]
        found |= dict.fromkeys("/".join(parts[: i + 1]) for i in range(len(parts)))
    return list(found)


def _within(path: str, leaves: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    head = path and f"{path}/"
    return ((p[len(head) :], leaf) for p, leaf in leaves.items() if p.startswith(head))


def _dense(path: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The module's leaves; none may be factored."""
    own = dict(_within(path, leaves))
    for name, leaf in own.items():
        if is_factored(leaf):
            raise ShapeError(
                message(
                    path=_join(path, name),
                    got=f"a factored weight ({type(leaf).__name__})",
                    expected="a dense one: structure first, factors after",
                    todo="Restructure the dense model, or densify this weight by lrjax.densify.",
                )
            )
    return own


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _agree(model: Any, leaves: Mapping[str, Any], structure: Structure) -> None:
    """The config must describe the very parameters that the structure made."""
    declared = {path: leaf.shape for path, leaf in shapes_of(model).items()}
    found = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    for path in sorted(declared.keys() | found.keys()):
        if declared.get(path) != found.get(path):
            raise ShapeError(
                message(
                    path=path,
                    got=f"shape {found.get(path)} from {structure}",
                    expected=f"shape {declared.get(path)} by the new config",
                    todo="This structure does not know this architecture: choose another.",
                )
            )


def _unmatched(
    pattern: str,
    structures: Sequence[Structure],
    known: Sequence[str],
    taken: Mapping[str, str],
    hits: Sequence[str],
) -> None:
    names = " and ".join(type(s).__name__ for s in structures)
    if hits:
        got = f"a rule whose {len(hits)} modules were taken by {taken[hits[0]]!r}"
        todo = "Give one rule both structures, in a tuple, or make one of the globs narrower."
        raise RuleError(message(path=pattern, got=got, expected="a module of its own", todo=todo))
    few = ", ".join(path or "'' (the whole model)" for path in known[:4])
    there = few + (", ..." if len(known) > 4 else "") if known else "none in this model"
    todo = f"Modules that {names} knows: {there}."
    got, expected = "no such module", f"one that {names} knows"
    raise RuleError(message(path=pattern, got=got, expected=expected, todo=todo))
