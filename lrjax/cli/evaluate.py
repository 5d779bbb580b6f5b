"""`lrjax eval`: what a model still answers, how fast, and how far it is from the dense one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lrjax.cli import options
from lrjax.cli.output import columns, emit, number, progress


def evaluate(
    path: options.Source,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="DENSE", help="The model to compare with."),
    ] = None,
    texts: options.Texts = None,
    pairs: Annotated[
        int,
        typer.Option(
            "--pairs", min=1, help="Without --texts: functions of the standard library to search."
        ),
    ] = 500,
    as_json: options.Json = False,
) -> None:
    """Measure PATH: an encoder on texts, any other weights against the dense ones.

    An encoder embeds the lines of --texts, or searches held-out docstrings of the standard library.
    """
    from lrjax.cli import source
    from lrjax.cli.diff import compare, total
    from lrjax.errors import CheckpointError, message

    with progress() as watch:
        with watch("read", None):
            found = source.read(path)
            dense = source.read(against) if against is not None else None
        if found.encoder is None and (dense is None or texts is not None):
            raise CheckpointError(
                message(
                    path=str(path),
                    got=f"weights without a model that encodes texts ({found.kind})",
                    expected="an encoder of the zoo, or --against to compare with",
                    todo="Add --against DENSE, without --texts.",
                )
            )
        rows = [{"name": found.path.name, **_size(found)}]
        if dense is not None:
            rows.insert(0, {"name": dense.path.name, **_size(dense)})
            with watch("compare", None):
                weights, only_a, only_b = compare(dense.params, found.params)
            _same_weights(path, against, only_a + only_b)
            rows[-1]["error"] = total(weights)["error"]
        if found.encoder is not None:
            _measure(rows, found, dense, texts, pairs, watch)
    emit({"rows": rows}, _text(rows), as_json=as_json)


def _size(found: Any) -> dict[str, Any]:
    from lrjax import ops

    return {"params": ops.cost(found.params).params, "bytes": found.disk_bytes}


def _same_weights(path: Path, against: Path | None, odd: list[str]) -> None:
    from lrjax.errors import CheckpointError, message

    if odd:
        raise CheckpointError(
            message(
                path=f"{path}, {odd[0]}",
                got=f"{len(odd)} weights that only one of the two has",
                expected=f"the weights of {against}",
                todo="Compare a model with the one it was made from.",
            )
        )


def _measure(
    rows: list[dict[str, Any]],
    found: Any,
    dense: Any,
    texts: Path | None,
    pairs: int,
    watch: Any,
) -> None:
    """Adds cosine, recall and speed to the rows of an encoder."""
    import numpy as np

    from lrjax.cli import texts as reading
    from lrjax.demo import corpus
    from lrjax.demo.encode import encode
    from lrjax.demo.evaluate import Task
    from lrjax.demo.retrieval import cosine, recall

    if texts is not None:
        queries, lines = [], reading.read(texts)
    else:
        with watch("read the standard library", None):
            held_out = corpus.split(corpus.read())[1][:pairs]
        queries, lines = [p.query for p in held_out], [p.document for p in held_out]
    both = [*queries, *lines]
    models = [found.params] if dense is None else [dense.params, found.params]
    task = Task(reading.embedder(found), reading.batches(found, both), len(queries))
    embeddings = []
    for row, params in zip(rows, models, strict=True):
        with watch(f"embed {len(both)} texts, {row['name']}", len(task.batches)) as advance:
            embeddings.append(encode(task.embed, params, task.batches, len(both), advance))
        if not np.isfinite(embeddings[-1]).all():
            raise FloatingPointError(f"{row['name']}: embeddings that are not finite")
    with watch("measure the speed", None):
        speeds = task.speeds({str(i): params for i, params in enumerate(models)})
    for i, (row, embedded) in enumerate(zip(rows, embeddings, strict=True)):
        documents = embedded[len(queries) :]
        if dense is not None:
            row["cosine"] = cosine(documents, embeddings[0][len(queries) :])
        if queries:
            shares = recall(embedded[: len(queries)], documents, (1, 10))
            row |= {f"recall@{k}": share for k, share in shares.items()}
        row["sentences_per_s"] = speeds[str(i)]


def _text(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(key for row in rows for key in row if key != "name"))
    wide = ("params", "bytes", "sentences_per_s")
    lines = [
        [
            row["name"],
            *(
                f"{row[key]:,.0f}" if key in wide and key in row else number(row.get(key), 4)
                for key in names
            ),
        ]
        for row in rows
    ]
    return columns(["name", *names], lines)
