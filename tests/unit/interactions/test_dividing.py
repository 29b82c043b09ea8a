"""What systems learn from is not what a ranker then learns from."""

import pandas as pd
import pytest
from click.testing import CliRunner

from llmrec_plugin.errors import InputError
from llmrec_plugin.evaluation.windows import Catalogue, windows
from llmrec_plugin.interactions import ITEM, TIME, USER, Dataset, divide, read_atomic, split_dataset, write_atomic
from llmrec_plugin.interactions.commands import data


def dataset(*, timed, users=20, events=30):
    rows = [(f"u{user}", f"i{(user * 7 + event) % 50}") for event in range(events) for user in range(users)]
    table = pd.DataFrame(rows, columns=[USER, ITEM]).drop_duplicates(ignore_index=True)
    if timed:
        table[TIME] = pd.to_datetime(range(len(table)), unit="h", utc=True).astype("datetime64[us, UTC]")
    items, people = ({ITEM: sorted(set(table[ITEM]))}, {USER: sorted(set(table[USER]))})
    return Dataset(name="some", interactions=table, items=pd.DataFrame(items), users=pd.DataFrame(people))


def test_with_times_systems_know_nothing_of_the_rankers_lists():
    whole = dataset(timed=True)
    systems, ranker = divide(whole)
    assert ranker is whole
    trained, _, _ = windows(Catalogue.of(ranker), split_dataset(ranker))
    newest = systems.interactions[TIME].max().value // 1000
    assert newest < min(window.moment.min() for window in trained)
    # And they know all that lies before.
    assert newest == max(trained[0].snapshot.time)
    assert list(systems.items[ITEM]) == list(whole.items[ITEM])


def test_without_times_no_user_is_in_both_and_none_is_lost():
    whole = dataset(timed=False)
    systems, ranker = divide(whole, seed=3)
    halves = [set(part.interactions[USER]) for part in (systems, ranker)]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(whole.users[USER])
    assert {len(half) for half in halves} == {10}
    assert [set(part.users[USER]) for part in (systems, ranker)] == halves
    assert len(systems.interactions) + len(ranker.interactions) == len(whole.interactions)
    assert set(divide(whole, seed=4)[0].users[USER]) != halves[0]
    pd.testing.assert_frame_equal(divide(whole, seed=3)[0].interactions, systems.interactions)


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(InputError, match="no interactions for systems among its 30"):
        divide(dataset(timed=False, users=1))


@pytest.mark.parametrize("timed", [True, False])
def test_the_command_writes_both(tmp_path, timed):
    write_atomic(whole := dataset(timed=timed), tmp_path / "data")
    words = ["divide", "--data", tmp_path / "data", "--systems", tmp_path / "a", "--ranker", tmp_path / "b"]
    done = CliRunner().invoke(data, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for folder, part in zip("ab", divide(whole), strict=True):
        assert read_atomic(tmp_path / folder).interactions[[USER, ITEM]].equals(part.interactions[[USER, ITEM]])
