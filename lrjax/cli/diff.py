"""`lrjax diff`: two sets of weights, weight by weight."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lrjax.cli import options
from lrjax.cli.output import columns, emit, number, progress, shape_text


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Taken as the reference.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Compared with it.")],
    as_json: options.Json = False,
) -> None:
    """Relative error |A - B| / |A| and bytes of every weight of two sources."""
    from lrjax.cli import source

    with progress() as watch:
        with watch("read", 2) as advance:
            first = source.read(a)
            advance()
            second = source.read(b)
            advance()
        with watch("compare", None):
            rows, only_a, only_b = compare(first.params, second.params)
    totals = total(rows)
    result = {
        "a": a,
        "b": b,
        "weights": rows,
        "only_a": only_a,
        "only_b": only_b,
        "totals": totals,
        "equal": not only_a and not only_b and all(row["error"] == 0 for row in rows),
    }
    emit(result, _text(result), as_json=as_json)


def compare(a: Any, b: Any) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """A row for each path of both trees, and the paths of one alone."""
    from lrjax import ops, trees

    left, right = trees.flatten(a)[0], trees.flatten(b)[0]
    rows = []
    for path in left:
        if path in right:
            x, y = left[path], right[path]
            rows.append(
                {
                    "path": path,
                    "shape": tuple(x.shape),
                    "a": type(x).__name__ if trees.is_weight_leaf(x) else "dense",
                    "b": type(y).__name__ if trees.is_weight_leaf(y) else "dense",
                    "a_bytes": ops.cost(x).bytes,
                    "b_bytes": ops.cost(y).bytes,
                    **_errors(x, y),
                }
            )
    only = [path for path in left if path not in right], [p for p in right if p not in left]
    return rows, *only


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Bytes, and the relative error of all weights of equal shape taken together."""
    seen = [row for row in rows if row["error"] is not None]
    norm = sum(row["norm"] ** 2 for row in seen) ** 0.5
    lost = sum((row["error"] * row["norm"]) ** 2 for row in seen) ** 0.5
    return {
        "a_bytes": sum(row["a_bytes"] for row in rows),
        "b_bytes": sum(row["b_bytes"] for row in rows),
        "error": lost / norm if norm else 0.0,
    }


def _errors(x: Any, y: Any) -> dict[str, Any]:
    """Relative error in the Frobenius norm and the norm; None where shapes differ."""
    import numpy as np

    from lrjax import ops

    if tuple(x.shape) != tuple(y.shape):
        return {"error": None, "norm": None, "b_shape": tuple(y.shape)}
    left = np.asarray(ops.densify(x)).astype(np.float64)
    right = np.asarray(ops.densify(y)).astype(np.float64)
    norm, lost = float(np.linalg.norm(left)), float(np.linalg.norm(left - right))
    return {"error": lost / norm if norm else lost, "norm": norm}


def _text(result: dict[str, Any]) -> str:
    head = ["path", "shape", "A", "B", "A bytes", "B bytes", "error"]
    lines = [
        [
            row["path"],
            shape_text(row["shape"]),
            row["a"],
            row["b"],
            f"{row['a_bytes']:,}",
            f"{row['b_bytes']:,}",
            number(row["error"]) if row["error"] is not None else shape_text(row["b_shape"]),
        ]
        for row in result["weights"]
    ]
    t = result["totals"]
    sizes = [f"{t['a_bytes']:,}", f"{t['b_bytes']:,}"]
    lines.append(["all", "", "", "", *sizes, number(t["error"])])
    text = columns(head, lines, left=4)
    for name in ("a", "b"):
        for path in result[f"only_{name}"]:
            text += f"\nonly in {name.upper()}: {path}"
    return text
