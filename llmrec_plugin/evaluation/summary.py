"""Metrics of lists -> means, intervals of differences, slices and costs, as JSON-ready data.

A user's lists are averaged first, then users, so that a user with many lists does not count more. Intervals cover the
choice of users and that of seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec_plugin.evaluation.experiment import ITEM_SLICES, USER_SLICES, Arm, Measured, Plan
from llmrec_plugin.evaluation.metrics import METRICS, paired_bootstrap
from llmrec_plugin.evaluation.windows import Window


def summary(measured: Measured, arms: Sequence[Arm], plan: Plan, test: Window) -> dict[str, Any]:
    """The result as plain data.

    ``rankers`` has, by ranker and arm, ``metrics`` and ``difference`` to the first arm by slice and metric, ``cost``
    and what validation chose; ``baselines`` the metrics of rankings without a ranker; ``slices`` what each means.
    """
    catalogue = test.catalogue
    slices = _slices(measured, plan)
    rankers: dict[str, dict[str, Any]] = {}
    for (ranker, name), values in measured.scores.items():
        arm = next(each for each in arms if each.name == name)
        base = measured.scores[ranker, arms[0].name]
        control = {"control_of": arm.control_of, "control": arm.control} if arm.control else {}
        entry: dict[str, Any] = {
            **control,
            "columns": list(measured.columns[name]),
            "params": dict(measured.params[ranker, name]),
            "validation_ndcg": measured.validation[ranker, name],
            "metrics": {label: _means(values, measured, number, lists) for label, (number, lists) in slices.items()},
        }
        if name != arms[0].name:
            entry["difference"] = _differences(values, base, measured, slices)
            entry["cost"] = _cost(measured, name, entry["difference"]["all"]["ndcg"])
        controls = [each.name for each in arms if each.control_of == name]
        if controls:
            entry["over_control"] = {
                other: _differences(values, measured.scores[ranker, other], measured, slices) for other in controls
            }
        rankers.setdefault(ranker, {})[name] = entry
    return {
        "data": {
            "name": catalogue.data.name,
            "interactions": len(catalogue.data.interactions),
            "users": len(catalogue.users),
            "items": len(catalogue.items),
            "timed": catalogue.timed,
            "rated": catalogue.rated,
            "liked": catalogue.liked if catalogue.rated else None,
        },
        "protocol": {
            "lists": len(measured.lists),
            "users": len(np.unique(measured.user)),
            "items_ranked": plan.candidates or len(catalogue.items),
            "ceiling": measured.ceiling,
            "k": plan.k,
            "seeds": plan.seeds,
            "base": arms[0].name,
            "plan": vars(plan),
        },
        "slices": {
            label: {
                "definition": _definition(label, plan),
                "lists": int((~np.isnan(_any(measured)[0, number][lists, 0])).sum()),
                "users": len(np.unique(measured.user[lists][~np.isnan(_any(measured)[0, number][lists, 0])])),
            }
            for label, (number, lists) in slices.items()
        },
        "rankers": rankers,
        "baselines": {
            name: {label: _means(values, measured, number, lists) for label, (number, lists) in slices.items()}
            for name, values in measured.baselines.items()
        },
        "seconds": measured.seconds,
    }


def _any(measured: Measured) -> np.ndarray:
    return next(iter(measured.scores.values()))


def _slices(measured: Measured, plan: Plan) -> dict[str, tuple[int, np.ndarray]]:
    """Slice -> number of the item slice and (L,) which lists."""
    everyone = np.ones(len(measured.lists), dtype=bool)
    found = {label: (number, everyone) for number, label in enumerate(ITEM_SLICES)}
    cold = measured.history < plan.tail_history / 4
    warm = measured.history >= plan.tail_history
    for label, lists in zip(USER_SLICES, (warm, ~warm & ~cold, cold), strict=True):
        found[label] = (0, lists)
    return found


def _definition(label: str, plan: Plan) -> str:
    least = -(-plan.tail_history // 4)
    return {
        "all": "Every candidate.",
        "warm items": f"Items with {plan.tail_events} events or more before, ranked among themselves.",
        "tail items": f"Items with 1 to {plan.tail_events - 1} events before, ranked among themselves.",
        "cold items": "Items without an event before, ranked among themselves.",
        "warm users": f"Lists with {plan.tail_history} events of the user or more before them.",
        "tail users": f"Lists with {least} to {plan.tail_history - 1} events of the user before them.",
        "cold users": f"Lists with fewer than {least} events of the user before them.",
    }[label]


def _by_user(values: np.ndarray, user: np.ndarray) -> np.ndarray:
    """(L,) of lists -> (U,) means of users, without users that have no value."""
    known = ~np.isnan(values)
    _, place = np.unique(user[known], return_inverse=True)
    counts = np.bincount(place)
    return np.bincount(place, weights=values[known]) / np.maximum(counts, 1) if len(place) else np.zeros(0)


def _means(values: np.ndarray, measured: Measured, number: int, lists: np.ndarray) -> dict[str, Any]:
    found = {}
    for place, metric in enumerate(METRICS):
        seeds = [_by_user(each[number, lists, place], measured.user[lists]) for each in values]
        means = [float(seed.mean()) if len(seed) else None for seed in seeds]
        there = [mean for mean in means if mean is not None]
        found[metric] = {"mean": float(np.mean(there)) if there else None, "seeds": means}
    return found


def _differences(
    values: np.ndarray, base: np.ndarray, measured: Measured, slices: dict[str, tuple[int, np.ndarray]]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, (number, lists) in slices.items():
        found[label] = {}
        for place, metric in enumerate(METRICS):
            gained = (values - base)[:, number, lists, place]
            by_user = np.stack([_by_user(each, measured.user[lists]) for each in gained])
            mean, low, high = paired_bootstrap(by_user)
            found[label][metric] = dict(zip(("mean", "low", "high"), map(_plain, (mean, low, high)), strict=True))
    return found


def _cost(measured: Measured, name: str, gain: dict[str, Any]) -> dict[str, Any]:
    cost = measured.cost[name]
    points = None if gain["low"] is None or gain["low"] <= 0 else gain["mean"] * 100
    return {
        "seconds": cost.seconds,
        "item_bytes": cost.item_bytes,
        "seconds_per_point": cost.seconds / points if points else None,
        "item_bytes_per_point": cost.item_bytes / points if points else None,
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
