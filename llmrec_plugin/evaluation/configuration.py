"""What is compared: feature sets, arms and controls, from a YAML or TOML file.

features:
  text: {kind: similarity, item: my_features:item_text_embedding}
  tags: {kind: tokens, item: genres}
arms:
  text: [text]
  text and tags: [text, tags]
controls: [random, shuffled, stale]
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llmrec_plugin.errors import InputError, UnknownNameError
from llmrec_plugin.evaluation.declared import Computer, EventList, Inputs
from llmrec_plugin.evaluation.experiment import BASE, Arm, Plan
from llmrec_plugin.evaluation.features import (
    FeatureSet,
    FunctionSet,
    function_named,
    outdated,
    randomized,
    shuffled,
)
from llmrec_plugin.evaluation.rankers import RANKERS
from llmrec_plugin.evaluation.sets import PairSet, SimilaritySet, TagSet
from llmrec_plugin.evaluation.tables import TableSet
from llmrec_plugin.evaluation.windows import Catalogue, Log
from llmrec_plugin.specs import from_spec

CONTROLS = ("random", "shuffled", "stale")
KINDS = ("similarity", "network", "tokens", "pair", "table", "function")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What is compared and how.

    Attributes:
        features: Name -> its kind and options, see `feature_set`.
        arms: Name -> names of feature sets; if empty, one arm for each set.
        base: Names of sets that every arm has, the base arm too.
        controls: Which controls each arm gets.
        rankers: Which rankers are trained.
        liked: Smallest rating that is relevant, where there are ratings.
        list_events: Events of a list, with times.
        validation: Share of the interactions, where the data brings no split.
        test: Likewise.
        runs: Name -> file of rankings in trec_eval's format.
        plan: How much is computed.
    """

    features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    arms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    base: Sequence[str] = ()
    controls: Sequence[str] = ()
    rankers: Sequence[str] = ("lightgbm",)
    liked: float = 4.0
    list_events: int = 20
    validation: float = 0.1
    test: float = 0.1
    runs: Mapping[str, str] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        arms = self.arms or {name: (name,) for name in self.features if name not in self.base}
        object.__setattr__(self, "arms", arms)
        if BASE in arms:
            raise InputError(f"configuration: the arm without features is named {BASE!r}; name yours otherwise.")
        for name in (*self.base, *(each for sets in arms.values() for each in sets)):
            if name not in self.features:
                raise UnknownNameError("feature set", name, self.features)
        for control in self.controls:
            if control not in CONTROLS:
                raise UnknownNameError("control", control, CONTROLS)
        if not self.rankers:
            raise InputError(f"configuration: rankers must name one or more of {', '.join(RANKERS)}.")
        for ranker in self.rankers:
            if ranker not in RANKERS:
                raise UnknownNameError("ranker", ranker, RANKERS)


