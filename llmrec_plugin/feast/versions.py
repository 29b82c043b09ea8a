"""The versions of our views in Feast's registry: which one is served, and which others are kept beside it.

Feast keeps every version of a view in its registry and, under
``registry.enable_online_feature_view_versioning: true``, gives each an online table of its own. Here a
version is a fingerprint: `edit` changes the served version of any number of views in one write that other
processes see whole or not at all, and that overwrites nothing which they wrote meanwhile.

A served view carries notes among its tags: the version that was served before it, the one that was declared
after it and waits to be served, and the number of the online table that holds its rows.
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from feast import FeatureView, OnDemandFeatureView
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.registry.file import FileRegistryStore
from feast.infra.registry.registry import Registry
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from feast.protos.feast.core.FeatureViewVersion_pb2 import FeatureViewVersionRecord
from feast.protos.feast.core.OnDemandFeatureView_pb2 import OnDemandFeatureView as OnDemandFeatureViewProto
from feast.utils import _utc_now
from filelock import FileLock

from llmrec_plugin.errors import RolloutError

FINGERPRINT_TAG = "llmrec.fingerprint"
PREVIOUS = "llmrec.previous"
CANDIDATE = "llmrec.candidate"
TABLE = "llmrec.table"
NOTES = (PREVIOUS, CANDIDATE, TABLE)

SETTING = "registry.enable_online_feature_view_versioning"

ATTEMPTS = 20
"""How often an edit is tried while other processes write to the same rows of a SQL registry."""

Proto: TypeAlias = FeatureViewProto | OnDemandFeatureViewProto
Result = TypeVar("Result")
_KINDS: dict[str, tuple[type[Proto], type[FeatureView] | type[OnDemandFeatureView]]] = {
    "feature_view": (FeatureViewProto, FeatureView),
    "on_demand_feature_view": (OnDemandFeatureViewProto, OnDemandFeatureView),
}


@dataclass
class Versions:
    """One of our views: what is served, and every version that the registry keeps.

    Attributes:
        kind: ``feature_view`` or ``on_demand_feature_view``.
        served: The definition behind the plain name.
        kept: Version number -> definition; the served one as it was when it began to be served.
    """

    kind: str
    served: Proto
    kept: dict[int, Proto] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.served.meta.current_version_number

    @property
    def candidate(self) -> int | None:
        """The version declared last, if it is not the served one."""
        return self._noted(CANDIDATE)

    @property
    def previous(self) -> int | None:
        """The version that was served before."""
        return self._noted(PREVIOUS)

    def view(self, number: int) -> Any:
        """A version as Feast's object."""
        made = _KINDS[self.kind][1].from_proto(self.served if number == self.number else self.kept[number])
        made.current_version_number = number
        return made

    def serve(self, number: int, **notes: int | None) -> None:
        """Puts a kept version behind the plain name, and keeps the one that was there."""
        self.kept[self.number] = without_notes(self.served)
        self.served = without_notes(self.kept[number])
        self.served.meta.current_version_number = number
        self.note(**notes)

    def note(self, *, candidate: int | None = None, previous: int | None = None) -> None:
        """Replaces the notes."""
        self.served = without_notes(self.served)
        for note, number in ((CANDIDATE, candidate), (PREVIOUS, previous), (TABLE, self.number or None)):
            if number is not None:
                self.served.spec.tags[note] = f"v{number}"

    def _noted(self, note: str) -> int | None:
        text = self.served.spec.tags.get(note, "")
        return int(text[1:]) if text else None


Book: TypeAlias = dict[str, Versions]


def fingerprint(proto: Proto) -> str:
    """The fingerprint of a definition."""
    return proto.spec.tags[FINGERPRINT_TAG]


