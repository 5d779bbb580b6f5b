"""The job: shrink a real sentence encoder, and search the standard library with what is left.

Calibrate on one half of the files, plan, compress, save and reload; then evaluate on the other
half, beside the dense model and beside a plain SVD of the same size.
"""

import importlib.util
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrjax import trees
from lrjax.calibrate import Stats, calibrate
from lrjax.compress import compress
from lrjax.decompose import SVD, Banded
from lrjax.demo import corpus, weights
from lrjax.demo.corpus import Pair
from lrjax.demo.encode import Batch, Tokenizer, batches
from lrjax.demo.evaluate import Task
from lrjax.demo.result import Result, Row
from lrjax.demo.watch import Watch, unwatched
from lrjax.errors import ArtefactError, CheckpointError, message
from lrjax.io import artefact
from lrjax.metrics import Frobenius
from lrjax.ops import cost
from lrjax.plan import Budget, Uniform, plan
from lrjax.sensitivity import sensitivity
from lrjax.zoo import load, sentence_embedder

BLOCKS, WORDS = "encoder/**/kernel", "embeddings/word/embedding"
RULES = {BLOCKS: SVD(), WORDS: Banded()}
PLAIN = {BLOCKS: SVD(), WORDS: SVD()}
CALIBRATION_PAIRS, SENSED_PAIRS, EVALUATION_PAIRS = 384, 36, 500


def run(
    out: Path,
    *,
    keep: float = 0.6,
    embedding_keep: float = 0.5,
    overwrite: bool = False,
    watch: Watch = unwatched,
) -> Result:
    """Compresses all-MiniLM-L6-v2 and measures what is left of it.

    Args:
        out: folder for the artefact (``model``) and the picture (``spectra.png``).
        keep: share of the parameters of the transformer blocks' matrices that is kept.
        embedding_keep: share of the word table's parameters that is kept.
        overwrite: let both replace what an earlier run left.
        watch: told of every stage, for a progress bar.

    Raises:
        CheckpointError: the weights' package is missing or holds other weights.
        BudgetError: a keep cannot be reached.
        ArtefactError: ``out`` exists and may not be overwritten, or the reloaded model differs.
    """
    start = time.perf_counter()
    _need("matplotlib", "tokenizers")
    budget = {BLOCKS: Budget(keep=keep), WORDS: Budget(keep=embedding_keep)}
    _refuse(out, overwrite)
    with watch("read the weights", None):
        folder = weights.find()
        model, params = load(folder)
        embed = jax.jit(sentence_embedder(model))
    with watch("read the standard library", None):
        given, held_out = corpus.split(corpus.read())
        given, held_out = given[:CALIBRATION_PAIRS], held_out[:EVALUATION_PAIRS]
        tokenize = Tokenizer(folder)
        task = Task(embed, _batches(tokenize, held_out), len(held_out))
    dense = _embeddings(task, "dense", params, watch)
    stats = _calibrate(embed, params, _batches(tokenize, given), watch)
    felt = _sensitivity(embed, params, _batches(tokenize, given[:SENSED_PAIRS]), stats, watch)
    with watch("plan and compress", None):
        chosen = plan(params, RULES, budget=budget, stats=stats, sensitivity=felt)
        small = jax.block_until_ready(compress(params, chosen, stats))
    with watch("plain SVD at the same size", None):
        flat = plan(params, PLAIN, budget=budget, metric=Frobenius(), allocation=Uniform())
        plain = jax.block_until_ready(compress(params, flat))
    with watch("save and reload", None):
        about = {
            "config": model.config.to_json(),
            "extra_files": [folder / name for name in ("tokenizer.json", "config.json")],
        }
        target = out / "model"
        out.mkdir(parents=True, exist_ok=True)
        artefact.save(target, small, plan=chosen, stats=stats, overwrite=overwrite, **about)
        reloaded = artefact.load(target).params
        sizes = {"compressed": _disk_bytes(target)}
        for name, other in (("dense", params), ("svd", plain)):
            with tempfile.TemporaryDirectory(dir=out) as scratch:
                artefact.save(Path(scratch) / name, other, **about)
                sizes[name] = _disk_bytes(Path(scratch) / name)
    found = {
        "dense": dense,
        "svd": _embeddings(task, "svd", plain, watch),
        "compressed": _embeddings(task, "compressed and reloaded", reloaded, watch),
    }
    _check_equal(task, small, found["compressed"], target)
    models = {"dense": params, "svd": plain, "compressed": reloaded}
    with watch("measure the speed", 2 * len(models)) as advance:
        speeds = task.speeds(models, advance, rounds=2)
    rows = tuple(
        Row(
            name=name,
            keep=cost(models[name]).params / cost(params).params,
            bytes=sizes[name],
            cosine=task.scores(found[name], dense)[0],
            recall=task.scores(found[name], dense)[1],
            sentences_per_s=speeds[name],
        )
        for name in models
    )
    with watch("draw the spectra", None):
        from lrjax.demo.picture import draw

        draw(out / "spectra.png", params, stats, chosen, rows)
    return Result(
        rows=rows,
        block_keep=keep,
        embedding_keep=embedding_keep,
        corpus=corpus.corpus_id((*given, *held_out)),
        calibration_tokens=int(stats.tokens),
        pairs=len(held_out),
        seconds=time.perf_counter() - start,
        artefact=target,
        picture=out / "spectra.png",
        plan=chosen,
    )


