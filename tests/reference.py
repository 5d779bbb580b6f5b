"""The Python that has the reference library: this one, or that which the environment names."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest


def reference(*packages: str) -> str:
    """A Python that imports the packages; skips the test where there is none."""
    python = os.environ.get("LRJAX_REFERENCE_PYTHON") or sys.executable
    test = [python, "-c", f"import {', '.join(packages)}"]
    if not shutil.which(python) or subprocess.run(test, capture_output=True).returncode:
        names = " and ".join(packages)
        pytest.skip(f"needs {names}; LRJAX_REFERENCE_PYTHON names a Python that has them")
    return python


def ask(python: str, script: pathlib.Path, *arguments: object) -> None:
    """Runs a script of the reference library; what it prints, if it fails."""
    command = [python, script, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
