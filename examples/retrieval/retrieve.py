"""Candidate retrieval and ranking: a text -> its embedding -> the nearest packages -> features -> a ranker's scores.

    python examples/retrieval/retrieve.py "play music over the network" --dependant mpd

The text finds the candidates, the dependant is the user for whom they are ranked. Without a text the dependant's
own is used; without a dependant a test dependant of the ranker example is drawn. The ranker is that of
examples/ranker, trained here once.
"""

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from feast import FeatureStore
from rich.console import Console
from rich.table import Table

from llmrec_plugin.feast import search

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "ranker"))
from ranker import KEYS, draw_lists, offline_features, to_matrix, train  # noqa: E402

SERVICE = "ranker_llm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", help="what to look for (default: the dependant's synopsis and description)")
    parser.add_argument("--dependant", help="for whom (default: a test dependant)")
    parser.add_argument("--candidates", type=int, default=100, help="how many the search finds")
    parser.add_argument("--train-on", type=int, default=500, help="dependants that the ranker learns from, of 1,523")
    parser.add_argument("--repo", type=Path, default=ROOT / "feature_repo", help="the Feast repo")
    args = parser.parse_args()

    store = FeatureStore(repo_path=str(args.repo), fs_yaml_file=Path(__file__).with_name("feature_store.yaml"))
    interactions = pd.read_parquet(args.repo / "data" / "interactions.parquet")
    catalogue = pd.read_parquet(args.repo / "data" / "catalogue.parquet")
    dependants = interactions.loc[interactions["split"] == "test", "dependant"].unique()
    dependant = args.dependant or dependants[0]
    if dependant not in dependants:
        raise SystemExit(f"{dependant!r} is no test dependant. Some that are: {', '.join(dependants[:10])}.")
    score = train_ranker(store, interactions, catalogue, args.train_on)

    started = time.perf_counter()
    text = args.text or text_of(store, dependant)
    candidates = retrieve(store, text, args.candidates)
    retrieved = time.perf_counter()
    ranked = rank(store, score, dependant, candidates)
    ended = time.perf_counter()

    mine = interactions[interactions["dependant"] == dependant]
    known = set(mine.loc[mine["kind"] == "history", "package"])
    wanted = set(mine.loc[mine["kind"] == "label", "package"])
    print_ranked(ranked[~ranked["package"].isin(known)].head(10), wanted, text)
    milliseconds = [round(1000 * seconds) for seconds in (retrieved - started, ended - retrieved)]
    found = len(wanted & set(candidates["package"]))
    print(f"{len(candidates)} candidates in {milliseconds[0]} ms, ranked in {milliseconds[1]} ms.")
    print(f"They hold {found} of the {len(wanted)} dependencies to be found.")


def text_of(store: FeatureStore, dependant: str) -> str:
    """The dependant's own text, in the form in which package texts are embedded."""
    columns = ["dependant_text:synopsis", "dependant_text:description"]
    row = store.get_online_features(columns, [{"dependant": dependant}]).to_dict()
    return f"{row['synopsis'][0]}. {row['description'][0]}"


def retrieve(store: FeatureStore, text: str, count: int) -> pd.DataFrame:
    """The packages whose texts are nearest to `text`: package, synopsis, distance; nearest first."""
    return search(store, "package_text_embedding", text, count, features=["package_text:synopsis"])


def rank(store: FeatureStore, score, dependant: str, candidates: pd.DataFrame) -> pd.DataFrame:
    """The candidates with `place`, where the search put them, and `score`; best first."""
    pairs = candidates.assign(dependant=dependant, place=np.arange(1, len(candidates) + 1))
    pairs["score"] = score(features_of(store, pairs))
    return pairs.sort_values("score", ascending=False, kind="stable")


def features_of(store: FeatureStore, pairs: pd.DataFrame) -> pd.DataFrame:
    """The ranker's features of dependants and packages, row by row."""
    rows = pairs[KEYS].to_dict("records")
    return store.get_online_features(store.get_feature_service(SERVICE), rows).to_df().drop(columns=KEYS)


def train_ranker(store: FeatureStore, interactions: pd.DataFrame, catalogue: pd.DataFrame, dependants: int):
    """A function from online features of candidates to their scores."""
    asked = interactions[interactions["split"] != "test"]
    drawn = np.random.default_rng(0).choice(asked["dependant"].unique(), dependants, replace=False)
    lists, _ = draw_lists(asked[asked["dependant"].isin(drawn)], catalogue)
    offline = offline_features(store, SERVICE, lists)
    columns = sorted(features_of(store, lists.head(1)).columns)
    categories = {name: offline[name].dropna().unique() for name in offline[columns].select_dtypes("object")}
    model = train(to_matrix(offline[columns], categories), lists, seed=0)
    return lambda online: model.predict(to_matrix(online[columns], categories))


def print_ranked(ranked: pd.DataFrame, wanted: set[str], text: str) -> None:
    table = Table(title=" ".join(text.split())[:100], title_justify="left", caption="* a dependency to be found")
    for name, width in (("package", 30), ("synopsis", 42)):
        table.add_column(name, no_wrap=True, max_width=width)
    for name in ("score", "search", "distance"):
        table.add_column(name, justify="right")
    for row in ranked.to_dict("records"):
        package = f"{row['package']} *" if row["package"] in wanted else row["package"]
        table.add_row(package, row["synopsis"], f"{row['score']:.2f}", str(row["place"]), f"{row['distance']:.3f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="feast")
    logging.getLogger("feast").setLevel(logging.ERROR)
    main()
