"""The reader: follows every value of a program back to the array that it is a view of.

An abstract evaluation of a jaxpr.  Each value is a view of a root: a parameter, or a number that
stands for what computed it, so that equal computations (the same cast, the same reshape) have
equal numbers.  Where a weight's view meets an activation the reader notes a site; other uses of
parameters it notes as such.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from jax.extend.core import Literal

from lrjax.lift import jaxprs, meetings
from lrjax.lift import view as views
from lrjax.lift.interpreter import Place
from lrjax.lift.moves import MOVES, move_pick, picks_one
from lrjax.lift.report import UseKind
from lrjax.lift.sites import Site
from lrjax.lift.values import Touch, Val
from lrjax.lift.view import At, Scanned

# Elementwise primitives that keep a sum of networks one; the others are noted as uses.
LINEAR = frozenset("add add_any sub mul div neg select_n".split())

# Elementwise primitives: a weight stays the same weight through them if the other operands are
# computed from parameters alone (a weight norm, a LoRA sum, a scale).
ELEMENTWISE = frozenset(
    "add add_any sub mul div neg max min pow integer_pow square exp log log1p expm1 tanh logistic "
    "sqrt rsqrt abs sign select_n clamp erf round floor ceil".split()
)


class Reader:
    """Reads a program; `sites`, `touches` and `biases` then say what it does with parameters."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.touches: list[Touch] = []
        self.biases: dict[str, str] = {}  # weight -> the parameter added to its output
        self.outputs: dict[Hashable, Site] = {}  # number of an output -> its site
        self.eqns: list[Any] = []
        self._numbers: dict[Hashable, int] = {}
        self._keys: list[Any] = []

    def number(self, key: Hashable) -> int:
        """The same number for the same key."""
        if key not in self._numbers:
            self._numbers[key] = len(self._keys)
            self._keys.append(key)
        return self._numbers[key]

    def key(self, val: Val) -> Any:
        """What computed a value; None for a parameter."""
        return None if val.weight else self._keys[val.view.root]

    def fresh(self, shape: Sequence[int], fixed: bool = False, key: Hashable = None) -> Val:
        """A value of its own; equal keys give equal values."""
        root = self.number(key if key is not None else ("fresh", len(self._numbers)))
        return Val(views.whole(root, shape), fixed)

    def read(
        self, closed: Any, args: Sequence[Val], at: Place = (), scope: Place = ()
    ) -> list[Val]:
        """Values of the outputs; `scope` is the innermost loop or branch that repeats or skips."""
        jaxpr, consts = jaxprs.opened(closed)
        env: dict[Any, Val] = {}
        for v, const in zip(jaxpr.constvars, consts, strict=True):
            env[v] = self.fresh(v.aval.shape, True, ("const", id(const)))
        for v, arg in zip(jaxpr.invars, args, strict=True):
            env[v] = arg if arg.var is not None else replace(arg, var=v)

        def get(atom):
            if not isinstance(atom, Literal):
                return env[atom]
            aval: Any = atom.aval
            whole = not aval.shape and jaxprs.is_integer(aval.dtype)
            key = ("literal", str(aval.dtype), str(atom.val))
            return Val(
                views.whole(self.number(key), aval.shape),
                True,
                int(atom.val) if whole else None,
            )

        for k, eqn in jaxprs.live(jaxpr):
            self.eqns.append(eqn)
            outs = self._eqn(eqn, [get(v) for v in eqn.invars], (*at, k), scope)
            self.eqns.pop()
            for v, val in zip(eqn.outvars, outs, strict=True):
                env[v] = val if val.var is not None else replace(val, var=v)
        return [get(v) for v in jaxpr.outvars]

    def _eqn(self, eqn: Any, vals: list[Val], at: Place, scope: Place) -> Sequence[Val]:
        name = eqn.primitive.name
        if name in jaxprs.INLINED | jaxprs.CUSTOM | jaxprs.REMAT:
            return self.read(jaxprs.body(eqn), vals, (*at, 0), scope)
        if name in _CONTROL:
            return _CONTROL[name](self, eqn, vals, at)
        if name == "optimization_barrier":
            return vals
        if name == "gather" and picks_one(eqn) and vals[0].weight:
            return self._moved(eqn, vals, move_pick)
        if name in MOVES:
            return self._moved(eqn, vals, MOVES[name])
        if name == "concatenate" and (joined := self._joined(eqn, vals)):
            return [joined]
        if name in meetings.MEETINGS and (
            outs := meetings.MEETINGS[name](self, eqn, vals, at, scope)
        ):
            return outs
        if name == "select_n" and (same := _wrapped_index(self, vals)):
            return [same]
        if name in ELEMENTWISE:
            kept = self._through(eqn, vals)
            if kept is not None:
                return [kept]
            if name in ("add", "add_any"):
                self._bias(vals)
        return self._computed(eqn, vals)

    def _moved(self, eqn: Any, vals: list[Val], move: Any) -> Sequence[Val]:
        first, others = vals[0], vals[1:]
        at = [o.var if isinstance(o.var, int) else At(o.var) for o in others]
        if first.parts:
            joined = _move_parts(eqn, first)
            if joined is not None:
                return [joined]
            self._touch(first, eqn)
        moved = move(eqn, first.view, at)
        fixed = all(v.fixed for v in vals) or first.fixed
        backup = self._computed(eqn, vals) if any(v is None for v in moved) else [None] * len(moved)
        return [Val(v, fixed) if v is not None else b for v, b in zip(moved, backup, strict=True)]  # type: ignore[misc]

    def _joined(self, eqn: Any, vals: list[Val]) -> Val | None:
        """Weights side by side: a value of its own that remembers its parts."""
        if not all(v.fixed for v in vals) or not any(v.weight for v in vals):
            return None
        new = self.fresh(eqn.outvars[0].aval.shape, True)
        return Val(new.view, True, None, tuple(vals), eqn.params["dimension"])

    def _through(self, eqn: Any, vals: list[Val]) -> Val | None:
        """The weight that this elementwise result still is, if all else is fixed."""
        if not all(v.fixed for v in vals):
            return None
        shape = eqn.outvars[0].aval.shape
        same = [
            v
            for v in vals
            if v.view.shape == shape and v.weight and all(a.dim is not None for a in v.view.axes)
        ]
        best = max(same, key=lambda v: len(v.view.axes), default=None)
        for v in vals:
            if best is not None and (v is not best or eqn.primitive.name not in LINEAR):
                self._touch(v, eqn)
        return best and Val(best.view, True)

    def _bias(self, vals: list[Val]) -> None:
        """A parameter added along the columns of a site's output, and nowhere else."""
        for out, b in (vals, vals[::-1]):
            site = self.outputs.get(out.view.root)
            if site is None or site.y is None or not b.weight or b.view.root == site.weight:
                continue
            mine = [{a.dim in site.y_axes for a in d if a.size > 1} for d in out.view.dims]
            other = [any(a.dim is not None and a.size > 1 for a in d) for d in b.view.dims]
            if len(mine) == len(other) and all(
                m == ({True} if o else m - {True}) for m, o in zip(mine, other, strict=True)
            ):
                self.biases.setdefault(site.weight.path, b.view.root.path)

    def _computed(self, eqn: Any, vals: Sequence[Val]) -> list[Val]:
        """Values of their own, numbered by what computed them; parameters are noted."""
        for v in vals:
            self._touch(v, eqn)
        key: Hashable = None
        if not eqn.effects:
            key = (eqn.primitive.name, jaxprs.frozen(eqn.params), tuple(v.view for v in vals))
        fixed = all(v.fixed for v in vals)
        return [
            self.fresh(v.aval.shape, fixed, None if key is None or key[1] is None else (*key, k))
            for k, v in enumerate(eqn.outvars)
        ]

    def _touch(self, val: Val, eqn: Any) -> None:
        """Note the parameters of a value as used by an equation that makes no site."""
        name = eqn.primitive.name
        kind = UseKind.ELEMENTWISE if name in ELEMENTWISE | set(MOVES) else UseKind.OTHER
        for w in (val, *val.parts):
            if w.weight:
                looked = any(isinstance(a.start, At) and a.start.many for a in w.view.fixed)
                use = UseKind.LOOKUP if looked else kind
                self.touches.append(Touch(w.view.root, use, name, self.source()))

    def source(self) -> str:
        """The user's line that is being read."""
        return jaxprs.source(self.eqns)


