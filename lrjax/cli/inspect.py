"""`lrjax inspect`: what is in there, and how far from full rank it is."""

from typing import Annotated, Any

import typer

from lrjax.cli import options
from lrjax.cli.output import columns, emit, number, progress, shape_text

ENERGIES = (0.90, 0.95, 0.99)


def inspect(
    path: options.Source,
    match: Annotated[
        str, typer.Option("--match", metavar="GLOB", help="Only the weights that match.")
    ] = "**",
    spectra: Annotated[
        bool, typer.Option("--spectra/--no-spectra", help="Singular values of every matrix.")
    ] = True,
    as_json: options.Json = False,
) -> None:
    """Shapes, dtypes, parameters and spectra of every weight.

    stable = |W|_F^2 / |W|_2^2; k90, k95, k99 = singular values that hold so much of the energy.
    """
    from lrjax import trees
    from lrjax.cli import source

    with progress() as watch:
        with watch("read", None):
            found = source.read(path)
        leaves = trees.flatten(found.params)[0]
        chosen = trees.assign({match: True}, leaves)
        with watch("spectra", len(chosen)) as advance:
            rows = []
            for name in chosen:
                rows.append(_row(name, leaves[name], spectra))
                advance()
    alias = trees.shared(found.params)
    once = [row for row in rows if row["path"] not in alias]
    totals = {key: sum(row[key] for row in once) for key in ("params", "bytes")}
    totals["disk_bytes"] = found.disk_bytes
    result = {"path": path, "kind": found.kind, "weights": rows, "totals": totals}
    emit(result, _text(rows, result), as_json=as_json)


def _row(path: str, leaf: Any, spectra: bool) -> dict[str, Any]:
    from lrjax import ops

    cost = ops.cost(leaf)
    row = {
        "path": path,
        "format": _format(leaf),
        "shape": tuple(leaf.shape),
        "dtype": str(leaf.dtype),
        "params": cost.params,
        "bytes": cost.bytes,
        "rank": getattr(leaf, "rank", None),
    }
    return row | (_spectrum(leaf) if spectra else {})


def _spectrum(leaf: Any) -> dict[str, Any]:
    """Stable rank and energy ranks of the weight's matrices, all stack entries together."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lrjax import ops
    from lrjax.formats import default_layout, is_factored, matricize
    from lrjax.linalg import singular_values

    names = ("stable_rank", *(f"k{round(100 * share)}" for share in ENERGIES))
    if len(leaf.shape) < 2 or 0 in leaf.shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return dict.fromkeys(names)
    layout = leaf.layout if is_factored(leaf) else default_layout(tuple(leaf.shape))
    dense = jnp.asarray(ops.densify(leaf), jnp.float32)
    if not np.isfinite(dense).all():
        return dict.fromkeys(names) | {"finite": False}
    energy = np.asarray(jax.jit(singular_values)(matricize(dense, layout)), np.float64) ** 2
    if not energy.any():
        return dict.fromkeys(names) | {"finite": True}
    top = energy.max(axis=-1)
    stable = float(np.mean(energy.sum(axis=-1)[top > 0] / top[top > 0]))
    share = np.cumsum(energy.reshape(-1, energy.shape[-1]).sum(axis=0)) / energy.sum()
    ranks = [int(np.searchsorted(share, level - 1e-12)) + 1 for level in ENERGIES]
    return dict(zip(names, (stable, *ranks), strict=True)) | {"finite": True}


def _format(leaf: Any) -> str:
    from lrjax.formats import is_factored

    return type(leaf).__name__ if is_factored(leaf) else "dense"


def _text(rows: list[dict[str, Any]], result: dict[str, Any]) -> str:
    head = ["path", "format", "shape", "dtype", "params", "bytes"]
    with_spectra = any("stable_rank" in row for row in rows)
    names = [key for key in (rows[0] if rows else ()) if key[0] == "k" and key[1:].isdigit()]
    lines = []
    for row in rows:
        kind = row["format"] + (f"({row['rank']})" if row["rank"] is not None else "")
        line = [row["path"], kind, shape_text(row["shape"]), row["dtype"]]
        line += [f"{row['params']:,}", f"{row['bytes']:,}"]
        if with_spectra:
            bad = row.get("finite") is False
            line.append("NOT FINITE" if bad else number(row["stable_rank"]))
            line += ["-" if row[name] is None else str(row[name]) for name in names]
        lines.append(line)
    if with_spectra:
        head += ["stable", *names]
    totals = result["totals"]
    return (
        f"{columns(head, lines, left=4)}\n\n{result['kind']}: {len(rows)} weights, "
        f"{totals['params']:,} parameters, {totals['bytes']:,} bytes, "
        f"{totals['disk_bytes']:,} on disk"
    )
