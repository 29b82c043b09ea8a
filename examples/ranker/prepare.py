"""Turn the shipped sample into the parquet sources of the feature repo and the ranker's interactions.

    python examples/ranker/prepare.py

Writes `feature_repo/data/*.parquet`. Deterministic: the same sample gives the same tables.

Debian says which package depends on which, not since when, so the times are synthetic:

    TEXTS_AT    package texts exist
    HISTORY_AT  dependants have declared the first half of their dependencies (the history)
    LABELS_AT   training and evaluation labels: the second half
    OUTCOME_AT  the sources know the whole truth: histories, popularity and co-occurrence with the labels in

A point-in-time join at LABELS_AT sees the state of HISTORY_AT. A join on "the newest row" would see
the answers: this is why the rows of OUTCOME_AT are there, and why materialization ends at LABELS_AT.
"""

import collections
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

REPO = Path(__file__).resolve().parents[2] / "feature_repo"

TEXTS_AT = pd.Timestamp("2023-06-10", tz="UTC")
HISTORY_AT = pd.Timestamp("2023-07-01", tz="UTC")
LABELS_AT = pd.Timestamp("2023-08-01", tz="UTC")
OUTCOME_AT = pd.Timestamp("2023-09-01", tz="UTC")

SEED = 12
COLD_SHARE = 0.2
TEST_DEPENDANTS, VALIDATION_DEPENDANTS = 400, 150
MIN_WARM_DEPENDS = 3
HISTORY_TEXTS = 10
CO_PACKAGES = 30

# Words that say what kind of file a package holds, or nothing, rather than what it is about.
STOP_WORDS = {"lib", "dev", "common", "data", "bin", "the", "and", "for", "of", "to", "in", "with", "is", "on", "by"}

History = dict[str, list[str]]


def main() -> None:
    packages = read_sample(REPO / "sample" / "packages.jsonl.gz")
    rng = np.random.default_rng(SEED)
    items = [name for name, row in packages.items() if row["item"]]
    cold = set(rng.choice(items, size=int(COLD_SHARE * len(items)), replace=False))
    split = split_dependants(packages, cold, rng)
    history, labels = split_depends(packages, cold, split, rng)
    outcome = {name: labels[name][::-1] + known for name, known in history.items()}
    wrong = wrong_owners(items, rng)

    write("package_text", package_text(packages, items))
    write("package_shuffled_text", package_shuffled_text(packages, wrong))
    for build in (package_stats, dependant_text, dependant_stats):
        write(build.__name__, build(packages, history, HISTORY_AT), build(packages, outcome, OUTCOME_AT))
    write("catalogue", pd.DataFrame({"package": items, "cold": [name in cold for name in items]}))
    write("interactions", interactions(history, labels, split))
    counts = collections.Counter(split.values())
    print(f"{len(items)} packages ({len(cold)} cold), dependants: " + ", ".join(f"{n} {s}" for s, n in counts.items()))
    print(f"materialize from {TEXTS_AT:%Y-%m-%d} to {LABELS_AT:%Y-%m-%d}")


def read_sample(path: Path) -> dict[str, dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {row["name"]: row for row in map(json.loads, lines)}


# ---- who is asked, what is known, what is to be found


def split_dependants(packages: dict[str, dict], cold: set[str], rng: np.random.Generator) -> dict[str, str]:
    """`train`, `validation` or `test` for each dependant with enough warm dependencies."""
    names = [
        name
        for name, row in packages.items()
        if row["depends"] and sum(d not in cold for d in row["depends"]) >= MIN_WARM_DEPENDS
    ]
    order = [names[i] for i in rng.permutation(len(names))]
    held_out = TEST_DEPENDANTS + VALIDATION_DEPENDANTS
    split = dict.fromkeys(order[:TEST_DEPENDANTS], "test")
    split |= dict.fromkeys(order[TEST_DEPENDANTS:held_out], "validation")
    return split | dict.fromkeys(order[held_out:], "train")


def split_depends(
    packages: dict[str, dict], cold: set[str], split: dict[str, str], rng: np.random.Generator
) -> tuple[History, History]:
    """History (newest first) and labels of each dependant.

    The order is random, since Debian gives none. A cold package is in nobody's history, and only test
    dependants have it as a label.
    """
    history, labels = {}, {}
    for name, part in split.items():
        depends = packages[name]["depends"]
        warm = [d for d in depends if d not in cold]
        warm = [warm[i] for i in rng.permutation(len(warm))]
        known = (len(warm) + 1) // 2
        history[name] = warm[:known]
        labels[name] = warm[known:] + [d for d in depends if d in cold and part == "test"]
    return history, labels


def interactions(history: History, labels: History, split: dict[str, str]) -> pd.DataFrame:
    """One row per dependency: what is known (`history`) and what is to be found (`label`)."""
    rows = [
        (dependant, package, kind, split[dependant], at)
        for kind, side, at in (("history", history, HISTORY_AT), ("label", labels, LABELS_AT))
        for dependant, packages in side.items()
        for package in packages
    ]
    return pd.DataFrame(rows, columns=["dependant", "package", "kind", "split", "event_timestamp"])


def wrong_owners(items: list[str], rng: np.random.Generator) -> dict[str, str]:
    """Whose text each package carries in the control: one cycle through all packages, so never its own."""
    cycle = [items[i] for i in rng.permutation(len(items))]
    return dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))


