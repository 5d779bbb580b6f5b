"""Calibration: streaming, mergeable statistics of what every weight sees."""

from lrjax.calibrate.calibrator import calibrate
from lrjax.calibrate.fisher import Drawn, Fisher, Given
from lrjax.calibrate.observe import Observer
from lrjax.calibrate.probes import Probes
from lrjax.calibrate.stats import Stats, merge

__all__ = ["Drawn", "Fisher", "Given", "Observer", "Probes", "Stats", "calibrate", "merge"]
