"""What the tests use: processes that have Feast, and feature repos in temporary folders."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from tiny import export_tiny

import llmrec_plugin
from llmrec_plugin.artifacts import Artifact, ArtifactStore
from llmrec_plugin.runtime.cache import RunReport, ValueCache
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.settings import load_settings

HERE = Path(__file__).parent
PACKAGE = Path(llmrec_plugin.__file__).parent
SECONDS = 180.0


class StepError(Exception):
    """A child process failed; the message is what it printed."""


@dataclass(frozen=True)
class Finished:
    """A child process that ended."""

    status: int
    output: str

    def succeeded(self) -> str:
        """What it printed, both streams together."""
        if self.status != 0:
            raise StepError(f"exit status {self.status}\n{self.output}")
        return self.output


class Background:
    """A child process that goes on while the test does.

    Attributes:
        number: Of the process and of its group.
        log: File of what it prints.
    """

    def __init__(self, number: int, ended: Callable[[], int | None], log: Path, answer: Path) -> None:
        self._ended, self._answer = ended, answer
        self._status: int | None = None
        self.number, self.log = number, log

    def running(self) -> bool:
        if self._status is None:
            self._status = self._ended()
        return self._status is None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended before this time is over."""
        deadline = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def result(self, seconds: float = SECONDS) -> Any:
        """What the function returned."""
        assert self.wait(seconds), self.log.read_text(errors="replace")
        assert self._status is not None
        Finished(self._status, self.log.read_text(errors="replace")).succeeded()
        return json.loads(self._answer.read_text())

    def stop(self, seconds: float = 20) -> None:
        """Asks it to end, and kills it with its children if it does not."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            if self.running():
                os.killpg(self.number, sent)
                self.wait(seconds)


class Processes:
    """Gives each step a process of its own, forked from one that has imported Feast; see `processes.py`.

    A step that takes longer than `seconds` is killed. With `stock`, Feast is without our patches until a step imports
    our package.
    """

    def __init__(self, folder: Path, *, seconds: float = SECONDS, stock: bool = False) -> None:
        self._folder = folder
        self._options = ["--stock"] if stock else []
        self._seconds = seconds
        self._count = 0
        self._server: subprocess.Popen[str] | None = None

    def feast(self, *arguments: str, folder: Path, environ: dict[str, str], paths: Iterable[Path] = ()) -> Finished:
        """Runs the ``feast`` command line in `folder`."""
        return self._perform("feast", list(arguments), folder, environ, paths, fresh=False)[0]

    def call(
        self,
        target: str,
        *,
        folder: Path,
        environ: dict[str, str],
        paths: Iterable[Path] = (),
        fresh: bool = False,
        **arguments: Any,
    ) -> Any:
        """What a function of this folder returns, called in a process of its own.

        Args:
            target: ``module:function``.
            folder: The working folder.
            environ: Environment variables besides those of this process.
            paths: Folders put on the module search path.
            fresh: Start an interpreter instead of forking one that has imported Feast.
            arguments: Keyword arguments, which must be JSON.
        """
        finished, answer = self._perform(target, arguments, folder, environ, paths, fresh=fresh)
        finished.succeeded()
        return json.loads(answer.read_text())

    def start(
        self, target: str, arguments: Any, *, folder: Path, environ: dict[str, str], fresh: bool = False
    ) -> Background:
        """Starts a function of this folder, or the ``feast`` command line, and does not wait for it."""
        request, log, answer = self._prepared(target, arguments, folder, environ, (), background=True)
        if fresh:
            with log.open("wb") as stream:
                process = subprocess.Popen(_once(request), **_streams(stream), start_new_session=True)
            return Background(process.pid, process.poll, log, answer)
        number = self.request(request)
        assert number is not None
        return Background(number, lambda: self.request({"status": number}), log, answer)

    def request(self, request: dict[str, Any]) -> int | None:
        """The answer of the process that forks, see `processes.py`."""
        if self._server is None:
            self._server = self._started()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return None if answer is None else int(answer)

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()  # closes stdin, which ends it

    def _perform(
        self, target: str, arguments: Any, folder: Path, environ: dict[str, str], paths: Iterable[Path], *, fresh: bool
    ) -> tuple[Finished, Path]:
        request, log, answer = self._prepared(target, arguments, folder, environ, paths, background=False)
        status = self._run_fresh(request, log) if fresh else self.request(request)
        assert status is not None
        return Finished(status, log.read_text(errors="replace")), answer

    def _prepared(
        self,
        target: str,
        arguments: Any,
        folder: Path,
        environ: dict[str, str],
        paths: Iterable[Path],
        *,
        background: bool,
    ) -> tuple[dict[str, Any], Path, Path]:
        """The request, and the files of what is printed and answered."""
        self._count += 1
        log, answer = (self._folder / f"{self._count}.{kind}" for kind in ("log", "json"))
        request = {
            "target": target,
            "arguments": arguments,
            "environ": clean_environment() | environ,
            "folder": str(folder),
            "paths": [str(path) for path in paths],
            "log": str(log),
            "answer": str(answer),
            "seconds": self._seconds,
            "background": background,
        }
        return request, log, answer

    def _run_fresh(self, request: dict[str, Any], log: Path) -> int:
        with log.open("wb") as stream:
            return subprocess.run(_once(request), **_streams(stream), timeout=self._seconds).returncode

    def _started(self) -> subprocess.Popen[str]:
        for folder in (PACKAGE, HERE):  # else every step compiles them anew where no bytecode may be written
            compileall.compile_dir(folder, quiet=2)
        return subprocess.Popen(
            [sys.executable, str(HERE / "processes.py"), *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )


def _once(request: dict[str, Any]) -> list[str]:
    """The command of an interpreter of its own."""
    return [sys.executable, str(HERE / "processes.py"), "--once", json.dumps(request)]


def _streams(stream: BinaryIO) -> dict[str, Any]:
    return {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": stream, "env": clean_environment()}


def clean_environment() -> dict[str, str]:
    """This process's environment without its llmrec settings and warning filters."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLMREC_", "FEAST_", "PYTEST_"))}
    return kept | {"PYTHONWARNINGS": "ignore", "LLMREC_DEVICE": "cpu", "LLMREC_PROGRESS": "0"}


