"""Arguments and options that several commands share."""

import enum
from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    Path,
    typer.Argument(
        metavar="PATH", help="Artefact, checkpoint folder, safetensors file or orbax folder."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Rule = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="GLOB=SPEC",
        help="What becomes of the weights that match: '**/kernel=SVD', '**/kernel=SVD(rank=64)', "
        "'head/**=dense'; several formats to choose from are joined by '|'. Repeatable; the first "
        "match wins. Default: every matrix by SVD.",
    ),
]
Rules = Annotated[
    Path | None,
    typer.Option("--rules", metavar="FILE", help="JSON object of globs and specs; after --rule."),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="SHARE",
        help="Parameters to keep, as a share of the matched weights' (0.5), or one for each glob "
        "('encoder/**=0.6', repeatable).",
    ),
]
Bytes = Annotated[
    list[str] | None,
    typer.Option("--bytes", metavar="SIZE", help="Bytes of the whole tree: 40e6, 40MB, GLOB=40MB."),
]
Flops = Annotated[
    list[str] | None,
    typer.Option("--flops", metavar="COUNT", help="FLOPs per token of the matched weights: 2e9."),
]
Tile = Annotated[int, typer.Option("--tile", help="Ranks are multiples of it.")]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="KIND",
        help="What error means: Frobenius, Input, TwoSided(center=True), ASVD(alpha=0.5), FWSVD, "
        "TFWSVD, ... With --texts, Fisher information is that of random probes of the embeddings. "
        "Default: all that the statistics allow.",
    ),
]


class AllocationName(enum.Enum):
    """How a budget is shared among the weights."""

    UNIFORM = "uniform"
    GLOBAL = "global"


Allocation = Annotated[
    AllocationName | None,
    typer.Option("--allocation", help="The same keep everywhere, or by gain. Default: as fits."),
]
Texts = Annotated[
    Path | None,
    typer.Option("--texts", metavar="FILE", help="One text a line, for an encoder with tokenizer."),
]
Statistics = Annotated[
    Path | None,
    typer.Option("--stats", metavar="FOLDER", help="Statistics that an earlier run saved."),
]
Sensitivity = Annotated[
    int,
    typer.Option(
        "--sensitivity",
        metavar="COUNT",
        min=0,
        help="Measure on so many of the --texts (64 are enough) how far the error of each weight "
        "reaches the output, and weigh losses by it. Default: 0, not measured.",
    ),
]
SaveStatistics = Annotated[
    Path | None,
    typer.Option("--save-stats", metavar="FOLDER", help="Save the statistics gathered."),
]
