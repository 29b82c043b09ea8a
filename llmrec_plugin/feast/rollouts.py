"""Model rollouts: a new fingerprint is filled beside the served one, then switched to, and back if wanted.

`declare` and `materialized` say what ``feast apply`` and ``feast materialize`` mean for a book of versions;
`status`, `promote`, `roll_back` and `clean` are the commands of ``llmrec rollout``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from feast import FeatureStore
from feast.feature_view import FeatureViewState

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import RolloutError
from llmrec_plugin.feast.completeness import Rows, compare_rows
from llmrec_plugin.feast.versions import SETTING, Book, Proto, Versions, edit, fingerprint, kept_by, read, without_notes
from llmrec_plugin.settings import load_settings

logger = logging.getLogger(__name__)


def declare(book: Book, declared: Proto, *, from_repo: bool) -> int | None:
    """Takes in a definition that somebody applies.

    A definition with the served fingerprint updates the served version. One with another fingerprint becomes,
    or updates, a version beside it, which waits to be promoted.

    Args:
        book: The versions.
        declared: The definition.
        from_repo: It was made by the feature repo; False for one that Feast read from the registry, changed
            (its state, say) and writes back, which declares nothing new.

    Returns:
        The number of the version it belongs to; None for a view that is not in the registry.
    """
    versions = book.get(declared.spec.name)
    if versions is None:
        return None
    if fingerprint(declared) == fingerprint(versions.served):
        notes = {"previous": versions.previous, "candidate": versions.candidate}
        versions.served = _with_history(declared, versions.served)
        versions.note(**notes)
        return versions.number
    number = _number_of(versions, fingerprint(declared))
    if not from_repo:
        if number is not None:
            versions.kept[number].meta.state = declared.meta.state
        return number
    versions.kept.setdefault(versions.number, without_notes(versions.served))
    if number is None:
        number = max(versions.kept) + 1
        declared.meta.current_version_number = number
        versions.kept[number] = declared
    else:
        versions.kept[number] = _with_history(declared, versions.kept[number])
    versions.note(candidate=number, previous=versions.previous)
    return number


def take_back(book: Book, declared: dict[str, str]) -> Book:
    """Lets no version wait beside a served one whose fingerprint is declared (again).

    Args:
        book: The versions.
        declared: View -> fingerprint, what a feature repo declares now.

    Returns:
        The book.
    """
    for name, versions in book.items():
        if declared.get(name) == fingerprint(versions.served):
            versions.note(previous=versions.previous)
    return book


def materialized(book: Book, name: str, of: str, start: datetime, end: datetime) -> None:
    """Notes that the rows of [start, end] were written for fingerprint `of`, whichever version that is by now."""
    known = [book[name].served, *book[name].kept.values()] if name in book else []
    proto = next((proto for proto in known if fingerprint(proto) == of), None)
    if proto is None:
        logger.warning("%s: rows were written for fingerprint %s, which is not kept any more.", name, of[:16])
        return
    interval = proto.meta.materialization_intervals.add()
    interval.start_time.FromDatetime(start)
    interval.end_time.FromDatetime(end)
    proto.meta.state = FeatureViewState.AVAILABLE_ONLINE.to_proto()


def _number_of(versions: Versions, of: str) -> int | None:
    return next((number for number, proto in versions.kept.items() if fingerprint(proto) == of), None)


def _with_history(declared: Proto, known: Proto) -> Proto:
    """The declared definition with the number, the materialized intervals and the birthday of the known one."""
    result = type(declared)()
    result.CopyFrom(declared)
    result.meta.current_version_number = known.meta.current_version_number
    result.meta.created_timestamp.CopyFrom(known.meta.created_timestamp)
    if hasattr(known.meta, "materialization_intervals"):
        del result.meta.materialization_intervals[:]
        result.meta.materialization_intervals.extend(known.meta.materialization_intervals)
        result.meta.state = declared.meta.state or known.meta.state
    return result


@dataclass(frozen=True)
class ViewStatus:
    """One view of a project.

    Attributes:
        view: Its name.
        kind: ``feature_view`` or ``on_demand_feature_view``.
        served: Number of the served version.
        candidate: Number of the version that waits, if any.
        previous: Number of the version that `roll_back` returns to, if any.
        fingerprints: Version number -> fingerprint of each kept version.
        artifacts: Version number -> "model@artifact"; empty for a similarity.
        rows: The candidate's rows, compared with the served version's; None if no rows are stored.
    """

    view: str
    kind: str
    served: int
    candidate: int | None
    previous: int | None
    fingerprints: dict[int, str]
    artifacts: dict[int, str]
    rows: Rows | None


def open_store(folder: str) -> FeatureStore:
    """The feature store that the repo in `folder` describes."""
    return FeatureStore(repo_path=folder)


def status(store: FeatureStore) -> list[ViewStatus]:
    """What is served and what waits, for every one of our views.

    Raises:
        RolloutError: The repo does not keep versions side by side.
    """
    book = _read(store)
    return [_status(store, name, versions) for name, versions in sorted(book.items())]


def promote(store: FeatureStore) -> list[ViewStatus]:
    """Serves every candidate, in one write. What was served stays beside it.

    Returns:
        The views that were switched, as they were before.

    Raises:
        RolloutError: Nothing waits, or a candidate lacks rows that the served version has.
        ArtifactNotFoundError: A candidate's model is not on this machine.
    """
    waiting = [item for item in status(store) if item.candidate is not None]
    if not waiting:
        raise RolloutError("Nothing waits to be promoted: every view serves the fingerprint that was declared last.")
    lacking = [item for item in waiting if item.rows is not None and item.rows.missing]
    if lacking:
        described = "; ".join(
            f"{item.view} v{item.candidate} lacks {item.rows.missing} of {item.rows.expected} rows"
            for item in lacking
            if item.rows is not None
        )
        raise RolloutError(
            f"The rollout is not complete: {described}. Nothing was switched. Run: "
            + " && ".join(fill_command(item.view, item.candidate or 0) for item in lacking)
        )
    _check_artifacts(item.artifacts.get(item.candidate, "") for item in waiting if item.candidate is not None)
    expected = {item.view: item.candidate for item in waiting}

    def change(book: Book) -> None:
        found = {name: versions.candidate for name, versions in book.items() if versions.candidate is not None}
        if found != expected:
            raise RolloutError(
                f"Another candidate was declared while the rows were counted: expected {expected}, found {found}. "
                "Nothing was switched; run `llmrec rollout status`."
            )
        for versions in book.values():
            if versions.candidate is None:
                versions.note()
            else:
                versions.serve(versions.candidate, previous=versions.number)

    edit(store.registry, store.project, change)
    return waiting


def roll_back(store: FeatureStore) -> list[ViewStatus]:
    """Serves again what was served before the last promotion, in one write. What is served now waits, again.

    Returns:
        The views that were switched, as they were before.

    Raises:
        RolloutError: Nothing was promoted.
        ArtifactNotFoundError: A former model is not on this machine.
    """
    book = _read(store)
    switched = [_status(store, name, versions) for name, versions in book.items() if versions.previous is not None]
    if not switched:
        raise RolloutError("There is nothing to return to: no promotion is recorded, or it was rolled back already.")
    _check_artifacts(item.artifacts.get(item.previous, "") for item in switched if item.previous is not None)

    def change(book: Book) -> None:
        for versions in book.values():
            if versions.previous is not None:
                versions.serve(versions.previous, candidate=versions.number)

    edit(store.registry, store.project, change)
    return switched


def clean(store: FeatureStore) -> list[tuple[str, int]]:
    """Removes every version that is neither served, nor waiting, nor the one before; with its online rows.

    Returns:
        View and number of each removed version.
    """
    removed = []
    for name, versions in _read(store).items():
        for number in _superseded(versions):
            removed.append((name, number))
            # Rows first: a run that is killed in between is repeated, and no table is left that nothing names.
            if versions.kind == "feature_view":
                _drop_table(store, versions.view(number))

    def change(book: Book) -> None:
        for name, number in removed:
            if name in book and number in _superseded(book[name]):
                del book[name].kept[number]

    edit(store.registry, store.project, change)
    return removed


def fill_command(view: str, number: int) -> str:
    """The command that computes the rows that a version lacks."""
    return f"feast materialize-incremental $(date -u +%Y-%m-%dT%H:%M:%S) --views {view} --version v{number}"


def check_supported(store: FeatureStore) -> None:
    """Raises unless this repo's online store keeps the rows of two versions apart.

    Raises:
        RolloutError: It would mix them.
    """
    online_store = store._get_provider().online_store
    if not online_store._is_versioned_read_supported():
        raise RolloutError(
            f"{SETTING} is true, but {type(online_store).__name__} keeps the rows of all versions in one table. "
            "Set it to false in feature_store.yaml (reads are then null from a change of the fingerprint until "
            "`feast materialize` has run), or use SQLite, Redis, PostgreSQL, MySQL, DynamoDB or Milvus."
        )


def _read(store: FeatureStore) -> Book:
    if not kept_by(store.registry):
        raise RolloutError(
            f"Rollouts need two versions of a view side by side. Set {SETTING}: true in feature_store.yaml and run "
            "`feast apply`."
        )
    check_supported(store)
    return read(store.registry, store.project)


def _status(store: FeatureStore, name: str, versions: Versions) -> ViewStatus:
    protos = {**versions.kept, versions.number: versions.served}
    rows = None
    if versions.candidate is not None and versions.kind == "feature_view":
        rows = compare_rows(store, versions.view(versions.candidate), versions.view(versions.number))
    return ViewStatus(
        view=name,
        kind=versions.kind,
        served=versions.number,
        candidate=versions.candidate,
        previous=versions.previous,
        fingerprints={number: fingerprint(proto) for number, proto in sorted(protos.items())},
        artifacts={
            number: f"{proto.spec.tags['llmrec.model']}@{proto.spec.tags['llmrec.artifact']}"
            for number, proto in sorted(protos.items())
            if "llmrec.artifact" in proto.spec.tags
        },
        rows=rows,
    )


def _check_artifacts(artifacts: Iterable[str]) -> None:
    store = ArtifactStore(load_settings().artifact_folders)
    for artifact in {item for item in artifacts if item}:
        model, _, artifact_id = artifact.partition("@")
        store.find(model, artifact_id)


def _superseded(versions: Versions) -> list[int]:
    return sorted(versions.kept.keys() - {versions.number, versions.candidate, versions.previous})


def _drop_table(store: FeatureStore, view: Any) -> None:
    """Removes the online rows of one version.

    Feast names the table of version n like that of a view called NAME_vn, and that is the view removed here:
    asked for a version, PostgreSQL's store would remove those of all others, too.
    """
    number = view.current_version_number
    online_store = store._get_provider().online_store
    nothing: dict[str, Any] = {"entities_to_delete": [], "entities_to_keep": [], "partial": True}
    view.current_version_number = None
    if number:
        view.name = view.projection.name = f"{view.name}_v{number}"
    elif "postgres" in type(online_store).__module__:
        logger.warning("%s: the rows of v0 stay, since PostgreSQL's store removes all versions with them.", view.name)
        return
    online_store.update(store.config, tables_to_delete=[view], tables_to_keep=[], **nothing)
    if not number:  # `feast plan` counts on the table without a number
        online_store.update(store.config, tables_to_delete=[], tables_to_keep=[view], **nothing)
