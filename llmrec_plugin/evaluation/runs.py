"""Rankings from outside, in trec_eval's format: ``list Q0 item rank score tag``."""

from __future__ import annotations

from pathlib import Path

from llmrec_plugin.errors import InputError
from llmrec_plugin.evaluation.windows import Window


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """List -> item -> score. Ranks are not read: the scores rank, as in trec_eval.

    Raises:
        InputError: A line has not six cells, a score is no finite number, or an item stands twice in a list.
    """
    found: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.split()
            if not cells:
                continue
            if len(cells) != 6:
                raise InputError(
                    f"{path}, line {number}: expected 'list Q0 item rank score tag', got {line.strip()!r}."
                )
            name, _, item, _, score, _ = cells
            try:
                value = float(score)
            except ValueError:
                value = float("nan")
            if value != value:
                raise InputError(f"{path}, line {number}: the score must be a number, got {score!r}.")
            if item in found.setdefault(name, {}):
                raise InputError(f"{path}, line {number}: {item!r} stands twice in list {name!r}.")
            found[name][item] = value
    return found


def check_run(path: Path, run: dict[str, dict[str, float]], window: Window) -> None:
    """Raises if a run has none of the lists that are measured.

    Raises:
        InputError: Says what lists are named like.
    """
    names = window.names()
    if not set(names) & run.keys():
        raise InputError(
            f"{path}: has none of the {len(names)} test lists; they are named like {names[0]!r}, and the run has "
            f"{next(iter(run), 'no list')!r}. `llmrec evaluate --write-lists` writes their names."
        )


def write_lists(window: Window, folder: Path) -> None:
    """Writes what a ranking from outside needs: ``qrels.txt`` in trec_eval's format and ``seen.txt``.

    ``qrels.txt`` has the relevant items of each list, ``seen.txt`` those that the user had before, newest first, which
    are no candidates.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items = window.catalogue.items
    qrels, seen = [], []
    for query, name in enumerate(window.names()):
        qrels += [f"{name} 0 {items[item]} 1\n" for item in window.relevant[query]]
        seen.append(" ".join([name, *(str(items[item]) for item in window.past_items(query))]) + "\n")
    (folder / "qrels.txt").write_text("".join(qrels), encoding="utf-8")
    (folder / "seen.txt").write_text("".join(seen), encoding="utf-8")
