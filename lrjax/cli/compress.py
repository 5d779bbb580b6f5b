"""`lrjax compress`: plan, factor, report, save."""

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from lrjax.cli import options
from lrjax.cli.output import emit, progress


class StorageName(enum.Enum):
    """How the artefact's tensors are stored."""

    SAFETENSORS = "safetensors"
    ORBAX = "orbax"


def compress(
    path: options.Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new artefact.")],
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="A saved plan, in place of rules and budget."),
    ] = None,
    rule: options.Rule = None,
    rules: options.Rules = None,
    keep: options.Keep = None,
    nbytes: options.Bytes = None,
    flops: options.Flops = None,
    metric: options.Metric = None,
    allocation: options.Allocation = None,
    tile: options.Tile = 1,
    texts: options.Texts = None,
    stats: options.Statistics = None,
    save_stats: options.SaveStatistics = None,
    sensitivity: options.Sensitivity = 0,
    storage: Annotated[
        StorageName, typer.Option("--storage", help="How the tensors are stored.")
    ] = StorageName.SAFETENSORS,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Compress PATH into a new artefact, and report every weight.

    Without --texts or --stats every entry of a weight counts alike: plain SVD.
    """
    from lrjax import io
    from lrjax.cli import plan as planning
    from lrjax.cli import rules as reading
    from lrjax.cli import source
    from lrjax.cli import texts as measuring
    from lrjax.compress import compress
    from lrjax.plan import Plan
    from lrjax.report import report

    _refuse(path, out, force)
    ready = _plan_given(
        plan_file, (rule, rules, keep, nbytes, flops, metric, allocation, sensitivity or None)
    )
    budget = reading.read_budget(keep, nbytes, flops)
    kind = reading.read_metric(metric)
    given = reading.read_rules(rule, rules, kind)
    chosen = Plan.load(ready) if ready is not None else None
    with progress() as watch:
        with watch("read", None):
            found = source.read(path)
        globs = {entry.path: True for entry in chosen.factored} if chosen is not None else given
        needs = reading.needs(given, kind)
        if chosen is not None:
            needs = {need for entry in chosen.factored for need in entry.kind.needs}
        seen = planning.statistics(found, globs, texts, stats, save_stats, watch, needs)
        if chosen is None:
            felt = measuring.sensitivity(found, texts, sensitivity, given, seen, kind, watch)
            with watch("plan", None):
                chosen = planning.make(
                    found.params, given, budget, seen, kind, allocation, tile, felt
                )
        with watch("factor", None):
            factored = compress(found.params, chosen, seen)
        with watch("report", None):
            done = report(found.params, factored, seen, chosen)
        with watch("save", None):
            io.save(
                out,
                factored,
                plan=chosen,
                stats=seen,
                config=found.config,
                source=path,
                extra_files=found.companions,
                format=io.Storage(storage.value),
                overwrite=force,
            )
    sizes = {"disk_bytes": source.disk_bytes(out), "source_bytes": found.disk_bytes}
    result = done.to_json() | {"artefact": out} | sizes
    text = f"{done}\n\n{out}: {sizes['disk_bytes']:,} bytes, from {sizes['source_bytes']:,}"
    emit(result, text, as_json=as_json)


def _plan_given(file: Path | None, others: tuple[Any, ...]) -> Path | None:
    """The saved plan, which leaves nothing else to choose.

    Raises:
        RuleError: rules or budgets are given beside it.
    """
    from lrjax.errors import RuleError, message

    if file is not None and any(other for other in others):
        got = "--plan beside rules, a budget, a metric, an allocation or --sensitivity"
        todo = "Give one of the two."
        raise RuleError(message(got=got, expected="a plan, or what it is made from", todo=todo))
    return file


def _refuse(path: Path, out: Path, force: bool) -> None:
    """An early word that the outcome would have no place, or take the source's.

    Raises:
        ArtefactError: it would.
    """
    from lrjax.errors import ArtefactError, message

    here, there = path.resolve(), out.resolve()
    if here == there or here in there.parents or there in here.parents:
        todo = "Choose a folder beside it; nothing was changed."
        expected = "a folder apart from the source"
        raise ArtefactError(message(path=str(out), got=str(path), expected=expected, todo=todo))
    if out.exists() and not force:
        got = "something that is there already"
        todo = "Choose another folder, or add --force."
        raise ArtefactError(message(path=str(out), got=got, expected="a free name", todo=todo))
