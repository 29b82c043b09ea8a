r"""RecBole's atomic files: tab-separated tables whose header names the type of each column.

    user_id:token	item_id:token	rating:float	timestamp:float
    u1	i7	4.0	964982703

A folder holds ``<name>.inter`` and, if there are any, ``<name>.item`` and ``<name>.user``; a split that is given is
``<name>.train.inter``, ``<name>.valid.inter`` and ``<name>.test.inter`` instead of the first. Types: ``token`` a key,
``token_seq`` words separated by spaces, ``float``, ``float_seq``. Format: https://recbole.io/atomic_files.html.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions.dataset import ITEM, TIME, USER, Dataset

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "valid", "test")
PART = "part"
"""Column of interactions that says which part of a given split a row belongs to."""
_TYPES = ("token", "token_seq", "float", "float_seq")
_LATEST = 7_258_118_400.0  # the year 2200, in seconds since 1970


def read_atomic(folder: Path) -> Dataset:
    """The data set in a folder.

    Times are seconds since 1970 and become UTC timestamps. Users and items that only interactions name are added to
    their tables without further columns. ``token_seq`` stays one string, an empty cell is None or NaN. Where a split is
    given, interactions have a column ``part`` (``train``, ``valid``, ``test``).

    Raises:
        InputError: There are no interactions, several data sets, or a file is no atomic file; names file and line.
    """
    import pandas as pd

    name, files = _interaction_files(Path(folder))
    if len(files) > 1:
        rows = [_read(path).assign(**{PART: part}) for path, part in zip(files, PARTS, strict=True)]
        interactions = pd.concat(rows, ignore_index=True)
    else:
        interactions = _read(files[0])
    if TIME in interactions.columns:
        interactions[TIME] = _moments(interactions[TIME], files[0])
        interactions = interactions.sort_values(TIME, kind="stable", ignore_index=True)
    tables = {}
    for ending, key in (("item", ITEM), ("user", USER)):
        path = Path(folder) / f"{name}.{ending}"
        if key not in interactions.columns:
            raise InputError(f"{files[0]}: expected the column {key}:token, got {', '.join(interactions.columns)}.")
        tables[key] = _with_all(_read(path) if path.is_file() else pd.DataFrame(), interactions, key)
    return Dataset(name=name, interactions=interactions, items=tables[ITEM], users=tables[USER])


def write_atomic(dataset: Dataset, folder: Path) -> None:
    """Writes a data set as atomic files, which replace those of the same name.

    White space inside texts becomes one space. Keys are ``token``, other texts and lists of words
    ``token_seq``, numbers ``float``, lists of numbers ``float_seq``.

    Raises:
        InputError: A cell cannot be written: a key with white space, or a word of a list with some.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    interactions = dataset.interactions
    if dataset.timed:
        seconds = interactions[TIME].astype("datetime64[us, UTC]").astype("int64") / 1e6
        interactions = interactions.assign(**{TIME: seconds})
    tables = {"item": dataset.items, "user": dataset.users}
    if PART in interactions.columns:
        tables |= {f"{part}.inter": interactions[interactions[PART] == part].drop(columns=PART) for part in PARTS}
    else:
        tables["inter"] = interactions
    for ending, table in tables.items():
        _write(table, folder / f"{dataset.name}.{ending}")
    for ending in {"inter", *(f"{part}.inter" for part in PARTS)} - tables.keys():
        (folder / f"{dataset.name}.{ending}").unlink(missing_ok=True)


def _interaction_files(folder: Path) -> tuple[str, list[Path]]:
    """Name of the data set, and its one file or the three of a given split."""
    found = sorted(path.name for path in folder.glob("*.inter"))
    names = {name.removesuffix(".inter") for name in found}
    stems = {stem.rpartition(".")[0] if stem.rpartition(".")[2] in PARTS else stem for stem in names}
    if len(stems) != 1:
        raise InputError(
            f"{folder}: expected the .inter file of one data set, found {', '.join(found) or 'none'}. "
            "Give each data set a folder of its own."
        )
    (name,) = stems
    parts = [f"{name}.{part}" for part in PARTS]
    if names == {name}:
        return name, [folder / f"{name}.inter"]
    if names == set(parts):
        return name, [folder / f"{part}.inter" for part in parts]
    raise InputError(
        f"{folder}: expected either {name}.inter or {', '.join(f'{part}.inter' for part in parts)}, "
        f"found {', '.join(found)}."
    )


def _moments(seconds: pd.Series, path: Path) -> pd.Series:
    """Seconds since 1970 as UTC timestamps of microseconds."""
    import pandas as pd

    values = pd.to_numeric(seconds, errors="coerce").to_numpy(dtype="float64")
    wrong = np.flatnonzero(~(np.abs(values) < _LATEST))
    if len(wrong):
        raise InputError(
            f"{path}: every event needs a {TIME} in seconds since 1970, got {seconds.iloc[wrong[0]]!r} in row "
            f"{wrong[0] + 1} ({len(wrong)} such rows). Leave out events without a time; divide milliseconds by 1000."
        )
    return pd.Series(np.round(values * 1e6).astype("int64").view("datetime64[us]")).dt.tz_localize("UTC")


