"""A tiny exported encoder, a runner for it and processes that start at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from samples import settings

from llmrec_plugin.artifacts import Artifact, ArtifactStore
from llmrec_plugin.runtime.runner import Runner

# The same examples in every run: a test that fails here fails everywhere.
hypothesis.settings.register_profile("same_everywhere", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("same_everywhere")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact folder that holds `tiny`; read only."""
    from tiny import export_tiny  # loads onnx, which most unit tests do not need

    folder = tmp_path_factory.mktemp("artifacts")
    export_tiny(ArtifactStore([folder]))
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Artifact:
    return ArtifactStore([tiny_folder]).current("tiny")


@pytest.fixture
def new_runner(tmp_path: Path, tiny_folder: Path) -> Callable[..., Runner]:
    """Makes runners as new processes would: one cache for all calls, no model loaded."""

    def make(**changes: object) -> Runner:
        return Runner(settings(tmp_path, **{"artifact_folders": (tiny_folder,), **changes}))

    return make


@pytest.fixture
def run_together() -> Callable[..., list[str]]:
    """Runs Python code in several processes that begin their rounds together; gives their outputs.

    The code reads its number from ``sys.argv[1]``, further arguments from there on, and calls ``wait()``
    at the start of each round.
    """

    def run(code: str, *arguments: object, processes: int = 4, rounds: int = 1) -> list[str]:
        prelude = "import sys\ndef wait():\n    print('ready', flush=True)\n    sys.stdin.readline()\n"
        started = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", prelude + code, str(number), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]
        try:
            for _ in range(rounds):
                for process in started:
                    assert process.stdout.readline() == "ready\n"
                for process in started:
                    process.stdin.write("\n")
                    process.stdin.flush()
            outputs = [process.communicate(timeout=60)[0] for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
                process.stdin.close()
                process.stdout.close()
        assert [process.returncode for process in started] == [0] * processes
        return outputs

    return run
