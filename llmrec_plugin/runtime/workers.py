"""What a process may use when Ray or Spark gave it a share of a machine.

Neither package is imported here: a process that has not imported one is none of its workers.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from llmrec_plugin.settings import Settings, load_settings


def worker_settings() -> Settings:
    """This process's settings; in a worker of Ray or Spark with its task's CPUs only, and without progress bars.

    Raises:
        SettingsError: A variable holds an invalid value.
    """
    settings = load_settings()
    cpus = _task_cpus()
    return settings if cpus is None else replace(settings, threads=min(settings.threads, cpus), progress=False)


def in_ray_worker() -> bool:
    """Whether this code runs in a task or an actor of Ray."""
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized() and ray.get_runtime_context().get_task_id())


def _task_cpus() -> int | None:
    """CPUs of the Ray or Spark task that runs this code, at least 1; None outside of one."""
    if in_ray_worker():
        assigned = sys.modules["ray"].get_runtime_context().get_assigned_resources()
        return max(1, int(assigned.get("CPU", 1)))
    pyspark = sys.modules.get("pyspark")
    context = pyspark.TaskContext.get() if pyspark else None
    return None if context is None else max(1, context.cpus())
