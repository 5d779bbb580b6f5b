"""The command line, a thin shell over the library; heavy imports wait until a command runs."""

from lrjax.cli.app import app as app
from lrjax.cli.app import main as main