def _move_parts(eqn: Any, joined: Val) -> Val | None:
    """A transpose or cast of a concatenation."""
    name = eqn.primitive.name
    if name == "transpose":
        perm = eqn.params["permutation"]
        parts = tuple(Val(views.transpose(p.view, perm), p.fixed, None) for p in joined.parts)
        return Val(views.transpose(joined.view, perm), True, None, parts, perm.index(joined.axis))
    if name in ("convert_element_type", "copy", "stop_gradient"):
        return joined
    return None


def _wrapped_index(reader: Reader, vals: list[Val]) -> Val | None:
    """`where(i < 0, i + n, i)`, which indexing inserts, is i counted from the end if negative."""
    if len(vals) != 3 or vals[1].weight:
        return None
    index, test, moved = vals[1], reader.key(vals[0]), reader.key(vals[2])
    made = lambda key, name: key and key[0] == name and key[2][0] == index.view
    return index if made(test, "lt") and made(moved, "add") else None


def _scan(reader: Reader, eqn: Any, vals: list[Val], at: Place) -> list[Val]:
    p, (nc, nk) = eqn.params, jaxprs.scan_groups(eqn)
    same = jaxprs.forwards(p["jaxpr"])
    consts, init, xs = vals[:nc], vals[nc : nc + nk], vals[nc + nk :]
    inner = list(consts)
    for i, v in enumerate(init):
        inner.append(v if same[i] == nc + i else reader.fresh(v.view.shape))
    for x in xs:
        one = views.index(x.view, 0, Scanned(at) if _whole_stack(x) else At(None))
        inner.append(Val(one, x.fixed) if one else reader.fresh(x.view.shape[1:], x.fixed))
    outs = reader.read(p["jaxpr"], inner, (*at, 0), at)
    results = []
    for k, (i, var) in enumerate(zip(same, eqn.outvars, strict=True)):
        handed = i is not None and (i == nc + k if k < nk else i >= nc + nk)
        fixed = k >= nk and outs[k].fixed
        results.append(vals[i] if handed else reader.fresh(var.aval.shape, fixed))  # type: ignore[index]
    return results