def read_configuration(path: Path | None, **overrides: Any) -> Configuration:
    """The configuration of a file, with what is not None of `overrides` in its place.

    Fields of `Plan` stand beside the others.

    Raises:
        InputError: The file is no mapping, or names something unknown.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
            values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text) or {}
        except (tomllib.TOMLDecodeError, yaml.YAMLError) as exc:
            raise InputError(f"{path}: expected YAML or, by its ending, TOML: {exc}.") from exc
        if not isinstance(values, dict):
            raise InputError(f"{path}: expected names with values, got {type(values).__name__}.")
    values |= {name: value for name, value in overrides.items() if value is not None}
    of_plan = {each.name for each in fields(Plan)}
    known = ({each.name for each in fields(Configuration)} | of_plan) - {"plan"}
    for name in values:
        if name not in known:
            raise UnknownNameError("setting of an evaluation", name, known)
    plan = Plan(**{name: values.pop(name) for name in list(values) if name in of_plan})
    return Configuration(**values, plan=plan)


def arms_of(
    configuration: Configuration,
    catalogue: Catalogue,
    train: Log,
    resolve: Callable[[str], Any],
    computer: Callable[[], Computer],
    folder: Path,
) -> list[Arm]:
    """The base arm, the arms, and the controls of each.

    Args:
        configuration: What is compared.
        catalogue: Of the data.
        train: Its training events; their middle is where stale features end.
        resolve: Gives the declaration of a name.
        computer: Gives what computes declared features; called when it is first needed.
        folder: What paths are relative to.
    """
    seed = configuration.plan.seed

    def make(name: str, changed: Mapping[str, Any] | None = None) -> FeatureSet:
        return feature_set(name, {**configuration.features[name], **(changed or {})}, resolve, computer, folder)

    made = {name: make(name) for name in configuration.features}
    base = tuple(made[name] for name in configuration.base)
    permutation = np.random.default_rng(seed).permutation(len(catalogue.items))
    middle = int(np.median(train.time)) if catalogue.timed and len(train) else 0
    controls: dict[str, Callable[[str], FeatureSet]] = {
        "random": lambda name: randomized(made[name], seed),
        "shuffled": lambda name: shuffled(made[name], permutation),
        "stale": lambda name: outdated(
            make(name, configuration.features[name]["stale"])
            if "stale" in configuration.features[name]
            else made[name],
            middle,
        ),
    }
    arms = [Arm(name=BASE, sets=base)]
    for name, sets in configuration.arms.items():
        arms.append(Arm(name=name, sets=(*base, *(made[each] for each in sets))))
        for control in configuration.controls:
            changed = tuple(controls[control](each) for each in sets)
            arms.append(Arm(name=f"{name}, {control}", sets=(*base, *changed), control_of=name, control=control))
    return arms


def feature_set(
    name: str,
    options: Mapping[str, Any],
    resolve: Callable[[str], Any],
    computer: Callable[[], Computer],
    folder: Path,
) -> FeatureSet:
    """A feature set of one of the kinds.

    ``similarity``: `item`, `user`, `events`, `last_n`, `liked_only`, `history`, `vectors`. ``network``: the same
    without columns of the history. ``tokens``: `item` (a column of words or a declared feature) and `last_n`. ``pair``:
    `pair`, `events`, `last_n`, `liked_only`, `shortlist`. ``table``: `path`, `time`, `columns`, `static`. ``function``:
    `function` and its arguments. Each may have `stale`: the options that differ in the stale control.

    Raises:
        InputError: The kind or an option is unknown or missing.
    """
    values = {key: value for key, value in options.items() if key != "stale"}
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise UnknownNameError("kind of feature set", str(kind), KINDS)
    if kind == "function":
        path = _needed(name, values, "function")
        return FunctionSet(name=name, function=function_named(path), options=values)
    allowed = {
        "similarity": {"item", "user", "events", "last_n", "liked_only", "history", "vectors"},
        "network": {"item", "user", "events", "last_n", "liked_only", "vectors"},
        "tokens": {"item", "last_n"},
        "pair": {"pair", "events", "last_n", "liked_only", "shortlist"},
        "table": {"path", "time", "columns", "static"},
    }[kind]
    for key in values:
        if key not in allowed:
            raise UnknownNameError(f"option of {kind} set {name!r}", key, allowed)
    if kind == "table":
        return TableSet(
            name=name,
            path=folder / _needed(name, values, "path"),
            time=values.get("time", "event_timestamp"),
            only=tuple(values.get("columns", ())),
            static=bool(values.get("static", False)),
        )
    inputs = Inputs(
        events={column: _event_list(name, column, each) for column, each in values.get("events", {}).items()},
        last_n=int(values.get("last_n", 20)),
        liked_only=bool(values.get("liked_only", False)),
    )
    if kind == "tokens":
        item = _needed(name, values, "item")
        column = isinstance(item, str) and item.isidentifier()
        return TagSet(
            name=name,
            tags=item if column else _declared(item, resolve),
            computer=None if column else computer(),
            inputs=inputs,
        )
    if kind == "pair":
        pair = _declared(_needed(name, values, "pair"), resolve)
        shortlist = values.get("shortlist")
        if shortlist is not None and (not isinstance(shortlist, int) or shortlist < 1):
            raise InputError(f"feature set {name!r}: expected shortlist of 1 or more items, got {shortlist!r}.")
        return PairSet(name=name, computer=computer(), pair=pair, inputs=inputs, shortlist=shortlist)
    user = values.get("user")
    if kind == "network" and user is None:
        raise InputError(f"feature set {name!r}: a network of items needs user=, the feature of the users' side.")
    return SimilaritySet(
        name=name,
        computer=computer(),
        item=_declared(_needed(name, values, "item"), resolve),
        user=None if user is None else _declared(user, resolve),
        inputs=inputs,
        history=kind == "similarity" and bool(values.get("history", True)),
        with_vectors=bool(values.get("vectors", False)),
    )


def _event_list(name: str, column: str, value: Any) -> str | EventList:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping) or set(value) != {"shows", "liked"}:
        raise InputError(
            f"feature set {name!r}: events of {column!r}: expected what each event gives, or that as `shows` with "
            f"`liked`, true or false; got {value!r}."
        )
    return EventList(shows=str(value["shows"]), liked=bool(value["liked"]))


def _needed(name: str, values: dict[str, Any], option: str) -> Any:
    if option not in values:
        raise InputError(f"feature set {name!r}: the option {option!r} is missing.")
    return values.pop(option)


def _declared(value: Any, resolve: Callable[[str], Any]) -> Any:
    """A declaration: as it is, written out, as ``module:name``, or by the name of a plugin's feature."""
    if isinstance(value, Mapping):
        return from_spec(dict(value))
    if not isinstance(value, str):
        return value
    return function_named(value) if ":" in value else resolve(value)