def without_notes(proto: Proto) -> Proto:
    """A copy of a definition without the notes that only the served one carries."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    for note in NOTES:
        copy.spec.tags.pop(note, None)
    return copy


def kept_by(registry: BaseRegistry) -> bool:
    """Whether this registry is told to serve versions side by side."""
    return bool(getattr(registry, "enable_online_versioning", False))


def can_edit(registry: BaseRegistry) -> bool:
    """Whether `edit` knows this kind of registry."""
    return isinstance(registry, Registry) or _is_sql(registry)


def check_kept(registry: BaseRegistry, views: Iterable[Any]) -> None:
    """Raises if rows of a version that was promoted would be looked for in another version's table.

    Raises:
        RolloutError: The registry is not told any more to serve versions.
    """
    for view in views:
        if TABLE in (view.tags or {}) and not kept_by(registry):
            raise RolloutError(
                f"The rows of {view.name!r} are those of {view.tags[TABLE]}, but {SETTING} is not true in this "
                "process's feature_store.yaml, so those of v0 would be read, which another model may have made. Set "
                "it to true again."
            )


def read(registry: BaseRegistry, project: str) -> Book:
    """Our views as they are in the registry now, not in its cache.

    Raises:
        RolloutError: This kind of registry is not supported.
    """
    if isinstance(registry, Registry):
        registry.refresh(project)
    return _shelf(registry, project).read()


def edit(registry: BaseRegistry, project: str, change: Callable[[Book], Result], *, commit: bool = True) -> Result:
    """Applies `change` to our views and writes what it changed, all of it or nothing.

    Args:
        registry: A file or SQL registry.
        project: The project.
        change: Changes the book it is given. It may be called again, with a fresh one, if another process
            wrote in between.
        commit: False leaves writing a file registry to the caller, as in Feast's own methods.

    Returns:
        What `change` returned.

    Raises:
        RolloutError: Other processes kept changing the same rows.
    """
    shelf = _shelf(registry, project)
    with locked(registry) if commit else contextlib.nullcontext():
        if commit and isinstance(registry, Registry):
            registry.refresh(project)
        for _ in range(ATTEMPTS):
            before, book = shelf.read(), shelf.read()
            result = change(book)
            if shelf.write(before, book):
                if commit:
                    registry.commit()
                return result
    raise RolloutError(
        f"The registry of project {project!r} changed {ATTEMPTS} times while it was being edited. Nothing was "
        "written; run the command again."
    )


@contextlib.contextmanager
def locked(registry: BaseRegistry) -> Iterator[None]:
    """Keeps other processes of ours from writing the same registry file; other registries need no lock."""
    store = getattr(registry, "_registry_store", None)
    if not isinstance(store, FileRegistryStore):
        yield
        return
    store._filepath.parent.mkdir(exist_ok=True, parents=True)
    with FileLock(f"{store._filepath}.lock"):
        yield


def _shelf(registry: BaseRegistry, project: str) -> _FileShelf | _SqlShelf:
    if isinstance(registry, Registry):
        return _FileShelf(registry, project)
    if _is_sql(registry):
        return _SqlShelf(registry, project)
    raise RolloutError(
        f"Versions of LLM views need a file or SQL registry, this is a {type(registry).__name__}. Set "
        f"{SETTING}: false in feature_store.yaml; reads are then null from a change of the fingerprint until "
        "`feast materialize` has run."
    )


def _is_sql(registry: BaseRegistry) -> bool:
    sql = sys.modules.get("feast.infra.registry.sql")  # needs SQLAlchemy, which not every repo has
    return sql is not None and isinstance(registry, sql.SqlRegistry)


class _FileShelf:
    """A registry that is one message, in a file or a bucket."""

    def __init__(self, registry: Registry, project: str) -> None:
        self._registry = registry
        self._project = project

    def read(self) -> Book:
        book: Book = {}
        for kind, (proto_class, _) in _KINDS.items():
            for proto in self._active(kind):
                if proto.spec.project == self._project and FINGERPRINT_TAG in proto.spec.tags:
                    served = proto_class()
                    served.CopyFrom(proto)
                    book[proto.spec.name] = Versions(kind, served)
        for record in self._records():
            if record.feature_view_name in book:
                versions = book[record.feature_view_name]
                proto = _KINDS[versions.kind][0].FromString(record.feature_view_proto)
                versions.kept[record.version_number] = proto
        return book

    def write(self, before: Book, after: Book) -> bool:
        for name, versions in after.items():
            if versions.served != before[name].served:
                [stored] = [proto for proto in self._active(versions.kind) if self._is(proto.spec, name)]
                stored.CopyFrom(versions.served)
            for number in sorted(before[name].kept.keys() | versions.kept.keys()):
                if before[name].kept.get(number) != versions.kept.get(number):
                    self._put(name, versions.kind, number, versions.kept.get(number))
        return True

    def _put(self, name: str, kind: str, number: int, proto: Proto | None) -> None:
        records = self._registry.cached_registry_proto.feature_view_version_history.records
        index = next(
            (
                index
                for index, record in enumerate(records)
                if (record.project_id, record.feature_view_name, record.version_number) == (self._project, name, number)
            ),
            None,
        )
        if proto is None:
            del records[index]
        elif index is not None:
            records[index].feature_view_proto = proto.SerializeToString(deterministic=True)
        else:
            record = FeatureViewVersionRecord(
                feature_view_name=name,
                project_id=self._project,
                version_number=number,
                feature_view_type=kind,
                feature_view_proto=proto.SerializeToString(deterministic=True),
                version_id=str(uuid.uuid4()),
            )
            record.created_timestamp.FromDatetime(_utc_now())
            records.append(record)

    def _active(self, kind: str) -> Any:
        registry = self._registry.cached_registry_proto
        return registry.feature_views if kind == "feature_view" else registry.on_demand_feature_views

    def _records(self) -> Iterator[Any]:
        for record in self._registry.cached_registry_proto.feature_view_version_history.records:
            if record.project_id == self._project and record.feature_view_type in _KINDS:
                yield record

    def _is(self, spec: Any, name: str) -> bool:
        return (spec.project, spec.name) == (self._project, name)


class _SqlShelf:
    """A registry of rows. A row is written only if it still holds what was read."""

    def __init__(self, registry: Any, project: str) -> None:
        from feast.infra.registry import sql

        self._engine = registry.write_engine
        self._project = project
        self._active = {"feature_view": sql.feature_views, "on_demand_feature_view": sql.on_demand_feature_views}
        self._records = sql.feature_view_version_history
        self._stored: dict[tuple[str, int | None], bytes] = {}

    def read(self) -> Book:
        from sqlalchemy import select

        book: Book = {}
        self._stored = {}
        with self._engine.begin() as connection:
            for kind, table in self._active.items():
                for row in connection.execute(select(table).where(table.c.project_id == self._project)).mappings():
                    served = _KINDS[kind][0].FromString(row["feature_view_proto"])
                    if FINGERPRINT_TAG in served.spec.tags:
                        book[row["feature_view_name"]] = Versions(kind, served)
                        self._stored[row["feature_view_name"], None] = row["feature_view_proto"]
            table = self._records
            for row in connection.execute(select(table).where(table.c.project_id == self._project)).mappings():
                name, number = row["feature_view_name"], row["version_number"]
                if name in book:
                    proto = _KINDS[book[name].kind][0].FromString(row["feature_view_proto"])
                    book[name].kept[number] = proto
                    self._stored[name, number] = row["feature_view_proto"]
        return book

    def write(self, before: Book, after: Book) -> bool:
        from sqlalchemy.exc import IntegrityError

        try:
            with self._engine.begin() as connection:
                for name, versions in after.items():
                    if versions.served != before[name].served:
                        self._update(connection, self._active[versions.kind], name, None, versions.served)
                    for number in sorted(before[name].kept.keys() | versions.kept.keys()):
                        old, new = before[name].kept.get(number), versions.kept.get(number)
                        if old == new:
                            continue
                        if new is None:
                            self._delete(connection, name, number)
                        elif old is None:
                            self._insert(connection, name, versions.kind, number, new)
                        else:
                            self._update(connection, self._records, name, number, new)
        except (_ConflictError, IntegrityError):
            return False
        return True

    def _update(self, connection: Any, table: Any, name: str, number: int | None, proto: Proto) -> None:
        statement = table.update().where(*self._unchanged(table, name, number))
        values: dict[str, Any] = {"feature_view_proto": proto.SerializeToString(deterministic=True)}
        if number is None:
            values["last_updated_timestamp"] = int(_utc_now().timestamp())
        if connection.execute(statement.values(values)).rowcount != 1:
            raise _ConflictError

    def _delete(self, connection: Any, name: str, number: int) -> None:
        statement = self._records.delete().where(*self._unchanged(self._records, name, number))
        if connection.execute(statement).rowcount != 1:
            raise _ConflictError

    def _insert(self, connection: Any, name: str, kind: str, number: int, proto: Proto) -> None:
        values = {
            "feature_view_name": name,
            "project_id": self._project,
            "version_number": number,
            "feature_view_type": kind,
            "feature_view_proto": proto.SerializeToString(deterministic=True),
            "created_timestamp": int(_utc_now().timestamp()),
            "description": "",
            "version_id": str(uuid.uuid4()),
        }
        connection.execute(self._records.insert().values(values))

    def _unchanged(self, table: Any, name: str, number: int | None) -> list[Any]:
        conditions = [
            table.c.project_id == self._project,
            table.c.feature_view_name == name,
            table.c.feature_view_proto == self._stored[name, number],
        ]
        return conditions if number is None else [*conditions, table.c.version_number == number]


class _ConflictError(Exception):
    """Another process changed a row after it was read."""
