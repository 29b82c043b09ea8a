"""MovieLens (GroupLens) as a data set: ``ratings.csv`` and ``movies.csv`` of a folder such as ``ml-latest-small``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions.dataset import ITEM, RATING, TIME, USER, Dataset

if TYPE_CHECKING:
    import pandas as pd

_YEAR = r"^(?P<title>.*?)\s*\((?P<year>\d{4})(?:[-–]\d{0,4})?\)\s*$"


def movielens(folder: Path, *, name: str = "movielens") -> Dataset:
    """Ratings with their times, and films with title, genres and year.

    ``tags.csv`` is not read. A film's text is one text for all times, and most tags were given after ratings that
    they would be a feature of: with them, a ranker would read what was not yet written at the moment of its row.

    Args:
        folder: With ``ratings.csv`` and ``movies.csv``.
        name: Of the data set.

    Returns:
        Items have ``title`` (without the year), ``genres`` (words separated by spaces, None if none are listed) and
        ``year`` (float64, NaN where the title has none).

    Raises:
        InputError: A file or a column is missing.
    """
    import pandas as pd

    ratings = _read(folder / "ratings.csv", ["userId", "movieId", "rating", "timestamp"])
    films = _read(folder / "movies.csv", ["movieId", "title", "genres"])
    seconds = pd.to_numeric(ratings["timestamp"]).astype("int64")
    interactions = pd.DataFrame(
        {
            USER: ratings["userId"],
            ITEM: ratings["movieId"],
            RATING: ratings["rating"].astype("float64"),
            TIME: (seconds * 1_000_000).astype("datetime64[us]").dt.tz_localize("UTC"),
        }
    )
    parts = films["title"].str.extract(_YEAR)
    genres = films["genres"].str.replace("(no genres listed)", "", regex=False).str.replace("|", " ", regex=False)
    items = pd.DataFrame(
        {
            ITEM: films["movieId"],
            "title": parts["title"].fillna(films["title"]).astype(object),
            "genres": genres.where(genres != "", None),
            "year": parts["year"].astype("float64"),
        }
    )
    return Dataset(
        name=name,
        interactions=interactions.sort_values([TIME, USER, ITEM], kind="stable", ignore_index=True),
        items=items,
        users=interactions[[USER]].drop_duplicates(ignore_index=True),
    )


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise InputError(f"{path} is not there: expected a folder of MovieLens with ratings.csv and movies.csv.")
    table = pd.read_csv(path, dtype=str, keep_default_na=False).astype(object)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{path}: expected the columns {', '.join(columns)}, and {missing[0]!r} is missing.")
    return table
