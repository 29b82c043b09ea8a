"""What `test_rollouts.py` asks of processes of its own."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner


def llmrec(arguments: list[str]) -> dict[str, Any]:
    """Exit status and output of the ``llmrec`` command line."""
    from llmrec_plugin.cli import main

    result = CliRunner().invoke(main, arguments)
    return {"status": result.exit_code, "output": result.output, "error": repr(result.exception)}
