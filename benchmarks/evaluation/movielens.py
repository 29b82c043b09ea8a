"""What movielens.yaml names."""

import numpy as np
import pandas as pd

from benchmarks.evaluation.systems import DataSet, trained
from llmrec_plugin.evaluation.features import Columns
from llmrec_plugin.evaluation.windows import Rows, Window
from llmrec_plugin.interactions import ITEM, RATING, USER

DATA = DataSet(
    name="movielens",
    item_text="{title}. {genres}",
    training={
        # 560 people with long histories: an epoch is a few steps.
        "bert4rec": ["--batch", "16", "--patience", "20"],
        "encoder": ["--liked-from", "4"],
    },
    # The small size of docs/systems/text-rating.md.
    further={
        "text-rating": [
            "text-rating", "--item-text", "{title}. {genres}", "--dims", "32", "--layers", "1",
            "--learning-rate", "1e-3", "--batch-size", "128", "--most-rows", "30000",
        ]
    },
)  # fmt: skip

item_text = DATA.text("item")
item_tuned = DATA.text("item", tuned=True)
user_bert4rec, item_bert4rec = DATA.sequence("bert4rec", 65), DATA.item("bert4rec", 65)
user_unisrec, item_unisrec = DATA.sequence("unisrec"), DATA.item("unisrec")
user_whitening, item_whitening = DATA.sequence("whitening"), DATA.item("whitening")


def text_rating(window: Window, rows: Rows) -> Columns:
    """The rating that the trained text rating expects, from the history's titles and the item's text."""
    from llmrec_plugin.systems.text_rating.texts import history_texts
    from llmrec_plugin.systems.text_rating.training import score

    data, items = window.catalogue.data, window.catalogue.items
    lists = np.repeat(np.arange(len(window)), np.diff(window.offsets))
    # Histories are newest first; their order alone matters here.
    events = pd.DataFrame(
        {
            USER: lists,
            ITEM: items[window.history.item],
            RATING: window.history.rating,
            "moment": -np.arange(len(lists)),
        }
    )
    users = history_texts(
        np.arange(len(window)), np.ones(len(window), dtype=np.int64), events, data.item_texts("{title}"),
        last_n=8, liked=4.0, moment="moment",
    )  # fmt: skip
    texts = data.item_texts(DATA.item_text)
    found = score(
        trained("movielens") / "text-rating",
        {
            "user_text": np.array(users, dtype=object)[rows.query].tolist(),
            "item_text": np.array([texts[item] for item in items], dtype=object)[rows.item].tolist(),
        },
    )
    return Columns(names=("text_rating",), values=found[:, None], latest=window.latest()[rows.query])
