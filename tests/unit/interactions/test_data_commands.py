"""Public data sets as atomic files."""

import gzip
import json

import pytest
from click.testing import CliRunner

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import read_atomic
from llmrec_plugin.interactions.commands import data
from llmrec_plugin.interactions.debian import debian_packages

FILMS = """movieId,title,genres
1,Alien (1979),Horror|Sci-Fi
2,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Fantasy
3,Babylon 5,(no genres listed)
4,Serial (2010–2012),Drama
"""
RATINGS = """userId,movieId,rating,timestamp
1,2,4.0,964982703
1,1,3.5,964982700
2,1,0.5,964982703
"""
PACKAGES = [
    {"name": "app", "synopsis": "An app", "description": "Text.\n more", "tags": [], "section": "games",
     "depends": ["lib", "app", "gone"], "recommends": ["lib", "tool"]},
    {"name": "lib", "synopsis": "A lib", "description": None, "tags": ["a::b", "c::d"], "depends": []},
    {"name": "tool", "synopsis": "A tool", "description": "x", "depends": ["lib"], "recommends": []},
]  # fmt: skip


@pytest.fixture
def films(tmp_path):
    (tmp_path / "movies.csv").write_text(FILMS, encoding="utf-8")
    (tmp_path / "ratings.csv").write_text(RATINGS)
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,1,masterpiece,1964982703\n")
    return tmp_path


@pytest.fixture
def packages(tmp_path):
    path = tmp_path / "packages.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, PACKAGES)).encode()))
    return path


def run(*arguments):
    result = CliRunner().invoke(data, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_movielens_becomes_atomic_files(films, tmp_path):
    output = run("movielens", "--source", films, "--output", tmp_path / "out", "--name", "ml")
    assert "3 interactions of 2 users with 4 items" in output
    found = read_atomic(tmp_path / "out")
    assert found.name == "ml"
    assert found.interactions["item_id"].tolist() == ["1", "2", "1"]
    assert found.interactions["rating"].tolist() == [3.5, 4.0, 0.5]
    assert str(found.interactions["timestamp"].iloc[0]) == "2000-07-30 18:45:00+00:00"
    assert found.items["title"].tolist() == [
        "Alien",
        "City of Lost Children, The (Cité des enfants perdus, La)",
        "Babylon 5",
        "Serial",
    ]
    assert found.items["genres"].tolist() == ["Horror Sci-Fi", "Fantasy", None, "Drama"]
    assert found.items["year"].fillna(0).tolist() == [1979, 1995, 0, 2010]


def test_tags_that_are_younger_than_ratings_do_not_get_in(films, tmp_path):
    run("movielens", "--source", films, "--output", tmp_path / "out")
    assert not any("masterpiece" in path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())


def test_a_folder_that_is_not_movielens_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"ratings\.csv is not there"):
        run("movielens", "--source", tmp_path, "--output", tmp_path / "out")


def test_packages_become_users_and_items(packages, tmp_path):
    run("debian", "--source", packages, "--output", tmp_path / "out", "--least-interactions", 1)
    found = read_atomic(tmp_path / "out")
    assert not found.timed
    assert found.interactions.to_dict("records") == [
        {"user_id": "app", "item_id": "lib", "relation": "depends"},
        {"user_id": "app", "item_id": "tool", "relation": "recommends"},
        {"user_id": "tool", "item_id": "lib", "relation": "depends"},
    ]
    assert found.items["item_id"].tolist() == ["lib", "tool"]
    assert found.items["tags"].tolist() == ["a::b c::d", None]
    assert found.users["description"].tolist() == ["Text. more", "x"]


def test_the_catalogue_does_not_depend_on_the_users_that_are_drawn(packages):
    drawn = [debian_packages(packages, least_interactions=1, most_users=1, seed=seed) for seed in range(12)]
    assert {tuple(found.items["item_id"]) for found in drawn} == {("lib", "tool")}
    assert {tuple(found.users["user_id"]) for found in drawn} == {("app",), ("tool",)}
    again = debian_packages(packages, least_interactions=1, most_users=1, seed=0)
    assert again.users["user_id"].tolist() == drawn[0].users["user_id"].tolist()


@pytest.mark.parametrize(
    ("line", "message"), [("{", "line 1"), ('{"synopsis": "x"}', "with a name"), ('{"name": "a"}', "0? ?relations")]
)
def test_lines_that_are_no_packages_are_named(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(InputError, match=message):
        debian_packages(tmp_path / "p.jsonl", least_interactions=1)
