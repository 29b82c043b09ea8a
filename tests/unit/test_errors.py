"""Errors: their bases, their hints, their way between processes."""

import copy
import pickle

import pytest

from llmrec_plugin import errors
from llmrec_plugin.errors import LLMRecError, MissingColumnError, MissingExtraError, UnknownNameError
from llmrec_plugin.settings import SettingsError

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LLMRecError)] + [
    SettingsError
]


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not LLMRecError])
def test_every_error_refines_a_builtin(kind):
    builtin = {ValueError, LookupError, RuntimeError, ImportError}
    assert sum(issubclass(kind, base) for base in builtin) == 1


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_drawn_in_the_tree(kind):
    assert kind is SettingsError or kind is LLMRecError or kind.__name__ in errors.__doc__


@pytest.mark.parametrize(
    "error",
    [
        UnknownNameError("feature", "a", ["b"]),
        MissingColumnError("f", ["title"], ["name"]),
        MissingExtraError("torch", "export", "Exporting"),
        errors.ArtifactCorruptError("damaged"),
        SettingsError("wrong"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_the_way_back_from_a_worker_process(error):
    error.add_note("in partition 3")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.__notes__ == ["in partition 3"]


def test_an_unknown_name_suggests_near_ones():
    message = str(UnknownNameError("feature", "item_titel_embedding", ["item_title_embedding", "user_age"]))
    assert message == "No feature is named 'item_titel_embedding'. Did you mean 'item_title_embedding'?"


def test_an_unknown_name_without_near_ones_lists_all():
    assert str(UnknownNameError("model", "x", ["b", "a"])).endswith("Known: a, b.")
    assert str(UnknownNameError("model", "x", [])).endswith("Known: none.")


def test_a_missing_column_says_what_is_read_what_came_and_what_to_do():
    message = str(MissingColumnError("f", ["title", "body"], ["name"]))
    assert "'body', 'title'" in message
    assert "only 'name'" in message
    assert "Add the column" in message
    assert "no columns" in str(MissingColumnError("f", ["title"], []))


def test_a_missing_extra_gives_the_pip_command():
    message = str(MissingExtraError("torch", "export", "Exporting a model"))
    assert message.startswith("Exporting a model needs the package 'torch'")
    assert 'pip install "llmrec-plugin[export]"' in message
