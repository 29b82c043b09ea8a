from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from llmrec_plugin.runtime.workers import in_ray_worker, worker_settings
from llmrec_plugin.settings import load_settings


@pytest.fixture(autouse=True)
def _plain_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMREC_THREADS", "6")
    for name in ("ray", "pyspark"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def _ray(task: str | None, **resources: float) -> SimpleNamespace:
    context = SimpleNamespace(get_task_id=lambda: task, get_assigned_resources=lambda: resources)
    return SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)


def _pyspark(cpus: int | None) -> SimpleNamespace:
    context = None if cpus is None else SimpleNamespace(cpus=lambda: cpus)
    return SimpleNamespace(TaskContext=SimpleNamespace(get=lambda: context))


def test_a_process_of_its_own_takes_what_the_settings_say() -> None:
    assert worker_settings() == load_settings()
    assert not in_ray_worker()


@pytest.mark.parametrize(("assigned", "threads"), [({"CPU": 2.0}, 2), ({"CPU": 0.5}, 1), ({}, 1), ({"CPU": 9.0}, 6)])
def test_a_ray_task_takes_its_own_cpus(
    monkeypatch: pytest.MonkeyPatch, assigned: dict[str, float], threads: int
) -> None:
    monkeypatch.setitem(sys.modules, "ray", _ray("task", **assigned))
    assert in_ray_worker()
    assert (worker_settings().threads, worker_settings().progress) == (threads, False)


def test_a_driver_of_ray_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", _ray(None))
    assert not in_ray_worker()
    assert worker_settings() == load_settings()


def test_a_spark_task_takes_its_own_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", _pyspark(2))
    assert (worker_settings().threads, worker_settings().progress) == (2, False)
    monkeypatch.setitem(sys.modules, "pyspark", _pyspark(None))
    assert worker_settings() == load_settings()