def _read(path: Path) -> pd.DataFrame:
    """One file as columns of str or None, float64, or lists of float."""
    import pandas as pd

    with path.open(encoding="utf-8-sig") as lines:
        try:
            header, rows, numbers = _cells(path, lines)
        except UnicodeDecodeError as exc:
            raise InputError(f"{path} is not UTF-8: {exc}.") from exc
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    frame: dict[str, pd.Series] = {}
    for (column, kind), cells in zip(header, columns, strict=True):
        if kind == "float":
            frame[column] = pd.Series(_floats(path, column, cells, numbers), dtype="float64")
        elif kind == "float_seq":
            values = [
                list(_floats(path, column, cell.split(), [number] * len(cell.split())))
                for cell, number in zip(cells, numbers, strict=True)
            ]
            frame[column] = pd.Series(values, dtype=object)
        else:
            frame[column] = pd.Series([cell or None for cell in cells], dtype=object)
            if column in (USER, ITEM) and "" in cells:
                raise InputError(f"{path}, line {numbers[cells.index('')]}: {column} is empty; every row needs a key.")
    return pd.DataFrame(frame)


def _cells(path: Path, lines: Any) -> tuple[list[tuple[str, str]], list[list[str]], list[int]]:
    """Column names with types, the rows' cells, and the line number of each row. Blank lines are skipped."""
    first = next(lines, "").rstrip("\n")
    header = [(name, kind) for name, _, kind in (cell.rpartition(":") for cell in first.split("\t"))]
    wrong = [f"{name}:{kind}" if name else kind for name, kind in header if not name or kind not in _TYPES]
    if wrong:
        raise InputError(
            f"{path}, line 1: the header must be tab-separated <column>:<type> with types {', '.join(_TYPES)}, "
            f"got {wrong[0]!r}."
        )
    if len({name for name, _ in header}) < len(header):
        raise InputError(f"{path}, line 1: a column is named twice in {', '.join(name for name, _ in header)}.")
    rows, numbers = [], []
    for number, line in enumerate(lines, 2):
        cells = line.rstrip("\n").split("\t")
        if len(cells) != len(header):
            if cells == [""]:
                continue
            raise InputError(f"{path}, line {number}: expected {len(header)} cells, got {len(cells)}.")
        rows.append(cells)
        numbers.append(number)
    return header, rows, numbers


def _floats(path: Path, column: str, cells: Sequence[str], numbers: Sequence[int]) -> np.ndarray:
    """Cells as float64, an empty one as NaN."""
    try:
        return np.array([float(cell) if cell else np.nan for cell in cells], dtype="float64")
    except ValueError:
        for cell, number in zip(cells, numbers, strict=True):
            try:
                float(cell or "nan")
            except ValueError:
                raise InputError(f"{path}, line {number}: {column} is declared float, got {cell!r}.") from None
        raise


def _write(table: pd.DataFrame, path: Path) -> None:
    header, columns = [], []
    for name, values in table.items():
        kind, cells = _texts(path, str(name), values)
        header.append(f"{name}:{kind}")
        columns.append(cells)
    lines = ["\t".join(header), *("\t".join(row) for row in zip(*columns, strict=True))]
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _texts(path: Path, name: str, values: pd.Series) -> tuple[str, list[str]]:
    """Type of a column and its cells."""
    if name in (USER, ITEM):
        cells = [str(value) for value in values]
        wrong = [cell for cell in cells if not cell or cell.split() != [cell]]
        if wrong:
            raise InputError(f"{path}: {name} must be a key without white space, got {wrong[0]!r}.")
        return "token", cells
    if values.dtype.kind in "fiub":
        return "float", [repr(value) if value == value else "" for value in values.astype("float64").tolist()]
    lists = [value for value in values if _is_list(value)]
    if lists and not any(isinstance(part, str) for part in lists for part in part):
        return "float_seq", [" ".join(map(repr, map(float, value))) if _is_list(value) else "" for value in values]
    words = [part for value in lists for part in value]
    wrong = [word for word in words if str(word).split() != [str(word)]]
    if wrong:
        raise InputError(f"{path}: {name} holds lists of words, and {wrong[0]!r} is no single word; join it with '_'.")
    return "token_seq", [_words(value) if _is_there(value) else "" for value in values]


def _words(value: Any) -> str:
    return " ".join(map(str, value) if _is_list(value) else str(value).split())


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _is_there(value: Any) -> bool:
    return _is_list(value) or (value is not None and value == value)


def _with_all(table: pd.DataFrame, interactions: pd.DataFrame, key: str) -> pd.DataFrame:
    """The table with a row for every key of the interactions, those that were missing at the end."""
    import pandas as pd

    if key not in table.columns:
        table = pd.DataFrame({key: pd.Series([], dtype=object)})
    known = set(table[key])
    new = [value for value in dict.fromkeys(interactions[key]) if value not in known]
    if not new:
        return table
    columns = {
        name: pd.Series([None] * len(new), dtype=object)
        if values.dtype == object
        else pd.Series(np.nan, range(len(new)))
        for name, values in table.items()
    }
    return pd.concat([table, pd.DataFrame({**columns, key: pd.Series(new, dtype=object)})], ignore_index=True)