# ---- tables: texts


def package_text(packages: dict[str, dict], items: list[str]) -> pd.DataFrame:
    rows = [(name, packages[name]["synopsis"], packages[name]["description"]) for name in items]
    return pd.DataFrame(rows, columns=["package", "synopsis", "description"]).assign(event_timestamp=TEXTS_AT)


def package_shuffled_text(packages: dict[str, dict], wrong: dict[str, str]) -> pd.DataFrame:
    rows = [(name, packages[wrong[name]]["synopsis"], packages[wrong[name]]["description"]) for name in sorted(wrong)]
    columns = ["package", "shuffled_synopsis", "shuffled_description"]
    return pd.DataFrame(rows, columns=columns).assign(event_timestamp=TEXTS_AT)


def dependant_text(packages: dict[str, dict], history: History, at: pd.Timestamp) -> pd.DataFrame:
    rows = []
    for name, known in sorted(history.items()):
        newest = [text(packages[d]) for d in known[:HISTORY_TEXTS]]
        rows.append((name, packages[name]["synopsis"], packages[name]["description"], newest))
    columns = ["dependant", "synopsis", "description", "history_texts"]
    return pd.DataFrame(rows, columns=columns).assign(event_timestamp=at)


def text(row: dict) -> str:
    """The text of a past dependency, in the same form as the packages' own texts are embedded."""
    return f"{row['synopsis']}. {row['description']}"


# ---- tables: what the ranker knew before any embedding
#
# Sets of words are one space-separated string: the file store reads strings several times faster than lists.


def package_stats(packages: dict[str, dict], history: History, at: pd.Timestamp) -> pd.DataFrame:
    popularity = collections.Counter(d for known in history.values() for d in known)
    together = co_occurrence(history, popularity)
    rows = []
    for name, row in packages.items():
        if not row["item"]:
            continue
        neighbours = together[name][:CO_PACKAGES]
        rows.append(
            {
                "package": name,
                "package_section": row["section"],
                "popularity": popularity[name],
                "description_words": len(row["description"].split()),
                "package_tags": " ".join(row["tags"]),
                "package_name_words": words(name),
                "package_synopsis_words": words(row["synopsis"]),
                "co_packages": " ".join(f"{other}={score:.4f}" for other, score in neighbours),
            }
        )
    return pd.DataFrame(rows).assign(event_timestamp=at)


def co_occurrence(history: History, popularity: collections.Counter) -> dict[str, list[tuple[str, float]]]:
    """For each package, the packages found in the same histories with their cosine, best first."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for known in history.values():
        for one in known:
            counts[one].update(other for other in known if other != one)
    scored = {
        one: [(other, n / (popularity[one] * popularity[other]) ** 0.5) for other, n in others.items()]
        for one, others in counts.items()
    }
    ranked = {one: sorted(pairs, key=lambda pair: (-pair[1], pair[0])) for one, pairs in scored.items()}
    return collections.defaultdict(list, ranked)


def dependant_stats(packages: dict[str, dict], history: History, at: pd.Timestamp) -> pd.DataFrame:
    rows = []
    for name, known in sorted(history.items()):
        row, past = packages[name], [packages[d] for d in known]
        rows.append(
            {
                "dependant": name,
                "dependant_section": row["section"],
                "history_size": len(known),
                "dependant_tags": " ".join(row["tags"]),
                "dependant_name_words": words(name),
                "dependant_synopsis_words": words(row["synopsis"]),
                "dependant_text_words": words(text(row)),
                "history_packages": " ".join(known),
                "history_sections": " ".join(p["section"] for p in past),
                "history_tags": " ".join(sorted({tag for p in past for tag in p["tags"]})),
                "history_name_words": "\n".join(words(p["name"]) for p in past),
                "history_synopsis_words": "\n".join(words(p["synopsis"]) for p in past),
            }
        )
    return pd.DataFrame(rows).assign(event_timestamp=at)


def words(value: str) -> str:
    """Distinct words in order; digits start a new word, and `lib` is cut off a library's name."""
    parts = re.split(r"[^a-z0-9]+|(?<=[a-z])(?=[0-9])", re.sub(r"^lib(?=[a-z])", "", value.lower()))
    return " ".join(dict.fromkeys(part for part in parts if len(part) > 1 and part not in STOP_WORDS))


def write(name: str, *frames: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(pd.concat(frames, ignore_index=True), preserve_index=False)
    path = REPO / "data" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    # Microseconds: some engines cannot read the nanoseconds that pandas writes by default.
    pq.write_table(table, path, coerce_timestamps="us")


if __name__ == "__main__":
    main()
