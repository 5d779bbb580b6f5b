"""The newcomer's job: a real sentence encoder made small, and judged by what it still finds."""

from lrjax.demo.job import run
from lrjax.demo.result import Result, Row
from lrjax.demo.show import progress, table

__all__ = ["Result", "Row", "progress", "run", "table"]