FEATURES = """
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource
from feast.types import Float64, String

from llmrec_plugin import EmbeddingFeature, SimilarityFeature
from llmrec_plugin.feast import publish

item = Entity(name="item", join_keys=["item"])
item_text = FeatureView(
    name="item_text",
    entities=[item],
    ttl=timedelta(days={ttl_days}),
    schema=[
        Field(name="item", dtype=String),
        Field(name="title", dtype=String),
        Field(name="note", dtype=String),
        {fields}
    ],
    source=FileSource(
        name="items", path="data/items.parquet", timestamp_field="event_timestamp", created_timestamp_column="created"
    ),
    tags={tags},
)
model = dict(
    model={model!r}, pooling="mean", normalize=True, prefix="", metric="cosine", max_tokens={max_tokens}, dims={dims}
)
item_text_embedding = EmbeddingFeature(
    name="item_text_embedding", entity="item", text={template!r}, description={description!r}, **model
)
query_embedding = EmbeddingFeature(name="query_embedding", entity=None, text="{{query}}", **model)
query_item_similarity = SimilarityFeature(
    name="query_item_similarity", left="query_embedding", right="item_text_embedding", metric="cosine"
)
{extra}
llm = publish(globals(){publish})
"""

CONFIGURATION = """
project: test
provider: local
registry: {{path: data/registry.db, serve_features_while_materializing: true}}
online_store: {online_store}
materialization: {{pull_latest_features: true, online_write_batch_size: 1000}}
entity_key_serialization_version: 3
"""
SQLITE = {"type": "sqlite", "path": "data/online.db"}


