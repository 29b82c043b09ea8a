"""Stand-ins for reviews, from data that has none: they show that the pipeline trains, and nothing about U-BERT.

films       a user's own tags on a film, as text, beside the user's rating (MovieLens: ratings.csv, tags.csv)
packages    what a package says of itself, as if it were a review of each package that it depends on (Debian)
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import ITEM, RATING, TIME, USER, Dataset

RELATIONS = ("depends", "recommends", "suggests")


def movielens_reviews(folder: Path) -> Dataset:
    """Ratings of films, and as their reviews the tags that the same user gave the same film.

    A rated film's tags, in order of time, joined by commas. The row's time is the last of the rating's and the tags',
    the moment at which all of it was known. Most ratings have no tag and so no review.

    Args:
        folder: Holds ``ratings.csv``, ``tags.csv`` and ``movies.csv``.

    Raises:
        InputError: A file is missing.
    """
    import pandas as pd

    names = ("ratings.csv", "tags.csv", "movies.csv")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: expected {', '.join(names)} of MovieLens, {missing[0]} is not there.")
    ratings, tags, films = (pd.read_csv(folder / name) for name in names)
    tags = tags[tags["tag"].notna()].sort_values("timestamp", kind="stable")
    written = tags.groupby(["userId", "movieId"]).agg(review=("tag", ", ".join), last=("timestamp", "max"))
    rows = ratings.merge(written, how="left", left_on=["userId", "movieId"], right_index=True)
    seconds = rows[["timestamp", "last"]].max(axis=1).astype("int64")
    interactions = pd.DataFrame(
        {
            USER: rows["userId"].astype(str),
            ITEM: rows["movieId"].astype(str),
            RATING: rows["rating"].astype("float64"),
            TIME: pd.to_datetime(seconds, unit="s", utc=True).astype("datetime64[us, UTC]"),
            "review": rows["review"].astype(object).where(rows["review"].notna(), None),
        }
    ).sort_values(TIME, kind="stable", ignore_index=True)
    items = pd.DataFrame({ITEM: films["movieId"].astype(str), "title": films["title"], "genres": films["genres"]})
    users = pd.DataFrame({USER: interactions[USER].drop_duplicates().to_numpy()})
    return Dataset(name="movielens-reviews", interactions=interactions, items=items, users=users)


def debian_reviews(path: Path, *, packages: int = 2_000, negatives: int = 1, seed: int = 0) -> Dataset:
    """Relations of packages with rating 1 and the depending package's synopsis as text, and drawn ones with rating 0.

    Drawn items are as popular as the real ones and are none of the package's relations; they have no text. There are no
    times.

    Args:
        path: ``packages.jsonl`` or ``packages.jsonl.gz``.
        packages: Depending packages at most, drawn from those with three relations or more.
        negatives: Drawn items for each relation.
        seed: Of the draws.

    Raises:
        InputError: No package has three relations.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    synopses = {row["name"]: row.get("synopsis") or "" for row in _objects(path)}
    related = {
        row["name"]: list(dict.fromkeys(item for kind in RELATIONS for item in row.get(kind) or () if item in synopses))
        for row in _objects(path)
    }
    eligible = sorted(name for name, items in related.items() if len(items) >= 3)
    if not eligible:
        raise InputError(f"{path}: expected packages with three relations or more to packages of the same file.")
    chosen = [eligible[row] for row in sorted(rng.permutation(len(eligible))[:packages])]
    popularity = Counter(item for name in chosen for item in related[name])
    pool, weights = list(popularity), np.array(list(popularity.values()), dtype=np.float64)
    rows: list[tuple[str, str, float, str | None]] = []
    for name in chosen:
        items = related[name]
        rows += [(name, item, 1.0, synopses[name] or None) for item in items]
        drawn = rng.choice(len(pool), size=(negatives + 2) * len(items), p=weights / weights.sum())
        others = [item for item in dict.fromkeys(pool[row] for row in drawn) if item not in items and item != name]
        rows += [(name, item, 0.0, None) for item in others[: negatives * len(items)]]
    interactions = pd.DataFrame(rows, columns=[USER, ITEM, RATING, "review"])
    tables = {
        key: pd.DataFrame({key: keys, "synopsis": [synopses[name] for name in keys]})
        for key in (USER, ITEM)
        for keys in [interactions[key].drop_duplicates().tolist()]
    }
    return Dataset(name="debian-reviews", interactions=interactions, items=tables[ITEM], users=tables[USER])


def frequent_words(dataset: Dataset, column: str = "review", *, most: int = 300) -> list[str]:
    """The most frequent words of three letters or more, where ratings do not tell which words are opinions."""
    texts = dataset.interactions.drop_duplicates([USER, column])[column].dropna()
    counts = Counter(word for text in texts for word in set(text.lower().split()) if len(word) > 2 and word.isalpha())
    return [word for word, _ in counts.most_common(most)]


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)
