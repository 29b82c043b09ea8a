"""A ranker on Feast features: LightGBM, trained on point-in-time rows, served from the online store.

    python examples/ranker/ranker.py

It knows Feast and feature service names, nothing of how a feature is made. The same code runs four
services; only the name differs:

    ranker_baseline   popularity, sections, tags, names, co-occurrence
    ranker_llm        the baseline and two similarities of text embeddings
    ranker_tags       these, and tags that a model wrote: how many both have, and the package's hashed into columns
    ranker_shuffled   the control: the same two similarities, but each package carries another one's text

Lists. Training: a dependant's labels and sampled packages, all warm. Test: a dependant's labels, warm
and cold, with 30 warm and 30 cold packages drawn uniformly among those that it does not depend on.
A *cold* package is in no history and no training or validation label, so its popularity is 0. `warm`
ranks a list's warm candidates among themselves, `cold` its cold ones, `all` everything.
Validation lists are warm too and decide the number of trees; test dependants decide nothing.
"""

import argparse
import json
import logging
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pandas as pd
from feast import FeatureStore
from metrics import METRICS, bootstrap_mean, list_metrics
from report import console, print_example, print_results
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("ranker_baseline", "ranker_llm", "ranker_tags", "ranker_shuffled")
SLICES = ("all", "warm", "cold")
KEYS = ["dependant", "package"]

TEST_NEGATIVES = 30  # of each kind, warm and cold
VALIDATION_NEGATIVES = 30
TRAINING_POOL, TRAINING_NEGATIVES = 10, 8  # each seed draws its negatives from the pool
ONLINE_CHUNK = 1000

PARAMETERS = {
    "objective": "lambdarank",
    "n_estimators": 500,
    "learning_rate": 0.06,
    "num_leaves": 15,
    "min_child_samples": 20,
    "subsample": 0.8,
    "subsample_freq": 1,
    "colsample_bytree": 0.8,
    "n_jobs": 2,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
PATIENCE = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repo", type=Path, default=ROOT / "feature_repo", help="the Feast repo")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--lists", type=int, help="dependants of each split at most, to try it out")
    parser.add_argument("--output", type=Path, help="results as JSON (default: <repo>/data/ranker_results.json)")
    args = parser.parse_args()
    started = time.perf_counter()

    store = FeatureStore(repo_path=str(args.repo))
    interactions = pd.read_parquet(args.repo / "data" / "interactions.parquet")
    if args.lists is not None:
        dependants = interactions.drop_duplicates("dependant").groupby("split").head(args.lists)["dependant"]
        interactions = interactions[interactions["dependant"].isin(dependants)]
    catalogue = pd.read_parquet(args.repo / "data" / "catalogue.parquet")
    refuse_leaks(store, interactions)
    training, test = draw_lists(interactions, catalogue)

    seeds = list(range(args.seeds))
    scores = {service: rank(store, service, training, test, seeds) for service in SERVICES}
    results = compare(test, scores)
    results |= {"seeds": seeds, "test_rows": len(test), "training_rows": len(training), "parameters": PARAMETERS}
    results["examples"] = examples(store, test, interactions, scores)
    results["versions"] = {name: version(name) for name in ("feast", "lightgbm")}
    results["seconds"] = round(time.perf_counter() - started, 1)

    output = args.output or args.repo / "data" / "ranker_results.json"
    output.write_text(json.dumps(results, indent=2) + "\n")
    out = console()
    print_results(out, results)
    for title, example in results["examples"].items():
        print_example(out, title, example)


# ---- lists


def refuse_leaks(store: FeatureStore, interactions: pd.DataFrame) -> None:
    """Stops when the online store already holds what is to be found.

    Raises:
        SystemExit: A test dependant's stored history names one of its labels.
    """
    labels = interactions.query("kind == 'label' and split == 'test'").groupby("dependant")["package"].agg(set)
    rows = [{"dependant": name} for name in labels.index]
    known = store.get_online_features(["dependant_stats:history_packages"], rows).to_dict()["history_packages"]
    if any(packages is None for packages in known):
        raise SystemExit("The online store lacks test dependants. Run `feast materialize` first, see README.md.")
    if any(set(packages.split()) & wanted for packages, wanted in zip(known, labels, strict=True)):
        at = interactions["event_timestamp"].max()
        raise SystemExit(
            f"The online store knows the answers: it was materialized past {at:%Y-%m-%d}. "
            "Remove its database, then apply and materialize again up to that date."
        )