@dataclass
class Repo:
    """A feature repo over items with a title and a note, and the tiny encoder.

    Attributes:
        root: Holds the repo, the exported models and the cache.
        processes: Where its steps run.
        environ: Settings of the steps.
        online_store: Its settings.
    """

    root: Path
    processes: Processes
    environ: dict[str, str] = field(default_factory=dict)
    online_store: dict[str, Any] = field(default_factory=lambda: SQLITE)

    def __post_init__(self) -> None:
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        configuration = CONFIGURATION.format(online_store=json.dumps(self.online_store))
        (self.folder / "feature_store.yaml").write_text(configuration)
        self.environ = {"LLMREC_HOME": str(self.root / "home")} | self.environ

    @property
    def folder(self) -> Path:
        return self.root / "repo"

    def declare(
        self,
        *,
        template: str = "{title}. {note}",
        ttl_days: int = 36_500,
        tags: dict[str, str] | None = None,
        model: str = "tiny",
        dims: int = 8,
        max_tokens: int = 16,
        description: str = "",
        fields: str = "",
        extra: str = "",
        publish: str = "",
    ) -> None:
        """Writes the repo's feature file."""
        text = FEATURES.format(
            template=template,
            ttl_days=ttl_days,
            tags=tags or {},
            model=model,
            dims=dims,
            max_tokens=max_tokens,
            description=description,
            fields=fields,
            extra=extra,
            publish=publish,
        )
        (self.folder / "features.py").write_text(text)

    def export(self, seed: int = 0, **options: Any) -> Artifact:
        """Makes the tiny encoder with these random weights the current model."""
        return export_tiny(ArtifactStore([self.root / "home" / "artifacts"]), seed=seed, **options)

    def write_items(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes the raw file: dictionaries of item, title, note (maybe missing), at and created (default: at)."""
        rows = [{"note": None, "created": row["at"], **row} for row in rows]
        table = pa.table(
            {
                "item": pa.array([row["item"] for row in rows], pa.string()),
                "title": pa.array([row["title"] for row in rows], pa.string()),
                "note": pa.array([row["note"] for row in rows], pa.string()),
                "event_timestamp": pa.array([row["at"] for row in rows], pa.timestamp("us", "UTC")),
                "created": pa.array([row["created"] for row in rows], pa.timestamp("us", "UTC")),
            }
        )
        pq.write_table(table, self.folder / "data" / "items.parquet")

    def feast(self, *arguments: str, **environ: str) -> str:
        """What ``feast`` prints; raises StepError if it fails."""
        return self.processes.feast(*arguments, folder=self.folder, environ=self.environ | environ).succeeded()

    def call(self, target: str, *, environ: dict[str, str] | None = None, **arguments: Any) -> Any:
        """What a step returns; it stands in the repo's folder."""
        return self.processes.call(target, folder=self.folder, environ=self.environ | (environ or {}), **arguments)

    def online(self, features: list[str], rows: list[dict[str, Any]], **options: Any) -> dict[str, list[Any]]:
        """Columns read online."""
        return self.call("steps:read_online", features=features, rows=rows, **options)

    def vectors(self, items: list[str]) -> list[list[float] | None]:
        """The stored vectors of items."""
        answer = self.online(["item_text_embedding:item_text_embedding"], [{"item": item} for item in items])
        return answer["item_text_embedding"]

    def historical(self, features: list[str], rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """Rows of a training read, in the order of `rows`."""
        return self.call("steps:read_historical", features=features, rows=rows, **options)

    def encode(self, texts: list[str]) -> list[list[float]]:
        """What the current model gives for these texts, without cache and without Feast."""
        settings = load_settings({**self.environ, "LLMREC_DEVICE": "cpu", "LLMREC_THREADS": "1"})
        artifact = ArtifactStore(settings.artifact_folders).current("tiny")
        vectors, _ = Encoder(artifact, settings).encode(texts, max_tokens=16)
        return vectors.tolist()

    def runs(self, cache: Path | None = None) -> list[RunReport]:
        """The reports in the cache, oldest first."""
        values = ValueCache(cache or self.root / "home" / "cache", 2**30)
        try:
            return values.runs()
        finally:
            values.close()

    def cached(self) -> int:
        """How many values the cache holds."""
        values = ValueCache(self.root / "home" / "cache", 2**30)
        try:
            return values.size()[0]
        finally:
            values.close()

    def copy(self, root: Path) -> Repo:
        """The same repo elsewhere."""
        shutil.copytree(self.root, root)
        return Repo(root, self.processes, {**self.environ, "LLMREC_HOME": str(root / "home")}, self.online_store)
