"""Choose the shipped sample from a dump of Debian package metadata.

    python examples/ranker/make_sample.py PACKAGES_JSONL_GZ

Reads one JSON object a line (name, section, synopsis, description, tags, depends) and writes
`feature_repo/sample/packages.jsonl.gz`. The same dump gives the same bytes.

An *item* is a package that others depend on; a *dependant* is a package whose dependencies we rank.
A package may be both. `depends` in the sample keeps only the items, in alphabetical order.
"""

import argparse
import collections
import gzip
import json
from pathlib import Path

import numpy as np

SAMPLE = Path(__file__).resolve().parents[2] / "feature_repo" / "sample" / "packages.jsonl.gz"

SEED = 12
# Items named by more packages than this are left out: libc6, python3 or perl are right answers for
# nearly everyone, so they measure nothing. An item named once cannot be learned from.
MAX_IN_DEGREE = 300
MIN_IN_DEGREE = 2
# A dependant needs a history and something to predict; beyond 30 it is a metapackage.
MIN_DEPENDS, MAX_DEPENDS = 4, 30
# The cap keeps large families (libs, python, gnu-r) from being the whole sample.
DEPENDANTS_PER_SECTION = 105
MIN_SAMPLE_IN_DEGREE = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, help="packages.jsonl.gz")
    packages = read(parser.parse_args().packages)
    dependants, items = choose(packages)
    write(packages, dependants, items, SAMPLE)
    size = SAMPLE.stat().st_size / 1e6
    texts = len(set(dependants) | items)
    print(f"{len(dependants)} dependants, {len(items)} items, {texts} texts, {size:.2f} MB in {SAMPLE.name}")


def read(path: Path) -> dict[str, dict]:
    """Packages by name, in alphabetical order."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {row["name"]: row for row in sorted(rows, key=lambda row: row["name"])}


def choose(packages: dict[str, dict]) -> tuple[dict[str, list[str]], set[str]]:
    """Dependants with their dependencies among the items, and the items."""
    in_degree = collections.Counter(name for row in packages.values() for name in set(row["depends"]))
    items = {
        name
        for name, degree in in_degree.items()
        if name in packages and MIN_IN_DEGREE <= degree <= MAX_IN_DEGREE and packages[name]["description"]
    }
    dependants = sample_dependants(packages, items)
    return prune(dependants, items)


def sample_dependants(packages: dict[str, dict], items: set[str]) -> dict[str, list[str]]:
    """Up to DEPENDANTS_PER_SECTION packages of each section, one per synopsis, with their dependencies."""
    names = sorted(packages)
    chosen: dict[str, list[str]] = {}
    per_section: collections.Counter = collections.Counter()
    synopses: set[str] = set()
    for position in np.random.default_rng(SEED).permutation(len(names)):
        row = packages[names[position]]
        depends = sorted((set(row["depends"]) & items) - {row["name"]})
        # The start of the synopsis is shared by the binary packages of one source (-dev, -tools, ...).
        synopsis = row["synopsis"].lower()[:60]
        if not row["description"] or not MIN_DEPENDS <= len(depends) <= MAX_DEPENDS:
            continue
        if synopsis in synopses or per_section[row["section"]] == DEPENDANTS_PER_SECTION:
            continue
        synopses.add(synopsis)
        per_section[row["section"]] += 1
        chosen[row["name"]] = depends
    return chosen


def prune(dependants: dict[str, list[str]], items: set[str]) -> tuple[dict[str, list[str]], set[str]]:
    """Drop rare items and the dependants they leave too short, until nothing changes."""
    while True:
        counts = collections.Counter(name for depends in dependants.values() for name in depends)
        kept_items = {name for name in items if counts[name] >= MIN_SAMPLE_IN_DEGREE}
        kept = {name: [d for d in depends if d in kept_items] for name, depends in dependants.items()}
        kept = {name: depends for name, depends in kept.items() if len(depends) >= MIN_DEPENDS}
        if len(kept) == len(dependants) and len(kept_items) == len(items):
            return kept, kept_items
        dependants, items = kept, kept_items


def write(packages: dict[str, dict], dependants: dict[str, list[str]], items: set[str], path: Path) -> None:
    """One line per package; `depends` is null unless it is a dependant, `item` says it is a candidate."""
    lines = []
    for name in sorted(set(dependants) | items):
        row = packages[name]
        kept = {key: row[key] for key in ("name", "section", "synopsis", "description", "tags")}
        kept |= {"item": name in items, "depends": dependants.get(name)}
        lines.append(json.dumps(kept, ensure_ascii=False, separators=(",", ":")))
    path.parent.mkdir(parents=True, exist_ok=True)
    # mtime=0 and no file name: the bytes depend on the content only.
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out:
        out.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
