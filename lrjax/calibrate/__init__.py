"""Calibration: streaming, mergeable second moments of what every weight sees."""

from lrjax.calibrate.calibrator import calibrate
from lrjax.calibrate.observe import Observer, Probes
from lrjax.calibrate.stats import Stats, merge

__all__ = ["Observer", "Probes", "Stats", "calibrate", "merge"]
