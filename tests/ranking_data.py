"""A small made-up data set: users follow tastes, which others share, and what only a feature knows."""

import numpy as np
import pandas as pd

from llmrec_plugin.evaluation.features import Columns
from llmrec_plugin.evaluation.windows import NEVER
from llmrec_plugin.interactions import Dataset

USERS, ITEMS, TASTES = 90, 120, 4
_AFFINITY = np.random.default_rng(7).standard_normal((USERS, ITEMS))


def dataset(*, timed: bool, rated: bool = False, seed: int = 0, events: int = 12) -> Dataset:
    """Events of users in random order; some items come late or never, so there are cold ones."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(USERS):
        for item in rng.choice(ITEMS, min(events, ITEMS), replace=False, p=_shares(user)):
            second = rng.integers(0, 1_000_000)
            rows.append((f"u{user:03d}", f"i{item:03d}", float(rng.integers(3, 6)) if rated else 5.0, second))
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "second"])
    if timed:
        table = table.sort_values("second", kind="stable", ignore_index=True)
        times = pd.Series(table["second"].to_numpy().astype("datetime64[s]").astype("datetime64[us]"))
        table["timestamp"] = times.dt.tz_localize("UTC")
    items = [f"i{item:03d}" for item in range(ITEMS)]
    return Dataset(
        name="tastes",
        interactions=table.drop(columns=["second", *([] if rated else ["rating"])]),
        items=pd.DataFrame({"item_id": items, "title": [f"thing {item % TASTES}" for item in range(ITEMS)],
                            "kind": [f"kind{item % TASTES}" for item in range(ITEMS)]}),
        users=pd.DataFrame({"user_id": [f"u{user:03d}" for user in range(USERS)]}),
    )  # fmt: skip


def _shares(user: int) -> np.ndarray:
    weights = np.where(np.arange(ITEMS) % TASTES == user % TASTES, 3.0, 1.0) * np.exp(2 * _AFFINITY[user])
    return weights / weights.sum()


def knows(window, rows, strength=1.0) -> Columns:
    """A feature that knows what nobody else's events tell, as a function set."""
    items = np.array([int(key[1:]) for key in window.catalogue.items])[rows.item]
    users = np.array([int(key[1:]) for key in window.catalogue.users])[window.user][rows.query]
    values = (_AFFINITY[users, items] * strength).astype(np.float32)[:, None]
    return Columns(names=("affinity",), values=values, latest=np.full(len(rows), NEVER))


def knows_the_answer(window, rows) -> Columns:
    """A feature that looks at what the user does later, and says so."""
    values = np.zeros((len(rows), 1), dtype=np.float32)
    for query, (first, last) in enumerate(zip(rows.offsets[:-1], rows.offsets[1:], strict=True)):
        values[first:last, 0] = np.isin(rows.item[first:last], window.relevant[query])
    return Columns(names=("answer",), values=values, latest=window.moment[rows.query] + 1)


def noise(window, rows) -> Columns:
    """A feature that knows nothing: a hash of user and item."""
    mixed = (window.user[rows.query] * 7919 + rows.item * 104_729) % 1009
    return Columns(
        names=("noise",), values=(mixed / 1009).astype(np.float32)[:, None], latest=np.full(len(rows), NEVER)
    )
