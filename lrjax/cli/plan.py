"""`lrjax plan`: formats and ranks for a budget, without factoring anything."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lrjax.cli import options
from lrjax.cli.output import emit, progress


def plan(
    path: options.Source,
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
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Save the plan as JSON.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """What would become of every weight."""
    from lrjax.cli import rules as reading
    from lrjax.cli import source
    from lrjax.cli import texts as measuring

    budget = reading.read_budget(keep, nbytes, flops)
    kind = reading.read_metric(metric)
    given = reading.read_rules(rule, rules, kind)
    with progress() as watch:
        with watch("read", None):
            found = source.read(path)
        needs = reading.needs(given, kind)
        seen = statistics(found, given, texts, stats, save_stats, watch, needs)
        felt = measuring.sensitivity(found, texts, sensitivity, given, seen, kind, watch)
        with watch("plan", None):
            chosen = make(found.params, given, budget, seen, kind, allocation, tile, felt)
    if out is not None:
        chosen.save(out, overwrite=force)
    emit(chosen.to_json() | {"keep": chosen.keep}, str(chosen), as_json=as_json)


def make(
    params: Any,
    rules: Mapping[str, Any],
    budget: Any,
    stats: Any,
    metric: Any,
    allocation: options.AllocationName | None,
    tile: int,
    sensitivity: Any,
) -> Any:
    """The plan."""
    from lrjax.plan import Global, Uniform, plan

    ways = {None: None, "uniform": Uniform(), "global": Global()}
    way = ways[None if allocation is None else allocation.value]
    return plan(
        params,
        rules,
        budget=budget,
        stats=stats,
        metric=metric,
        allocation=way,
        tile=tile,
        sensitivity=sensitivity,
    )


def statistics(
    found: Any,
    rules: Mapping[str, Any],
    texts: Path | None,
    stats: Path | None,
    save: Path | None,
    watch: Any,
    needs: Collection[Any] = (),
) -> Any:
    """Statistics from a folder or from texts, with all that `needs` names; None without both.

    Raises:
        StatsError: both are given, or there is nothing to save.
    """
    from lrjax.cli import texts as reading
    from lrjax.errors import StatsError, message
    from lrjax.io import load_stats, save_stats

    if (texts is not None and stats is not None) or (save is not None and texts is None):
        todo = "Give --texts, with or without --save-stats, or --stats."
        got = "--stats beside --texts" if stats is not None else "--save-stats without --texts"
        raise StatsError(message(got=got, expected="one source of statistics", todo=todo))
    if stats is not None:
        return load_stats(stats)
    if texts is None:
        return None
    globs = [glob for glob, spec in rules.items() if spec is not None]
    seen = reading.calibrate(found, reading.read(texts), globs, watch, needs)
    if save is not None:
        save_stats(save, seen)
    return seen
