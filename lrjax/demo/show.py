"""The demo on a terminal: a progress bar while it works, a table when it is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from lrjax.demo.result import Result
from lrjax.demo.watch import Watch


@contextmanager
def progress(console: Console) -> Iterator[Watch]:
    """A ``watch`` for :func:`lrjax.demo.run` that shows every stage as a bar on the console."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:

        @contextmanager
        def watch(stage: str, steps: int | None = None) -> Iterator[Callable[[], Any]]:
            task = bars.add_task(stage, total=steps)
            yield lambda: bars.advance(task)
            bars.update(task, total=steps or 1, completed=steps or 1)

        yield watch


def table(result: Result) -> Table:
    """The rows beside each other, best read on 80 columns."""
    shown = Table(
        title=f"all-MiniLM-L6-v2, blocks kept {result.block_keep:g}, "
        f"word table kept {result.embedding_keep:g}",
        caption=f"{result.pairs} held-out functions of the Python standard library, "
        f"corpus {result.corpus}; {result.seconds:.0f} s in all",
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("model")
    for head in ("keep", "MB on disk", "cosine", "recall@1", "recall@10", "texts/s"):
        shown.add_column(head, justify="right")
    for row in result.rows:
        shown.add_row(
            row.name,
            f"{row.keep:.3f}",
            f"{row.bytes / 1e6:.1f}",
            f"{row.cosine:.3f}",
            *(f"{share:.3f}" for share in row.recall.values()),
            f"{row.sentences_per_s:,.0f}",
            style="bold" if row.name == "compressed" else None,
        )
    return shown