def draw_lists(interactions: pd.DataFrame, catalogue: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test candidates: dependant, package, label, cold, split, time.

    Training and validation share one frame, so that one historical read serves both.
    """
    rng = np.random.default_rng(0)
    warm = catalogue.loc[~catalogue["cold"], "package"].to_numpy()
    cold = catalogue.loc[catalogue["cold"], "package"].to_numpy()
    sizes = {"train": [(warm, TRAINING_POOL)], "validation": [(warm, VALIDATION_NEGATIVES)]}
    sizes["test"] = [(warm, TEST_NEGATIVES), (cold, TEST_NEGATIVES)]
    rows = []
    for (dependant, split), group in interactions.groupby(["dependant", "split"]):
        known = {dependant, *group["package"]}
        labels = group[group["kind"] == "label"]
        at = labels["event_timestamp"].iloc[0]
        candidates = [(dependant, package, 1, split, at) for package in labels["package"]]
        for pool, size in sizes[split]:
            drawn = [package for package in rng.permutation(pool) if package not in known][:size]
            candidates += [(dependant, package, 0, split, at) for package in drawn]
        # In random order: LightGBM's NDCG lets the earlier of two equal scores win.
        rows += [candidates[i] for i in rng.permutation(len(candidates))]
    lists = pd.DataFrame(rows, columns=[*KEYS, "label", "split", "event_timestamp"])
    lists["cold"] = lists["package"].isin(cold)
    is_test = lists["split"] == "test"
    return lists[~is_test].reset_index(drop=True), lists[is_test].reset_index(drop=True)


# ---- features


def rank(store: FeatureStore, service: str, training: pd.DataFrame, test: pd.DataFrame, seeds: list[int]) -> np.ndarray:
    """Scores of the test candidates, (seeds, rows of `test`); trained offline, served online."""
    online = online_features(store, service, test)
    # The historical read also returns what the on-demand views read; the service's own columns are these.
    # Sorted, because Feast's order changes from process to process and LightGBM samples columns by position.
    columns = sorted(online.columns)
    online, offline = online[columns], offline_features(store, service, training)[columns]
    categories = {name: offline[name].dropna().unique() for name in offline.select_dtypes("object")}
    x_training, x_test = to_matrix(offline, categories), to_matrix(online, categories)
    models = (train(x_training, training, seed) for seed in seeds)
    progress = tqdm(models, total=len(seeds), desc=f"{service}: train and rank", unit="model")
    return np.stack([model.predict(x_test) for model in progress])


def offline_features(store: FeatureStore, service: str, lists: pd.DataFrame) -> pd.DataFrame:
    """One row per candidate, as known at its label's time, in the order of `lists`."""
    print(f"{service}: reading {len(lists)} training rows as of their label's time", flush=True)
    # Feast's file store keeps one row per package and time, whatever the dependant, and not in this order.
    # One more microsecond for every row keeps them all, and the number puts them back in order.
    entities = lists[KEYS].assign(row=np.arange(len(lists)))
    entities["event_timestamp"] = lists["event_timestamp"] + pd.to_timedelta(entities["row"], unit="us")
    frame = store.get_historical_features(entities, store.get_feature_service(service)).to_df()
    frame = frame.sort_values("row").reset_index(drop=True)
    assert len(frame) == len(lists)
    return frame.drop(columns=[*KEYS, "event_timestamp", "row"])


def online_features(store: FeatureStore, service: str, lists: pd.DataFrame) -> pd.DataFrame:
    """One row per candidate from the online store, in the order of `lists`."""
    features = store.get_feature_service(service)
    rows = lists[KEYS].to_dict("records")
    chunks = []
    with tqdm(total=len(rows), desc=f"{service}: online features", unit="row") as progress:
        for start in range(0, len(rows), ONLINE_CHUNK):
            chunk = rows[start : start + ONLINE_CHUNK]
            chunks.append(store.get_online_features(features, chunk).to_df())
            progress.update(len(chunk))
    return pd.concat(chunks, ignore_index=True).drop(columns=KEYS)


def to_matrix(frame: pd.DataFrame, categories: dict[str, np.ndarray]) -> pd.DataFrame:
    """Strings become LightGBM categories, everything else a float."""
    dtypes = {name: pd.CategoricalDtype(categories[name]) if name in categories else float for name in frame.columns}
    return frame.astype(dtypes)


# ---- model


def train(matrix: pd.DataFrame, lists: pd.DataFrame, seed: int) -> lgb.LGBMRanker:
    """A LambdaRank model; validation dependants decide the number of trees."""
    train_rows, validation_rows = thin(lists, seed), np.flatnonzero(lists["split"] == "validation")

    def group(rows: np.ndarray) -> list[int]:
        return lists.loc[rows].groupby("dependant", sort=False).size().tolist()

    model = lgb.LGBMRanker(**PARAMETERS, random_state=seed)
    model.fit(
        matrix.loc[train_rows],
        lists.loc[train_rows, "label"],
        group=group(train_rows),
        eval_X=matrix.loc[validation_rows],
        eval_y=lists.loc[validation_rows, "label"],
        eval_group=[group(validation_rows)],
        eval_at=[10],
        callbacks=[lgb.early_stopping(PATIENCE, verbose=False)],
    )
    return model


def thin(lists: pd.DataFrame, seed: int) -> np.ndarray:
    """Training rows of one seed: every label, and TRAINING_NEGATIVES others of each dependant."""
    rows = lists[lists["split"] == "train"]
    draw = pd.Series(np.random.default_rng(seed).random(len(rows)), index=rows.index)
    place = draw.groupby([rows["dependant"], rows["label"]]).rank()
    return rows.index[(rows["label"] == 1) | (place <= TRAINING_NEGATIVES)].to_numpy()


# ---- evaluation


def compare(test: pd.DataFrame, scores: dict[str, np.ndarray]) -> dict:
    """Means per service, and differences to the baseline with their intervals, for each slice."""
    slices = {}
    for name in SLICES:
        rows = test if name == "all" else test[test["cold"] == (name == "cold")]
        per_list = {service: measure(rows, values[:, rows.index]) for service, values in scores.items()}
        reference = per_list[SERVICES[0]]
        metrics = {}
        for column, metric in enumerate(METRICS):
            metrics[metric] = {
                "mean": {service: float(values[:, column].mean()) for service, values in per_list.items()},
                "minus_baseline": {s: interval((per_list[s] - reference)[:, column]) for s in SERVICES[1:]},
            }
        slices[name] = {"lists": len(reference), "metrics": metrics}
    return {"slices": slices}


def interval(differences: np.ndarray) -> dict[str, float]:
    return dict(zip(("mean", "low", "high"), bootstrap_mean(differences), strict=True))


def measure(rows: pd.DataFrame, scores: np.ndarray) -> np.ndarray:
    """Metrics of each dependant's list, mean over seeds, (lists, metrics); lists without a label are left out."""
    labels = rows["label"].to_numpy(bool)
    groups = rows.groupby("dependant", sort=True).indices.values()
    return np.array(
        [
            np.mean([list_metrics(one_seed[group], labels[group]) for one_seed in scores], axis=0)
            for group in groups
            if labels[group].any()
        ]
    )


def examples(store: FeatureStore, test: pd.DataFrame, interactions: pd.DataFrame, scores: dict) -> dict:
    """The test dependants whose list gains and loses most NDCG by the LLM features."""
    means = {"baseline": scores["ranker_baseline"].mean(axis=0), "llm": scores["ranker_llm"].mean(axis=0)}
    gain = (measure(test, means["llm"][None]) - measure(test, means["baseline"][None]))[:, 0]
    names = sorted(test["dependant"].unique())
    chosen = {"Where the LLM features help most": names[gain.argmax()], "Where they hurt most": names[gain.argmin()]}
    found = {}
    for title, name in chosen.items():
        mine = interactions[interactions["dependant"] == name]
        texts = store.get_online_features(["dependant_text:synopsis"], [{"dependant": name}]).to_dict()
        found[title] = {
            "dependant": name,
            "synopsis": texts["synopsis"][0],
            "history": mine.loc[mine["kind"] == "history", "package"].tolist(),
            "labels": mine.loc[mine["kind"] == "label", "package"].tolist(),
            **{arm: top(test[test["dependant"] == name], values) for arm, values in means.items()},
        }
        explain(store, found[title])
    return found


def explain(store: FeatureStore, example: dict) -> None:
    """Adds what models wrote: the dependant's tags, and of each package shown a summary and the tags they share."""
    row = [{"dependant": example["dependant"]}]
    own = store.get_online_features(["dependant_written_tags:dependant_written_tags"], row).to_dict()
    example["tags"] = own["dependant_written_tags"][0] or []
    shown = [candidate for arm in ("baseline", "llm") for candidate in example[arm]]
    names = ["package_written_tags", "package_written_synopsis"]
    rows = [{"package": candidate["package"]} for candidate in shown]
    columns = store.get_online_features([f"{name}:{name}" for name in names], rows).to_dict()
    for candidate, tags, synopsis in zip(shown, *(columns[name] for name in names), strict=True):
        candidate["shared_tags"] = [tag for tag in tags or [] if tag in set(example["tags"])]
        candidate["synopsis"] = synopsis


def top(rows: pd.DataFrame, scores: np.ndarray) -> list[dict]:
    """The five best candidates of one list."""
    best = rows.iloc[np.argsort(-scores[rows.index], kind="stable")[:5]]
    return best[["package", "label", "cold"]].to_dict("records")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="feast")
    logging.getLogger("feast").setLevel(logging.ERROR)
    main()
