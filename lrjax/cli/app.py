"""`lrjax COMMAND ...`: the commands, and what becomes of their errors.

Exit codes: 0; 2 for bad input, 1 for a failure, either with one line on stderr.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from lrjax.cli import compress, demo, diff, evaluate, generate, inspect, plan
from lrjax.errors import DensifyError, LrjaxError

BAD_INPUT, FAILURE = 2, 1

app = typer.Typer(
    name="lrjax",
    help="Low-rank compression of neural networks in JAX.",
    epilog="PATH is an artefact of lrjax, a Hugging Face folder that the zoo knows, a safetensors "
    "file or an orbax folder.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("compress")(compress.compress)
app.command("eval")(evaluate.evaluate)
app.command("diff")(diff.diff)
app.command("generate")(generate.generate)
app.command("demo")(demo.demo)


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Low-rank compression of neural networks in JAX."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code."""
    given = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    if not debug:  # orbax logs what it then raises
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        code = app(given, prog_name="lrjax", standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, line = verdict(error)
        sys.stderr.write(f"lrjax: {' '.join(line.split())}\n")
    sys.exit(code)


def verdict(error: BaseException) -> tuple[int, str]:
    """Exit code and reason of an error."""
    usage = getattr(error, "format_message", None)  # the parser's own errors have it
    if usage is not None:
        return BAD_INPUT, f"{usage()} (see lrjax --help)"
    if isinstance(error, KeyboardInterrupt):
        return FAILURE, "interrupted"
    if isinstance(error, DensifyError):
        return FAILURE, str(error)
    if isinstance(error, LrjaxError):
        return BAD_INPUT, str(error)
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError):
        return BAD_INPUT, f"{error.filename or ''}: {error.strerror or error}"
    return FAILURE, f"{type(error).__name__}: {error} (--debug shows where)"