def _whole_stack(x: Val) -> bool:
    """Whether a scan visits all positions of the dim that it steps along, in order."""
    axes = x.view.dims[0]
    return (
        not x.weight
        or len(axes) != 1
        or axes[0].dim is None
        or (axes[0].stride != 1 or axes[0].size == x.view.root.shape[axes[0].dim])
    )


def _while(reader: Reader, eqn: Any, vals: list[Val], at: Place) -> list[Val]:
    p = eqn.params
    nc, nb = p["cond_nconsts"], p["body_nconsts"]
    same = jaxprs.forwards(p["body_jaxpr"])
    init = vals[nc + nb :]
    carry = [v if same[i] == nb + i else reader.fresh(v.view.shape) for i, v in enumerate(init)]
    reader.read(p["cond_jaxpr"], [*vals[:nc], *carry], (*at, 0), at)
    reader.read(p["body_jaxpr"], [*vals[nc : nc + nb], *carry], (*at, 1), at)
    return [v if same[i] == nb + i else reader.fresh(v.view.shape) for i, v in enumerate(init)]


def _cond(reader: Reader, eqn: Any, vals: list[Val], at: Place) -> list[Val]:
    for j, branch in enumerate(eqn.params["branches"]):
        reader.read(branch, vals[1:], (*at, j), (*at, j))
    return [reader.fresh(v.aval.shape) for v in eqn.outvars]


_CONTROL = {"scan": _scan, "while": _while, "cond": _cond}