def _need(*packages: str) -> None:
    """One line now in the place of an import error later."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CheckpointError(
            message(
                got=f"no package {' and '.join(missing)}",
                expected="the packages of the demo",
                todo="Run: pip install 'lrjax[demo]'",
            )
        )


def _refuse(out: Path, overwrite: bool) -> None:
    """An early word, before a minute of work, that the outcome would have no place."""
    for name in ("model", "spectra.png"):
        if (out / name).exists() and not overwrite:
            raise ArtefactError(
                message(
                    path=str(out / name),
                    got="something that is there already",
                    expected="a name that is free",
                    todo="Choose another folder, or allow overwriting.",
                )
            )


def _batches(tokenize: Tokenizer, pairs: tuple[Pair, ...]) -> tuple[Batch, ...]:
    return tuple(batches(tokenize([*(p.query for p in pairs), *(p.document for p in pairs)])))


def _embeddings(task: Task, name: str, params: Any, watch: Watch) -> np.ndarray:
    with watch(f"embed {2 * task.pairs} texts, {name}", len(task.batches)) as advance:
        return task.embeddings(params, advance)


def _calibrate(embed: Any, params: Any, given: tuple[Batch, ...], watch: Watch) -> Stats:
    """Second moments by random probes of the embeddings: |f(W) - f(W0)|^2 / 2 is 1 - cosine."""
    with watch("calibrate", len(given)) as advance:
        return calibrate(
            lambda params, batch: embed(params, *batch),
            params,
            [(b.ids, b.mask) for b in given],
            mask=lambda batch: batch[1],
            select=tuple(RULES),
            on_batch=lambda done: advance(),
        )


def _sensitivity(
    embed: Any, params: Any, given: tuple[Batch, ...], stats: Stats, watch: Watch
) -> Mapping[str, Sequence[float]]:
    """How far the embeddings move where one matrix alone is factored; words have their own budget.

    Few functions do: 16 and 48 give the same cosine, .940 with all words dense.
    """
    rules = {BLOCKS: RULES[BLOCKS]}
    count = sum(trees.match(BLOCKS, path) for path in trees.paths(params))
    with watch("measure sensitivities", count) as advance:
        return sensitivity(
            lambda params, batch: embed(params, *batch),
            params,
            rules,
            [(b.ids, b.mask) for b in given],
            stats,
            on_weight=lambda *_: advance(),
        )


def _check_equal(task: Task, small: Any, reloaded: np.ndarray, target: Path) -> None:
    """The reloaded model's embeddings are those of the model that was saved, bit by bit."""
    for batch in task.sample:
        before = np.asarray(task.embed(small, batch.ids, batch.mask))[: len(batch.positions)]
        if not np.array_equal(before, reloaded[list(batch.positions)]):
            raise ArtefactError(
                message(
                    path=str(target),
                    got="other embeddings after reloading",
                    expected="the same, bit by bit",
                    todo="Report this as a bug, with your jax version.",
                )
            )


def _disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
