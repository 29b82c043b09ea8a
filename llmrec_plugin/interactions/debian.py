"""Debian's packages as a data set: a package with a text is the user, what it builds on are the items."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions.dataset import ITEM, USER, Dataset

RELATIONS = ("depends", "recommends")
_TEXTS = ("name", "synopsis", "description")


def debian_packages(
    source: Path, *, least_interactions: int = 5, most_users: int | None = None, seed: int = 0, name: str = "debian"
) -> Dataset:
    """Packages that depend on or recommend packages.

    Relations carry no time. Items are all packages of the source that some package of it builds on, also those that no
    chosen user does, so the catalogue does not depend on the choice of users.

    Args:
        source: JSON objects a line, plain or gzip, with name, section, synopsis, description, tags, depends and
            recommends.
        least_interactions: Relations to packages of the source that a user has at least.
        most_users: How many users are kept, drawn by a hash of name and `seed`; None for all.
        seed: Of that draw.
        name: Of the data set.

    Returns:
        Interactions with ``relation`` (``depends`` or ``recommends``), in order of user and item; items with
        ``synopsis``, ``description``, ``section`` and ``tags`` (words separated by spaces); users with ``name``,
        ``synopsis`` and ``description``.

    Raises:
        InputError: A line is no such object, a name stands twice, or no package is left.
    """
    import pandas as pd

    packages = {}
    for number, row in _rows(source):
        if row["name"] in packages:
            raise InputError(f"{source}, line {number}: package {row['name']!r} stands twice.")
        packages[row["name"]] = row
    relations = {package: _relations(row, packages) for package, row in packages.items()}
    users = sorted(package for package, targets in relations.items() if len(targets) >= max(least_interactions, 1))
    if most_users is not None:
        drawn = sorted(users, key=lambda package: hashlib.sha256(f"{seed}\0{package}".encode()).digest())
        users = sorted(drawn[:most_users])
    if not users:
        raise InputError(f"{source}: no package has {least_interactions} relations to packages of the file.")
    events = [(user, item, kind) for user in users for item, kind in sorted(relations[user].items())]
    catalogue = sorted({item for targets in relations.values() for item in targets})
    return Dataset(
        name=name,
        interactions=pd.DataFrame(events, columns=[USER, ITEM, "relation"]),
        items=pd.DataFrame([{ITEM: item, **_described(packages[item])} for item in catalogue]),
        users=pd.DataFrame([{USER: user, **_text(packages[user], *_TEXTS)} for user in users]),
    )


def _rows(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not source.is_file():
        raise InputError(f"{source} is not there: expected a file of JSON objects, one a line.")
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as exc:
                raise InputError(f"{source}, line {number}: expected a JSON object: {exc}.") from exc
            if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not row["name"]:
                raise InputError(f"{source}, line {number}: expected an object with a name.")
            yield number, row


def _relations(row: dict[str, Any], packages: dict[str, Any]) -> dict[str, str]:
    """Package -> the first relation to it; to known packages other than itself."""
    found: dict[str, str] = {}
    for kind in RELATIONS:
        for target in row.get(kind) or ():
            if target in packages and target != row["name"]:
                found.setdefault(target, kind)
    return found


def _text(row: dict[str, Any], *columns: str) -> dict[str, str | None]:
    return {column: " ".join(str(row.get(column) or "").split()) or None for column in columns}


def _described(row: dict[str, Any]) -> dict[str, str | None]:
    return {**_text(row, "synopsis", "description", "section"), "tags": " ".join(row.get("tags") or ()) or None}
