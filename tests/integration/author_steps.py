"""What the tests of the author's path do in processes that have Feast."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys


def run_script(arguments: list[str]) -> str:
    """What ``python SCRIPT ARGUMENTS`` prints."""
    script, sys.argv = arguments[0], list(arguments)
    sys.path.insert(0, ".")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(script, run_name="__main__")
    return printed.getvalue()
