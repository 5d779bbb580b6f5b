"""Which leaves the rules mean: matrices to factor, leaves to leave, aliases, and loud mistakes."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import trees
from lrjax.decompose import SVD, Spec, solve
from lrjax.errors import RankError, RuleError, ShapeError, StatsError, message
from lrjax.formats.layout import Layout, default_layout, matricize
from lrjax.formats.placed import placed
from lrjax.lift import UseKind, WeightUse
from lrjax.trees import Tree

Rule = Spec | Sequence[Spec] | None
"""What a rule says of the weights that it matches: a format, a choice of formats, or stay dense."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A matched leaf, and what may become of it.

    Attributes:
        path: where it is.
        leaf: the array.
        layout: which of its dims are rows and cols.
        specs: candidate formats; empty if it stays dense.
        reason: why it stays dense.
        shared: path of the weight that it is an alias of.
        lookup: whether it is a table that only rows are read from.
        ruled: which candidates had their rank from a rule (`Spec.rank_by`).
    """

    path: str
    leaf: Any
    layout: Layout
    specs: tuple[Spec, ...]
    reason: str = ""
    shared: str | None = None
    lookup: bool = False
    ruled: frozenset[int] = frozenset()

    def ranked(self) -> "Target":
        """The target, ranks that a rule is to find found in the plain weight, on the host."""
        ruled = [k for k, s in enumerate(self.specs) if s.rank_by is not None]
        if not ruled:
            return self
        matrix = np.asarray(matricize(jnp.asarray(self.leaf), self.layout), np.float64)
        specs = list(self.specs)
        for k in ruled:
            try:
                specs[k] = specs[k].ranked(matrix)
            except (RankError, ShapeError) as e:
                raise type(e)(f"{self.path}: {e}") from e
        return dataclasses.replace(self, specs=tuple(specs), ruled=frozenset(ruled))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.leaf.shape)

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """Shape [*S, m, n] of the weight's matrices."""
        return self.layout.matrix_shape(self.leaf.shape)

    def misfit(self, spec: Spec) -> str:
        """Why a format of fixed size cannot have the leaf's dims; empty if it can."""
        stack, rows, cols = self.layout.resolve(len(self.leaf.shape))
        plain = (rows, cols) == ((len(stack),), (len(stack) + 1,))
        if plain or isinstance(spec, SVD):  # one product meets any dims
            return ""
        return _misfit(spec.frame, self.layout, tuple(self.leaf.shape))


@functools.lru_cache(1024)
def _misfit(spec: Spec, layout: Layout, shape: tuple[int, ...]) -> str:
    matrix = jax.ShapeDtypeStruct(layout.matrix_shape(shape), jnp.float32)
    try:
        jax.eval_shape(lambda w: placed(solve(spec, w)[0], layout, shape), matrix)
    except ShapeError as e:
        return str(e)
    except RuleError:  # a spec that is planned with, and has no solver here
        return ""
    return ""


def targets(params: Tree, rules: Mapping[str, Rule], uses: Mapping[str, WeightUse]) -> list[Target]:
    """The leaves that rules match, in tree order.

    Raises:
        RuleError: a rule matches nothing, or nothing that can be factored.
        ShapeError: a matched weight is factored already.
        StatsError: a matched matrix holds a value that is not finite.
    """
    if not rules:
        todo = "Write for example {'**/kernel': lr.SVD()}."
        raise RuleError(message(got="no rules", expected="globs and specs", todo=todo))
    leaves, _ = trees.flatten(params)
    chosen = trees.assign({glob: (glob, rule) for glob, rule in rules.items()}, leaves)
    alias = trees.shared(params)
    found: list[Target] = []
    taken: dict[str, str] = {}
    for path, (_, rule) in chosen.items():
        target = _target(path, leaves[path], rule, uses.get(path))
        first = alias.get(path, path)
        # An alias whose first path no rule matched is planned here, and leads the others.
        lead = taken.setdefault(first, path)
        if lead != path:
            reason = f"shared with {lead}"
            target = dataclasses.replace(target, specs=(), reason=reason, shared=lead)
        found.append(target)
    for glob, rule in rules.items():
        mine = [t for t in found if chosen[t.path][0] == glob]
        if rule is not None and not any(t.specs or t.shared for t in mine):
            why = "; ".join(f"{t.path} ({t.reason})" for t in mine[:3])
            raise RuleError(
                message(
                    path=glob,
                    got=f"no leaf that can be factored: {why}",
                    expected="at least one matrix",
                    todo="Point the rule at weights, or map it to None to keep them dense.",
                )
            )
    return found


def _target(path: str, leaf: Any, rule: Rule, use: WeightUse | None) -> Target:
    if trees.is_weight_leaf(leaf):
        raise ShapeError(
            message(
                path=path,
                got=f"a weight that is factored already ({type(leaf).__name__})",
                expected="a dense array",
                todo="Plan from the dense parameters, or densify them first.",
            )
        )
    shape = np.shape(leaf)
    layout = default_layout(shape) if use is None or use.layout is None else use.layout
    kinds = set() if use is None else {u.kind for u in use.uses}
    lookup = bool(kinds) and kinds <= {UseKind.LOOKUP}
    reason = _obstacle(leaf, layout, use) if rule is not None else "dense by rule"
    if reason:
        return Target(path, leaf, layout, (), reason)
    if not bool(jnp.isfinite(leaf).all()):
        raise StatsError(
            message(
                path=path,
                got="a weight with NaN or infinite entries",
                expected="finite values",
                todo="Repair the checkpoint.",
            )
        )
    specs = (rule,) if isinstance(rule, Spec) else tuple(rule or ())
    if not specs or not all(isinstance(s, Spec) for s in specs):
        todo = "Write a spec such as lr.SVD(), a list of specs, or None."
        raise RuleError(message(path=path, got=repr(rule), expected="specs", todo=todo))
    # A format of several modes takes them from the weight's own dims, if the user gave none.
    fit = lambda s: s.fitted(shape, layout) if hasattr(s, "fitted") else s
    return Target(path, leaf, layout, tuple(map(fit, specs)), lookup=lookup)


def _obstacle(leaf: Any, layout: Layout, use: WeightUse | None) -> str:
    """Why a leaf cannot be factored; empty if it can."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return f"no array: {type(leaf).__name__}"
    if len(leaf.shape) < 2:
        return f"{len(leaf.shape)}-D: no matrix"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"{leaf.dtype}: not floating"
    if use is not None:
        if not use.uses:
            return "unused by the function"
        odd = next((u for u in use.uses if u.kind in (UseKind.ELEMENTWISE, UseKind.OTHER)), None)
        if odd is not None:
            return f"used {odd.kind.value} ({odd.primitive} at {odd.source})"
    *_, m, n = layout.matrix_shape(leaf.shape)
    # rank one costs m + n
    return f"{m}x{n}: no rank saves parameters" if m + n >= m * n else ""
