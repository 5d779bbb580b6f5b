"""Peers in one process, in turn, timed by the median; compilation apart; JSON and a table."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

LIBRARIES = (
    *("jax", "jaxlib", "numpy", "scipy", "scikit-learn", "torch"),
    *("tensorly", "pyttb", "tntorch", "quimb"),
)

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""The wall's, or the processor's own time: what counts on a CPU that others use too."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A peer or one of our own forms.

    Attributes:
        name: what the table calls it.
        run: does the work once and hands back its result, finished or a JAX array under way.
        excess: of a result: error over the optimal error, minus one.
        ours: whether it is lrjax.
    """

    name: str
    run: Callable[[], Any]
    excess: Callable[[Any], float]
    ours: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """What one contestant did in one case; times in seconds."""

    case: str
    name: str
    ours: bool
    first: float
    median: float
    least: float
    rounds: int
    excess: float

    def to_json(self) -> dict[str, Any]:
        """The row, times in milliseconds."""
        ms = {k: round(1e3 * getattr(self, k), 3) for k in ("first", "median", "least")}
        rest = {"case": self.case, "name": self.name, "ours": self.ours, "rounds": self.rounds}
        return {**rest, **{f"{k}_ms": v for k, v in ms.items()}, "excess": float(self.excess)}


def compete(
    case: str,
    contestants: Sequence[Contestant],
    *,
    seconds: float = 8.0,
    least: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Every contestant in turn, round after round, so that a busy moment hits all alike.

    The first call of each, which compiles, is reported apart. Rounds go on until `seconds` are
    spent, but at least `least`, at most 50. `clock` is the wall's, or `time.process_time`: the
    processor's time is what counts on a CPU that others use too, and means nothing for a GPU.
    """
    first, excess = {}, {}
    for c in contestants:
        result, first[c.name] = _timed(c, clock)
        excess[c.name] = c.excess(result)
        del result
    times: dict[str, list[float]] = {c.name: [] for c in contestants}
    begin = time.perf_counter()
    rounds = 0
    while rounds < least or (time.perf_counter() - begin < seconds and rounds < 50):
        for c in contestants:
            times[c.name].append(_timed(c, clock)[1])
        rounds += 1
    return [
        Row(
            case,
            c.name,
            c.ours,
            first[c.name],
            statistics.median(times[c.name]),
            min(times[c.name]),
            rounds,
            excess[c.name],
        )
        for c in contestants
    ]


def options(about: str | None) -> argparse.ArgumentParser:
    """What every benchmark can be asked for; `about` is its docstring."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="small cases, a second each")
    parser.add_argument("--case", default="", help="only cases whose label contains this")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each case")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: own time only")
    parser.add_argument("--out", type=Path, help="JSON file; default stdout")
    return parser


def race(
    cases: Mapping[str, Callable[[], Sequence[Contestant]]],
    args: argparse.Namespace,
    *,
    least: int = 3,
) -> dict[str, Any]:
    """Run the cases asked for, print their tables, and hand back what is to be published."""
    rows, leads = [], []
    seconds = 1.0 if args.quick else args.seconds
    for label, contestants in cases.items():
        if args.case in label:
            own = compete(
                label, contestants(), seconds=seconds, least=least, clock=CLOCKS[args.clock]
            )
            lead = speedups(own)
            table(own, lead)
            rows += own
            leads += lead
    return {"clock": args.clock, "rows": [r.to_json() for r in rows], "speedups": leads}


def speedups(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each peer of a case: the fastest form of ours whose error is no larger, and its lead.

    Errors count as equal up to a thousandth of the optimum; `strict` says whether ours is smaller
    even without that.
    """
    found = []
    for peer in (r for r in rows if not r.ours):
        able = [r for r in rows if r.ours and r.excess <= max(peer.excess, 1e-3)]
        if able:
            best = min(able, key=lambda r: r.median)
            lead = {"peer": peer.name, "ours": best.name, "speedup": peer.median / best.median}
            strict = best.excess <= max(peer.excess, 1e-6)
            found.append({"case": peer.case, **lead, "strict": bool(strict)})
    return found


def machine() -> dict[str, Any]:
    """Device, versions and threads: what a figure is worthless without."""
    device = jax.devices()[0]
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    threads = {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "processor": _processor(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
    }


def table(rows: Sequence[Row], leads: Sequence[dict[str, Any]]) -> None:
    """Print one case to stderr, which leaves stdout to JSON."""
    lead = {d["peer"]: d for d in leads}
    view = Table(title=rows[0].case, title_justify="left")
    for column in ("", "median ms", "least ms", "first ms", "excess", "ours is faster by"):
        view.add_column(column, justify="left" if not column else "right")
    for r in sorted(rows, key=lambda r: r.median):
        d = lead.get(r.name)
        faster = f"{d['speedup']:.2f} x ({d['ours']})" if d else ""
        times = [f"{1e3 * t:.2f}" for t in (r.median, r.least, r.first)]
        name = f"[bold]{r.name}[/bold]" if r.ours else r.name
        view.add_row(name, *times, f"{max(r.excess, 0):.1e}", faster)
    Console(stderr=True).print(view)


def publish(result: dict[str, Any], out: Path | None) -> None:
    """JSON to a file or to stdout."""
    text = json.dumps(result, indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text)


def _timed(c: Contestant, clock: Callable[[], float]) -> tuple[Any, float]:
    begin = clock()
    result = jax.block_until_ready(c.run())
    return result, clock() - begin


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [s for s in info.read_text().splitlines() if s.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else platform.processor()
