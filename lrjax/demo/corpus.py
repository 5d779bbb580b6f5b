"""Text that every machine has: what the Python standard library says of its own functions.

A :class:`Pair` is a function's signature in words and the first line of its docstring. Whole files
go to one side of the split, by a hash of their path, so that no evaluated text has a neighbour
among the calibration texts.
"""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED = frozenset(
    (
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "encodings",
        "site-packages",
        "turtledemo",
        "__pycache__",
    )
)
"""Folders of the standard library that hold tests, tables, or packages of somebody else."""


@dataclass(frozen=True)
class Pair:
    """A query and the document that answers it.

    ``query`` is the qualified name in words with the argument names, ``email quoprimime body encode
    (body, maxlinelen, eol)``; ``document`` is the docstring's first line, up to the first blank one
    where it wraps.
    """

    query: str
    document: str
    file: str


def read(root: Path | None = None) -> tuple[Pair, ...]:
    """Every documented function below ``root`` (the standard library), each text once."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    pairs = []
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root)
        if not SKIPPED.isdisjoint(file.parts):
            continue
        for pair in _pairs(path, file):
            if pair.document not in seen and pair.query not in seen:
                seen |= {pair.document, pair.query}
                pairs.append(pair)
    return tuple(pairs)


def split(pairs: Iterable[Pair]) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Calibration and held-out pairs, half of the files each, in an order that hashes decide."""
    ordered = sorted(pairs, key=lambda p: _hash(f"{p.file}\n{p.query}"))
    half = 1 << 255
    calibration = tuple(p for p in ordered if _hash(p.file) < half)
    return calibration, tuple(p for p in ordered if _hash(p.file) >= half)


def corpus_id(pairs: Iterable[Pair]) -> str:
    """A digest of the texts: the standard library differs between Python versions."""
    text = "\n".join(f"{p.query}\t{p.document}" for p in pairs)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest())


def _pairs(path: Path, file: Path) -> Iterator[Pair]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    module = [part for part in file.with_suffix("").parts if part != "__init__"]
    for names, function in _functions(tree, module):
        document = " ".join((ast.get_docstring(function) or "").split("\n\n")[0].split())
        if len(document.split()) >= 3 and not document.startswith(">>>"):
            yield Pair(_query(names, function), document, file.as_posix())


def _functions(
    node: ast.AST, names: list[str]
) -> Iterator[tuple[list[str], ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield [*names, child.name], child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, [*names, child.name])


def _query(names: list[str], function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    words = " ".join(re.sub(r"[._]+", " ", name).strip() for name in names)
    given = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    arguments = [a.arg for a in given if a.arg not in ("self", "cls")]
    return f"{words} ({', '.join(arguments)})"
