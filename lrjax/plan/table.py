"""Aligned text tables."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()) -> str:
    """Rows under a head; columns named in `left` are flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    flush = [name in left for name in head]
    lines = [
        "  ".join(
            cell.ljust(w) if is_left else cell.rjust(w)
            for cell, w, is_left in zip(row, widths, flush, strict=True)
        ).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def shape_text(shape: Sequence[int]) -> str:
    """A shape as 384x1536."""
    return "x".join(map(str, shape)) or "scalar"


def bytes_text(count: float) -> str:
    """Bytes in the unit that leaves three digits: 1.23 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
