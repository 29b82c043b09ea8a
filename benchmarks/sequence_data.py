"""Public sequence data sets, as papers publish results on them, as atomic files with their given split.

    python benchmarks/sequence_data.py pairs Scientific/ --output data/scientific
    python benchmarks/sequence_data.py lines Beauty.txt --output data/beauty

Nothing is downloaded: the first argument is what you have.

``pairs`` reads a folder of RecBole's benchmark files, as the authors of UniSRec and CoWPiRec publish Amazon's review
sets: each row of ``<name>.train.inter`` and its siblings holds a user, the items before (the last 50) and the item to
guess; ``<name>.text`` has a text of each item by its key, ``<name>.item2index`` which number stands for which key.

``lines`` reads one file with a user and the user's items, oldest first, in each line, as S3-Rec's authors publish
Amazon's Beauty. The last item tests and the one before validates; items have no texts.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pandas as pd

from llmrec_plugin.interactions import ITEM, USER, Dataset, write_atomic

PARTS = ("train", "valid", "test")


def read_pairs(folder: Path) -> Dataset:
    """The data set in a folder of benchmark files."""
    (path,) = folder.glob("*.test.inter")
    name = path.name.split(".")[0]
    keys = {number: key for key, number in _rows(folder / f"{name}.item2index", header=False)}
    sequences: dict[str, list[str]] = {}
    for part in PARTS:
        # A user's training rows come newest first, each with the items before it: the last has the beginning.
        for user, past, item in reversed(_rows(folder / f"{name}.{part}.inter")):
            sequences.setdefault(user, [keys[number] for number in past.split()]).append(keys[item])
    texts = pd.DataFrame(_rows(folder / f"{name}.text"), columns=[ITEM, "text"])
    return to_dataset(name, sequences, texts)


def read_lines(path: Path) -> Dataset:
    """The data set in a file of one user a line."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return to_dataset(path.stem, {user: items for user, *items in lines if len(items) > 2}, None)


def to_dataset(name: str, sequences: dict[str, list[str]], texts: pd.DataFrame | None) -> Dataset:
    """Sequences as interactions with a given split.

    Args:
        name: Of the data set.
        sequences: User -> items, oldest first; three or more.
        texts: One row per item, with the key and a text; None: no texts.
    """
    rows = [
        (user, item, PARTS[max(0, place - len(items) + 3)])
        for user, items in sequences.items()
        for place, item in enumerate(items)
    ]
    events = pd.DataFrame(rows, columns=[USER, ITEM, "part"])
    items = pd.DataFrame({ITEM: sorted(set(events[ITEM]))})
    if texts is not None:
        items = items.merge(texts, on=ITEM, how="left", validate="one_to_one")
    return Dataset(name=name, interactions=events, items=items, users=pd.DataFrame({USER: list(sequences)}))


def _rows(path: Path, *, header: bool = True) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[1 if header else 0 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("pairs", "lines"))
    parser.add_argument("source", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    dataset = {"pairs": read_pairs, "lines": read_lines}[arguments.kind](arguments.source)
    write_atomic(dataset, arguments.output)
    counts = dataset.interactions["part"].value_counts()
    print(
        f"{arguments.output}: {len(dataset.users):,} users, {len(dataset.items):,} items, "
        f"{', '.join(f'{counts[part]:,} {part}' for part in PARTS)} interactions"
    )


if __name__ == "__main__":
    main()
