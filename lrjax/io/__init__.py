"""Artefacts, statistics and published checkpoints, in and out."""

from lrjax.io import hf as hf
from lrjax.io.artefact import Artefact as Artefact
from lrjax.io.artefact import is_artefact as is_artefact
from lrjax.io.artefact import load as load
from lrjax.io.artefact import save as save
from lrjax.io.stats import load_stats as load_stats
from lrjax.io.stats import save_stats as save_stats
from lrjax.io.storage import Storage as Storage
