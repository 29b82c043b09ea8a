"""Trains every system on a data set, exports it, and asks whether it helps a ranker.

    python -m benchmarks.evaluation movielens --source ml-latest-small --work .bench/evaluation
    python -m benchmarks.evaluation debian --source packages.jsonl.gz --work .bench/evaluation

What is there already is not made again. The result is ``result.html`` and ``result.json`` below ``--work``. Further
options are those of ``llmrec evaluate``; with ``--only`` some systems are trained, and arms must be named, too:

    python -m benchmarks.evaluation movielens ... --only llm-scorer --arm "llm scorer"
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.evaluation.systems import LANGUAGE_MODEL, REVIEWS, TEXT_RATING, WORK, DataSet
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.export import export_model, export_network
from llmrec_plugin.settings import load_settings
from llmrec_plugin.training.loop import Plan

HERE = Path(__file__).parent
PREPARED = {"movielens": ["movielens"], "debian": ["debian", "--most-users", "4000"]}
DONE = ".done"


def llmrec(*arguments: str) -> None:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "from llmrec_plugin.cli import main; main()", *arguments], check=True)
    print(f"llmrec {' '.join(arguments[:2])}: {time.monotonic() - started:.0f} s", flush=True)


def language_model(described: DataSet, data: Path, folder: Path) -> None:
    from benchmarks.evaluation.language_model import train_language_model  # loads torch

    if not (folder / DONE).exists():
        started = time.monotonic()
        train_language_model(data, folder, described.scorer_settings, Plan(epochs=2, patience=2, learning_rate=2e-3))
        (folder / DONE).touch()
        print(f"language model: {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PREPARED)
    parser.add_argument("--source", type=Path, required=True, help="What `llmrec data` reads.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", metavar="SYSTEM", help="Systems to train and export; default: all.")
    parser.add_argument("--result", default="result", help="Name of the result's folder.")
    options, further = parser.parse_known_args()  # further ones are for `llmrec evaluate`
    folder = options.work / options.name
    data, systems, ranker, trained = (folder / name for name in ("data", "systems", "ranker", "trained"))
    if not data.is_dir():
        llmrec("data", *PREPARED[options.name], "--source", str(options.source), "--output", str(data))
    llmrec("data", "divide", "--data", str(data), "--systems", str(systems), "--ranker", str(ranker))
    os.environ[WORK] = str(options.work.absolute())
    module = importlib.import_module(f"benchmarks.evaluation.{options.name}")
    described: DataSet = module.DATA
    commands = described.commands(systems, trained)
    unknown = set(options.only or ()) - commands.keys()
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(commands)}.")
    chosen = [name for name in commands if options.only is None or name in options.only]
    for name in chosen:
        if not (trained / name / DONE).exists():
            if name == "llm-scorer":
                language_model(described, systems, trained / LANGUAGE_MODEL)
            if described.reads_reviews(name) and not (trained / REVIEWS / DONE).exists():
                for arguments in module.review_commands(options.source, systems, trained):
                    llmrec("train", *arguments)
                (trained / REVIEWS / DONE).touch()
            llmrec("train", *commands[name])
            (trained / name / DONE).touch()
    store = ArtifactStore(load_settings().artifact_folders)
    for name in chosen:
        for network in described.networks(trained, name):
            export_network(network, store, report=print)
    if "encoder" in chosen:
        llmrec("export", str(trained / "encoder"), "--name", described.tuned)
    if "llm-scorer" in chosen:
        llmrec("export", str(trained / "llm-scorer"), "--name", described.scorer, "--task", "causal")
    if TEXT_RATING in chosen:
        from benchmarks.evaluation.text_rating import text_encoder  # loads torch

        export_model(text_encoder(described.name), store)
    llmrec(
        "evaluate", "--data", str(ranker), "--output", str(folder / options.result),
        "--config", str(HERE / f"{options.name}.yaml"), *further,
    )  # fmt: skip


if __name__ == "__main__":
    main()
