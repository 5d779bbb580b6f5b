"""`lrjax demo`: a real sentence encoder made small, from installation to table."""

from pathlib import Path
from typing import Annotated

import typer

from lrjax.cli import options
from lrjax.cli.output import emit


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the model and picture go.")
    ] = Path("lrjax-demo"),
    keep: Annotated[
        float, typer.Option("--keep", help="Share of the transformer blocks' parameters kept.")
    ] = 0.6,
    embedding_keep: Annotated[
        float, typer.Option("--embedding-keep", help="Share of the word table's kept.")
    ] = 0.5,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Compress all-MiniLM-L6-v2 and search the Python standard library with what is left."""
    from rich.console import Console

    from lrjax.demo import progress, run, table

    with progress(Console(stderr=True)) as watch:
        result = run(out, keep=keep, embedding_keep=embedding_keep, overwrite=force, watch=watch)
    if as_json:
        emit(result.to_json(), "", as_json=True)
        return
    console = Console()
    console.print(table(result))
    console.print(f"model: {result.artefact}\npicture: {result.picture}")
