r"""RecBole's atomic files: tab-separated tables whose header names the type of each column.

    user_id:token	item_id:token	rating:float	timestamp:float
    u1	i7	4.0	964982703

A folder holds ``<name>.inter`` and, if there are any, ``<name>.item`` and ``<name>.user``; a split that is given is
``<name>.train.inter``, ``<name>.valid.inter`` and ``<name>.test.inter`` instead of the first. Types: ``token`` a key,
``token_seq`` words separated by spaces, ``float``, ``float_seq``. Format: https://recbole.io/atomic_files.html.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions.dataset import ITEM, TIME, USER, Dataset

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "valid", "test")
PART = "part"
"""Column of interactions that says which part of a given split a row belongs to."""
_TYPES = ("token", "token_seq", "float", "float_seq")


def read_atomic(folder: Path) -> Dataset:
    """The data set in a folder.

    Times are seconds since 1970 and become UTC timestamps. Users and items that only interactions name are added to
    their tables without further columns. ``token_seq`` stays one string. Where a split is given, interactions have a
    column ``part`` (``train``, ``valid``, ``test``).

    Raises:
        InputError: There are no interactions, several data sets, or a file is no atomic file; names file and line.
    """
    import pandas as pd

    files = sorted(folder.glob("*.inter"))
    names = {path.name.split(".")[0] for path in files}
    if len(names) != 1:
        raise InputError(
            f"{folder}: expected the .inter file of one data set, "
            f"found {', '.join(path.name for path in files) or 'none'}."
        )
    (name,) = names
    parts = [folder / f"{name}.{part}.inter" for part in PARTS]
    if all(path.is_file() for path in parts):
        tables = [_read(path).assign(**{PART: part}) for path, part in zip(parts, PARTS, strict=True)]
        interactions = pd.concat(tables, ignore_index=True)
    else:
        interactions = _read(folder / f"{name}.inter")
    if TIME in interactions.columns:
        seconds = interactions[TIME].astype("float64")
        interactions[TIME] = pd.to_datetime(seconds, unit="s", utc=True).astype("datetime64[us, UTC]")
        interactions = interactions.sort_values(TIME, kind="stable", ignore_index=True)
    items = _with_all(_read(folder / f"{name}.item"), interactions, ITEM)
    users = _with_all(_read(folder / f"{name}.user"), interactions, USER)
    return Dataset(name=name, interactions=interactions, items=items, users=users)


def write_atomic(dataset: Dataset, folder: Path) -> None:
    """Writes a data set as atomic files; tabs and line ends inside texts become spaces."""
    folder.mkdir(parents=True, exist_ok=True)
    interactions = dataset.interactions
    if dataset.timed:
        interactions = interactions.assign(**{TIME: interactions[TIME].astype("int64") / 1e6})
    tables = {"item": dataset.items, "user": dataset.users}
    if PART in interactions.columns:
        tables |= {f"{part}.inter": rows.drop(columns=PART) for part, rows in interactions.groupby(PART)}
    else:
        tables["inter"] = interactions
    for ending, table in tables.items():
        _write(table, folder / f"{dataset.name}.{ending}")


def _read(path: Path) -> pd.DataFrame:
    """One file; an empty table if there is none."""
    import pandas as pd

    if not path.is_file():
        return pd.DataFrame()
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(rows, [])
        columns = [tuple(cell.rsplit(":", 1)) for cell in header]
        wrong = [":".join(column) for column in columns if len(column) != 2 or column[1] not in _TYPES]
        if wrong or not columns:
            raise InputError(
                f"{path}: the header must be tab-separated <column>:<type> with types {', '.join(_TYPES)}, "
                f"got {wrong[0] if wrong else 'nothing'!r}."
            )
        table: list[list[str]] = []
        for row in rows:
            if len(row) != len(columns):
                raise InputError(f"{path}, line {rows.line_num}: expected {len(columns)} cells, got {len(row)}.")
            table.append(row)
    frame: dict[str, Any] = {}
    for (column, kind), values in zip(columns, zip(*table, strict=True) if table else [()] * len(columns), strict=True):
        if kind == "float":
            try:
                frame[column] = pd.Series(
                    [float(value) if value else float("nan") for value in values], dtype="float64"
                )
            except ValueError as exc:
                raise InputError(f"{path}: column {column!r} is declared float: {exc}.") from exc
        elif kind == "float_seq":
            frame[column] = pd.Series([[float(part) for part in value.split()] for value in values], dtype=object)
        else:
            frame[column] = pd.Series([value or None for value in values], dtype=object)
    return pd.DataFrame(frame)


def _write(table: pd.DataFrame, path: Path) -> None:
    header, columns = [], []
    for name, values in table.items():
        numeric = values.dtype.kind in "fi"
        is_list = not numeric and any(isinstance(value, (list, tuple)) for value in values)
        key = name in (USER, ITEM)
        header.append(f"{name}:{'float' if numeric else 'float_seq' if is_list else 'token' if key else 'token_seq'}")
        if numeric:
            columns.append([repr(float(value)) for value in values])
        elif is_list:
            columns.append([" ".join(map(repr, value)) for value in values])
        else:
            columns.append(
                [" ".join(str(value).split()) if value is not None and value == value else "" for value in values]
            )
    lines = ["\t".join(header), *("\t".join(row) for row in zip(*columns, strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _with_all(table: pd.DataFrame, interactions: pd.DataFrame, key: str) -> pd.DataFrame:
    """The table with a row for every key of the interactions, those that were missing at the end."""
    import pandas as pd

    if key not in table.columns:
        table = pd.DataFrame({key: pd.Series([], dtype=object)})
    known = set(table[key])
    new = [value for value in dict.fromkeys(interactions[key]) if value not in known]
    if not new:
        return table
    return pd.concat([table, pd.DataFrame({key: new})], ignore_index=True).astype({key: object})
