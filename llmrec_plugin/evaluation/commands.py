"""``llmrec evaluate``: does a feature help a ranker?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from llmrec_plugin.console import result
from llmrec_plugin.errors import InputError, UnknownNameError

_folder = click.Path(exists=True, file_okay=False, path_type=Path)
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def _show(measured: dict[str, Any]) -> None:
    from llmrec_plugin.evaluation.report import table

    if "page" in measured:
        click.echo(table(measured))
        click.echo(f"\n{measured['page']}")
    else:
        click.echo(f"{measured['output']}: {measured['lists']} test lists.")


@click.command()
@click.option("--data", type=_folder, required=True, help="Folder of atomic files (.inter, .item, .user).")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of result.json and result.html.",
)
@click.option("--config", type=_file, help="Feature sets, arms and controls: YAML or TOML.")
@click.option("--feature", "features", multiple=True, help="Name of an embedding feature of items: an arm of its own.")
@click.option("--arm", "arms", multiple=True, help="Only this arm of the configuration; may be given several times.")
@click.option("--ranker", "rankers", multiple=True, help="lightgbm or deepfm; may be given twice.")
@click.option("--control", "controls", multiple=True, help="random, shuffled or stale; may be given several times.")
@click.option("--seeds", type=click.IntRange(min=1), help="Models of each arm.  [default: 5]")
@click.option("--most-lists", type=click.IntRange(min=1), help="Test lists at most.  [default: 300]")
@click.option("--most-training-lists", type=click.IntRange(min=1), help="Training lists at most.  [default: 2000]")
@click.option("--candidates", type=click.IntRange(min=20), help="Rank that many of a recall stage, not all items.")
@click.option(
    "--run", "runs", multiple=True, metavar="NAME=FILE", help="A ranking from outside, in trec_eval's format."
)
@click.option("--write-lists", is_flag=True, help="Only write the test lists to --output, and stop.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the split and of what is drawn once.  [default: 0]")
@result(_show)
def evaluate(
    data: Path,
    output: Path,
    config: Path | None,
    features: tuple[str, ...],
    arms: tuple[str, ...],
    runs: tuple[str, ...],
    write_lists: bool,
    **options: Any,
) -> dict[str, Any]:
    """Ranks with and without features, the same ranker, and says whether the difference is more than chance.

    Needs the extra evaluate; the ranker deepfm needs export, for torch.

    \b
    llmrec evaluate --data data/movielens --output result --config movielens.yaml
    llmrec evaluate --data data/movielens --output lists --write-lists
    """
    from llmrec_plugin.evaluation.configuration import read_configuration

    options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    changed = {name: value for name, value in options.items() if value not in ([], None)}
    if config is not None:
        sys.path.insert(0, str(config.parent.absolute()))  # functions and declarations beside the file
    configuration = read_configuration(config, **changed)
    if arms:
        configuration = _with_arms(configuration, arms)
    if features:
        configuration = _with_features(configuration, features)
    chosen = {**configuration.runs, **dict(_pair(run) for run in runs)}
    return _run(data, output, configuration, chosen, config.parent if config else Path(), write_lists=write_lists)


def _run(
    data: Path, output: Path, configuration: Any, runs: dict[str, str], folder: Path, *, write_lists: bool
) -> dict[str, Any]:
    import functools

    from llmrec_plugin.evaluation.configuration import arms_of
    from llmrec_plugin.evaluation.declared import Computer
    from llmrec_plugin.evaluation.experiment import measure
    from llmrec_plugin.evaluation.page import page
    from llmrec_plugin.evaluation.rankers import ranker_named
    from llmrec_plugin.evaluation.runs import check_run, read_run
    from llmrec_plugin.evaluation.runs import write_lists as write
    from llmrec_plugin.evaluation.summary import summary
    from llmrec_plugin.evaluation.windows import Catalogue, windows
    from llmrec_plugin.interactions import read_atomic, split_dataset
    from llmrec_plugin.manager import load_catalogue
    from llmrec_plugin.settings import load_settings

    settings, plan = load_settings(), configuration.plan
    dataset = read_atomic(data)
    split = split_dataset(dataset, seed=plan.seed, validation=configuration.validation, test=configuration.test)
    catalogue = Catalogue.of(dataset, liked=configuration.liked)
    train, validation, test = windows(catalogue, split, list_events=configuration.list_events, seed=plan.seed)
    if write_lists:
        write(test, output)
        return {"output": output, "lists": len(test)}
    read = {}
    for name, file in runs.items():
        path = folder / file
        if not path.is_file():
            raise InputError(f"run {name!r}: {path} is not there.")
        read[name] = read_run(path)
        check_run(path, read[name], test)
    arms = arms_of(
        configuration,
        catalogue,
        catalogue.log(split.train),
        lambda name: load_catalogue(settings.disabled_plugins).feature(name),
        functools.cache(lambda: Computer(settings)),
        folder,
    )
    rankers = [ranker_named(name, settings.threads) for name in configuration.rankers]
    report = (lambda line: click.echo(line, err=True)) if settings.progress else (lambda line: None)
    measured = measure(train, validation, test, arms, rankers, plan, runs=read, report=report)
    outcome = summary(measured, arms, plan, test)
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    (output / "result.html").write_text(page(outcome), encoding="utf-8")
    return {**outcome, "page": output / "result.html"}


def _with_features(configuration: Any, features: tuple[str, ...]) -> Any:
    from dataclasses import replace

    added = {name: {"kind": "similarity", "item": name} for name in features}
    return replace(
        configuration,
        features={**configuration.features, **added},
        arms={**configuration.arms, **{name: [name] for name in features}},
    )


def _with_arms(configuration: Any, names: tuple[str, ...]) -> Any:
    from dataclasses import replace

    for name in names:
        if name not in configuration.arms:
            raise UnknownNameError("arm", name, configuration.arms)
    return replace(configuration, arms={name: configuration.arms[name] for name in names})


def _pair(text: str) -> tuple[str, str]:
    name, _, file = text.partition("=")
    if not name or not file:
        raise click.UsageError(f"--run takes NAME=FILE, got {text!r}.")
    return name, str(Path(file).absolute())
