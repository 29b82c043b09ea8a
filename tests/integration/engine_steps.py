"""What the child processes of the engine's tests do: runs that are killed, disturbed or watched.

A run is a process of its own, forked from the step's process. Arguments and answers are JSON.
"""

from __future__ import annotations

import datetime
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.infra.registry.registry import Registry
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from samples import embedding

from llmrec_plugin.feast.vectors import vector_values
from llmrec_plugin.pipeline.packing import stored_values
from llmrec_plugin.runtime.cache import ValueCache
from llmrec_plugin.runtime.ledger import Target
from llmrec_plugin.runtime.runner import Runner
from llmrec_plugin.settings import load_settings

ONLINE = Path("data/online.db")
ENCODED = Path("data/encoded")
EVENTS = (
    (ValueCache, "put_many"),
    (ValueCache, "record"),
    (SqliteOnlineStore, "online_write_batch"),
    (Target, "begin_run"),
    (Target, "write"),
    (Registry, "commit"),
)


def killed_runs(view: str, end: str, kills: int, seed: int) -> dict[str, Any]:
    """Kills a run at `kills` random points, each time from the state in which this repo is now, and goes on after it.

    Half of the kills fall just before or after a write to cache, store, ledger or registry, half at any moment.
    """
    folders = [Path("data"), load_settings().cache_folder]
    saved = [folder.with_name(f"{folder.name}-saved") for folder in folders]
    for folder, copy in zip(folders, saved, strict=True):
        shutil.copytree(folder, copy)

    def restore() -> None:
        for folder, copy in zip(folders, saved, strict=True):
            shutil.rmtree(folder)
            shutil.copytree(copy, folder)

    began = time.monotonic()
    log = Path("data/events")
    assert _wait(_start(lambda: _materialize(view, end, at_event=lambda _: _append(log, 1)))) == 0
    seconds = time.monotonic() - began
    clean = _state(view) | {"encoded": _total(ENCODED), "events": log.stat().st_size}
    chance = random.Random(seed)
    points = [chance.randrange(clean["events"]) for _ in range(kills // 2)]
    delays = [chance.uniform(0, seconds) for _ in range(kills - len(points))]

    runs = []
    for point in (*points, *delays):
        run: dict[str, Any] = {"point": point, "killed": False}
        while not run["killed"]:
            restore()
            run["killed"] = _wait(_start_killed(view, end, run["point"])) == -signal.SIGKILL
            if isinstance(point, float):
                run["point"] /= 2  # the run was over before
        run["before"] = _total(ENCODED)
        run["status"] = _wait(_start(lambda: _materialize(view, end)))
        run |= {"state": _state(view), "encoded": _total(ENCODED)}
        later = _run_again(view, "2027-01-01")
        runs.append(run | {"later": later, "unchanged": _state(view) == run["state"]})
    restore()
    for copy in saved:
        shutil.rmtree(copy)
    return {"clean": clean, "runs": runs}


def materialize(
    view: str, end: str, replacement: str | None = None, in_place: bool = False, after: int = 0
) -> str | None:
    """Materializes; after that many writes the source is replaced. Returns the error, if there was one."""
    if replacement is not None:
        writes = iter(range(sys.maxsize))

        def replace(moment: str) -> None:
            if moment == "after online_write_batch" and next(writes) == after:
                source, new = Path("data/items.parquet"), Path(replacement)
                if in_place:
                    source.write_bytes(new.read_bytes())
                else:
                    os.replace(new, source)

        _observe(replace)
    try:
        FeatureStore(repo_path=".").materialize_incremental(_moment(end), [view])
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    return None


def together(view: str, end: str, count: int) -> list[int]:
    """The exit statuses of runs that begin at once; the number of texts they encoded lies in a file."""
    return [_wait(child) for child in [_start(lambda: _materialize(view, end)) for _ in range(count)]]


def read_meanwhile(view: str, end: str, items: list[str]) -> dict[str, Any]:
    """What a reader sees of `items` while a run is under way: the number of reads, and the distinct answers."""
    reader = FeatureStore(repo_path=".")
    read, write = os.pipe()

    def run() -> None:
        os.read(read, 1)  # waits for the first answer
        _materialize(view, end)

    child = _start(run)
    answers: list[Any] = []
    reads = 0
    while not os.waitpid(child, os.WNOHANG)[0]:
        reader.refresh_registry()
        response = reader.get_online_features([f"{view}:{view}"], [{"item": item} for item in items])
        answer = response.to_dict()[view]
        reads += 1
        os.write(write, b".")
        if answer not in answers:
            answers.append(answer)
    os.close(read)
    os.close(write)
    return {"reads": reads, "answers": answers}


def peak_memory(view: str, rows: int, dims: int) -> dict[str, Any]:
    """Kilobytes of memory, beyond those before, that a run over `rows` new rows needed at most; and its seconds."""
    names = pa.array([f"row{number:08d}" for number in range(rows)])
    at = pa.array(np.full(rows, 1_700_000_000_000_000), pa.timestamp("us", "UTC"))
    columns = {"item": names, "title": names, "note": names, "event_timestamp": at, "created": at}
    pq.write_table(pa.table(columns), "data/items.parquet", row_group_size=5_000)
    del names, at, columns
    pa.default_memory_pool().release_unused()

    def run() -> None:
        before = _status("VmRSS")
        _materialize(view, "2026-01-01")
        Path("data/peak").write_text(f"{before} {_status('VmHWM')}")

    began = time.monotonic()
    assert _wait(_start(run)) == 0
    before, peak = map(int, Path("data/peak").read_text().split())
    return {"before": before, "peak": peak, "seconds": time.monotonic() - began, "dims": dims}


def _run_again(view: str, end: str) -> dict[str, Any]:
    """What one more run writes, and its exit status."""
    log = Path("data/later")

    def at_event(moment: str) -> None:
        if moment in ("before put_many", "before online_write_batch", "before write"):
            _append(log, 1)

    status = _wait(_start(lambda: _materialize(view, end, at_event=at_event)))
    return {"status": status, "writes": log.stat().st_size if log.exists() else 0}


def _start_killed(view: str, end: str, point: float) -> int:
    """Starts a run that kills itself at event number `point`, or is killed after `point` seconds."""
    if isinstance(point, float):
        child = _start(lambda: _materialize(view, end))
        time.sleep(point)
        os.kill(child, signal.SIGKILL)
        return child
    numbers = iter(range(sys.maxsize))
    return _start(lambda: _materialize(view, end, at_event=lambda _: next(numbers) == point and _die()))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _start(run: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _materialize(view: str, end: str, at_event: Callable[[str], Any] = lambda _: None) -> None:
    _observe(at_event)
    encode = Runner._encode

    def counted(runner: Runner, bound: Any, texts: list[str], *arguments: Any, **options: Any) -> int:
        _append(ENCODED, len(texts))
        return encode(runner, bound, texts, *arguments, **options)

    Runner._encode = counted  # type: ignore[method-assign]
    FeatureStore(repo_path=".").materialize_incremental(_moment(end), [view])


def _observe(at_event: Callable[[str], Any]) -> None:
    """Calls `at_event` before and after everything that a run writes."""
    for owner, name in EVENTS:
        setattr(owner, name, _observed(getattr(owner, name), name, at_event))


def _observed(original: Callable[..., Any], name: str, at_event: Callable[[str], Any]) -> Callable[..., Any]:
    def observed(*arguments: Any, **options: Any) -> Any:
        at_event(f"before {name}")
        result = original(*arguments, **options)
        at_event(f"after {name}")
        return result

    return observed


def _append(path: Path, count: int) -> None:
    """Adds to a number that survives a kill: the length of a file."""
    with path.open("ab", buffering=0) as stream:
        stream.write(bytes(count))


def _total(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _state(view: str) -> dict[str, Any]:
    """Every column of every row of the online table and of the ledger, but for the number of the run."""
    with closing(sqlite3.connect(ONLINE)) as connection:
        rows = connection.execute(f"SELECT * FROM test_{view} ORDER BY entity_key, feature_name").fetchall()
    with closing(sqlite3.connect(load_settings().cache_folder / "ledger.sqlite")) as connection:
        written = connection.execute(
            "SELECT key, at, rows.created, digest, invalid, pushed FROM rows ORDER BY target, key"
        ).fetchall()
    return {"store": [list(map(repr, row)) for row in rows], "ledger": [list(map(repr, row)) for row in written]}


def _status(name: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)


def _moment(day: str) -> Any:
    return datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC)


def serialized_values(storage: str, dims: int) -> list[list[str]]:
    """Serialized values of some vectors, in hexadecimal: ours, and as Feast's own interface makes them."""
    feature = embedding(storage=storage, dims=dims)
    rows = np.random.default_rng(0).standard_normal((5, dims)).astype(np.float32)
    rows[1], rows[2, 0] = 0.0, -0.0
    vectors = [None, *rows, None, rows[:, ::-1][0]]
    stored = stored_values(feature, vectors)
    expected = [
        Value()
        if value is None
        else Value(bytes_val=value)
        if isinstance(value, bytes)
        else Value(float_list_val=FloatList(val=value.tolist()))
        for value in stored
    ]
    return [[value.SerializeToString().hex() for value in side] for side in (vector_values(feature, vectors), expected)]
