"""Calibration statistics on disk: gathered once, used for many plans."""

import os
from pathlib import Path

from lrjax.calibrate import Stats
from lrjax.errors import ArtefactError, message
from lrjax.formats import Layout
from lrjax.io import folder
from lrjax.lift import Usage, Use, UseKind, WeightUse
from lrjax.metrics import Moments, Scatter, SquaredGradients

KIND = "lrjax statistics"
CLASSES = (Moments, Scatter, SquaredGradients, WeightUse, Use, UseKind, Layout)


def save_stats(path: str | os.PathLike[str], stats: Stats, *, overwrite: bool = False) -> None:
    """Saves statistics as a folder of safetensors and a manifest; whole or not at all.

    Raises:
        ArtefactError: the folder exists, or the statistics are not finite.
    """
    tree = {
        "inputs": stats.inputs,
        "outputs": stats.outputs,
        "tokens": stats.tokens,
        "usage": stats.usage,
        "fisher": stats.fisher,
    }
    content = {"statistics": stats.digest()}
    folder.write(Path(path), KIND, tree, classes=CLASSES, content=content, overwrite=overwrite)


def load_stats(path: str | os.PathLike[str]) -> Stats:
    """Loads what `save_stats` wrote, bit-equal.

    Raises:
        ArtefactError: as for `load`, or the statistics have another digest.
    """
    where = Path(path)
    tree, said = folder.read(where, KIND, classes=CLASSES)
    usage = Usage(tree["usage"])
    stats = Stats(tree["inputs"], tree["outputs"], tree["tokens"], usage, tree["fisher"])
    if stats.digest() != said["statistics"]:
        todo = "Calibrate again with this version of lrjax."
        raise ArtefactError(
            message(path=str(where), got=stats.digest(), expected=said["statistics"], todo=todo)
        )
    return stats
