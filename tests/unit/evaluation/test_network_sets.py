"""Declared networks as feature sets: the values are those that Feast would store."""

import numpy as np
import pandas as pd
import pytest
from samples import settings

from llmrec_plugin import NetworkFeature
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import DeclarationError, InputError
from llmrec_plugin.evaluation.configuration import feature_set
from llmrec_plugin.evaluation.declared import Computer
from llmrec_plugin.evaluation.windows import Catalogue, Rows, windows
from llmrec_plugin.interactions import Dataset, read_atomic, split_dataset, write_atomic

pytest.importorskip("torch", reason="the export extra is not installed")

from tiny_networks import declare_network

from llmrec_plugin.export import export_network

ITEM = NetworkFeature(
    name="item_vector", entity="item", model="adaptor", inputs={"vector": "plot"}, dims=8, metric="cosine"
)
USER = NetworkFeature(
    name="user_vector", entity=None, model="history", inputs={"history": "watched"}, dims=8, metric="cosine"
)
PAIR = NetworkFeature(
    name="pair_score", entity=None, model="score", inputs={"user": "user_id", "reviews": "reviews", "price": "price"},
    dims=None, metric=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def computer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    store = ArtifactStore([folder / "artifacts"])
    for kind in ("adaptor", "history", "score", "text"):
        export_network(declare_network(folder / kind, kind), store)
    return Computer(settings(folder))


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    rng = np.random.default_rng(0)
    items = [f"i{number}" for number in range(1, 23)]  # two more than the network knows
    rows = [(f"u{user}", item) for user in (1, 2, 3) for item in rng.choice(items, 15, replace=False)]
    data = Dataset(
        name="films",
        interactions=pd.DataFrame(rows, columns=["user_id", "item_id"]),
        items=pd.DataFrame(
            {
                "item_id": items,
                "plot": list(rng.standard_normal((22, 8)).tolist()),
                "reviews": [rng.standard_normal(4 * (1 + number % 3)).tolist() for number in range(22)],
                "price": rng.random(22),
            }
        ),
        users=pd.DataFrame({"user_id": ["u1", "u2", "u3"]}),
    )
    folder = tmp_path_factory.mktemp("data")
    write_atomic(data, folder)
    data = read_atomic(folder)
    return windows(Catalogue.of(data), split_dataset(data), list_events=5)[2]


def made(options, computer, folder="."):
    return feature_set("net", options, {}.__getitem__, lambda: computer, folder)


def everything(window):
    return Rows.of([np.arange(22)] * len(window))


def test_two_networks_of_one_space_give_their_similarity(computer, window):
    options = {"kind": "network", "item": ITEM, "user": USER, "events": {"watched": "item_id"}, "last_n": 12}
    found = made(options, computer).columns(window, everything(window))
    assert found.names == ("net_user",)
    items = computer.vectors(ITEM, {"plot": window.catalogue.item_column("plot")})
    for query in range(len(window)):
        watched = [window.catalogue.items[item] for item in window.past_items(query)][:12]
        user = computer.vectors(USER, {"watched": [watched]})[0]
        np.testing.assert_allclose(found.values[query * 22 : query * 22 + 22, 0], items @ user, atol=1e-5)


def test_lists_without_a_known_item_have_no_vector_and_end_nothing(computer):
    """All lists of a window may be such, e.g. of users whose past the network has never seen."""
    found = computer.vectors(USER, {"watched": [[], ["unheard of"]]})
    assert found.shape == (2, USER.dims)
    assert np.isnan(found).all()


def test_networks_of_different_spaces_are_not_compared(computer, window):
    other = NetworkFeature(
        name="title_vector", entity="item", model="text", inputs={"text": "item_id"}, dims=8, metric="dot"
    )
    options = {"kind": "network", "item": other, "user": USER, "events": {"watched": "item_id"}}
    with pytest.raises(DeclarationError, match="cannot be compared"):
        made(options, computer).columns(window, everything(window))


def test_a_network_of_pairs_gives_a_number(computer, window):
    found = made({"kind": "pair", "pair": PAIR}, computer).columns(window, everything(window))
    assert found.names == ("net",)
    user, item = window.catalogue.users[window.user[1]], 7
    columns = {"user_id": [user]} | {name: [window.catalogue.item_column(name)[item]] for name in ("reviews", "price")}
    assert found.values[22 + item, 0] == pytest.approx(computer.values(PAIR, columns)[0], abs=1e-6)
    assert len(np.unique(found.values)) > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "network", "item": ITEM}, "needs user="),
        ({"kind": "network", "user": USER}, "'item' is missing"),
        ({"kind": "similarity", "item": ITEM, "lastn": 3}, "last_n"),
        ({"kind": "similaritty"}, "similarity"),
    ],
)
def test_options_that_are_missing_or_unknown_are_named(computer, options, message):
    with pytest.raises((InputError, LookupError), match=message):
        made(options, computer)
