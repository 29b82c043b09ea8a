"""The machine that a result is from, and who else uses it meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The instructions that decide how fast a matrix product can be.
FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "amx_tile")


def describe() -> dict[str, Any]:
    """Processor, caches, memory and system; what Linux does not tell elsewhere is left empty."""
    processor = _read("/proc/cpuinfo")
    flags = set(_field(processor, "flags").split())
    memory = _field(_read("/proc/meminfo"), "MemTotal").split()
    return {
        "processor": _field(processor, "model name") or platform.processor(),
        "family": " ".join(_field(processor, name) for name in ("cpu family", "model", "stepping")),
        "cores": cores(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "caches": _caches(),
        "memory_gb": round(int(memory[0]) * 1024 / 1e9, 1) if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_seconds() -> float | None:
    """Processor time that all processes have used since the machine started; None where it cannot be told."""
    line = _read("/proc/stat").partition("\n")[0].split()
    if not line:
        return None
    user, nice, system, _idle, _waiting, *interrupts = map(int, line[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """`count` processes that take what processor time they get, as neighbours on a shared machine do."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _caches() -> dict[str, str]:
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(str(folder / name)).strip() for name in ("level", "type", "size"))
        sizes[f"L{level}{kind[0].lower() if kind in ('Data', 'Instruction') else ''}"] = size
    return sizes


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _field(text: str, name: str) -> str:
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")
