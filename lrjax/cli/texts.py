"""Texts for an encoder: a file of lines, tokenised into batches; statistics from them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrjax.cli.source import Source
from lrjax.errors import CheckpointError, StatsError, message


def read(file: Path) -> list[str]:
    """The lines of a file that hold text.

    Raises:
        StatsError: there are none, or the file is no UTF-8 text.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as cause:
        raise _no_texts(file, f"no UTF-8 text ({cause.reason})") from cause
    found = [line for line in lines if line]
    if not found:
        raise _no_texts(file, "no text")
    return found


def batches(source: Source, texts: Sequence[str]) -> tuple[Any, ...]:
    """The texts as batches of token ids for the source's own tokenizer.

    Raises:
        CheckpointError: the source is no encoder of the zoo, or has no tokenizer.
    """
    from lrjax.demo import encode

    need_encoder(source)
    return tuple(encode.batches(encode.Tokenizer(source.path)(texts)))


def embedder(source: Source) -> Callable[..., Any]:
    """embed(params, ids, mask) -> [texts, d] of the source's model, compiled.

    Raises:
        CheckpointError: the source is no encoder of the zoo.
    """
    import jax

    from lrjax.zoo import sentence_embedder

    need_encoder(source)
    return jax.jit(sentence_embedder(source.encoder))


def calibrate(
    source: Source,
    texts: Sequence[str],
    globs: Sequence[str],
    watch: Any,
    needs: Collection[Any] = (),
) -> Any:
    """Statistics of the weights under `globs`, by random probes of the text's embeddings.

    Of magnitudes and Fisher information there is what `needs` names.
    """
    from lrjax.calibrate import Fisher, Probes, calibrate
    from lrjax.metrics import Need

    fisher = None
    if {Need.ROW_FISHER, Need.ELEMENT_FISHER} & set(needs):
        fisher = Fisher(elements=Need.ELEMENT_FISHER in needs, labels=Probes())
    embed, given = embedder(source), batches(source, texts)
    with watch("calibrate", len(given)) as advance:
        return calibrate(
            lambda params, batch: embed(params, *batch),
            source.params,
            [(batch.ids, batch.mask) for batch in given],
            mask=lambda batch: batch[1],
            select=tuple(globs),
            magnitudes=Need.MAGNITUDES in needs,
            fisher=fisher,
            on_batch=lambda done: advance(),
        )


def sensitivity(
    source: Source,
    texts: Path | None,
    count: int,
    rules: Mapping[str, Any],
    stats: Any,
    metric: Any,
    watch: Any,
) -> Any:
    """Sensitivities of the weights by `count` of the texts, evenly chosen; None for none.

    Raises:
        StatsError: there are no texts to measure them by.
    """
    if not count:
        return None
    if texts is None:
        got, todo = f"--sensitivity {count} without --texts", "Give --texts too."
        raise StatsError(message(got=got, expected="texts to measure it by", todo=todo))
    from lrjax.sensitivity import sensitivity

    given = read(texts)
    embed, step = embedder(source), max(len(given) // count, 1)
    with watch("measure sensitivities", None):
        return sensitivity(
            lambda params, batch: embed(params, *batch),
            source.params,
            rules,
            [(batch.ids, batch.mask) for batch in batches(source, given[::step][:count])],
            stats,
            metric=metric,
        )


def need_encoder(source: Source) -> None:
    """Refuses a source whose model is no encoder, or not known.

    Raises:
        CheckpointError: it is not.
    """
    if source.encoder is None:
        raise CheckpointError(
            message(
                path=str(source.path),
                got=f"weights without a model that encodes texts ({source.kind})",
                expected="an encoder of the zoo, with config.json and tokenizer.json",
                todo="Leave --texts out, or calibrate from Python with lrjax.calibrate.",
            )
        )


def _no_texts(file: Path, got: str) -> StatsError:
    return StatsError(
        message(path=str(file), got=got, expected="one text a line", todo="Give another file.")
    )
