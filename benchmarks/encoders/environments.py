"""A virtual environment for each peer, made from its requirement file and kept until that file changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
STAMP = ".installed"


class InstallError(Exception):
    """An environment could not be made; the message says why."""


def python_of(environment: str | None, folder: Path) -> str:
    """The Python that has the packages of `environment`, installed first if need be.

    Args:
        environment: Name of a file in ``requirements``, without ``.txt``; None is the environment this runs in.
        folder: Where environments are kept.

    Raises:
        InstallError: A package does not install.
    """
    if environment is None:
        return sys.executable
    requirements = REQUIREMENTS / f"{environment}.txt"
    place = folder / environment
    python = place / "bin" / "python"
    stamp = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if (place / STAMP).is_file() and (place / STAMP).read_text() == stamp:
        return str(python)
    print(f"Installing {environment} into {os.path.relpath(place)}", file=sys.stderr, flush=True)
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--requirement", requirements]
    done = subprocess.run(install, text=True, capture_output=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1] if errors else f"pip ended with {done.returncode}"
        raise InstallError(f"{requirements.name} does not install: {reason}")
    (place / STAMP).write_text(stamp)
    return str(python)
