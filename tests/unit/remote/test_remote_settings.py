"""Which endpoint the environment names."""

import pickle

import pytest
from endpoint import KEY

from llmrec_plugin.errors import SettingsError
from llmrec_plugin.systems.remote.configuration import load_remote_settings


@pytest.mark.parametrize(
    ("api", "url", "whole"),
    [
        ("openai", "http://host:8080", "http://host:8080/v1/embeddings"),
        ("openai", "https://host/v1/", "https://host/v1/embeddings"),
        ("openai", "https://host/proxy/v1/embeddings", "https://host/proxy/v1/embeddings"),
        ("openai", "http://[::1]:80/gateway", "http://[::1]:80/gateway/v1/embeddings"),
        ("tei", "http://host", "http://host/embed"),
        ("tei", "http://host/models/tiny/embed/", "http://host/models/tiny/embed"),
    ],
)
def test_the_address_may_be_that_of_the_server_or_of_the_api(api, url, whole):
    found = load_remote_settings("tiny", {"LLMREC_REMOTE_URL": url, "LLMREC_REMOTE_API": api})
    assert found.url == whole


def test_what_is_not_set_has_a_default():
    found = load_remote_settings("tiny", {"LLMREC_REMOTE_URL": "http://host"})
    assert (found.api, found.model, bool(found.key), found.batch) == ("openai", "tiny", False, 256)
    assert (found.timeout, found.retries, found.concurrency, found.deadline) == (30, 4, 8, 150)
    tei = load_remote_settings("tiny", {"LLMREC_REMOTE_URL": "http://host", "LLMREC_REMOTE_API": "tei"})
    assert tei.batch == 32  # what text-embeddings-inference takes unless it is told otherwise


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"URL": ""}, "needs LLMREC_REMOTE_URL"),
        ({"URL": "ftp://host"}, "must be an address such as https://host:8080, got 'ftp://host'"),
        ({"URL": "file:///etc/passwd"}, "must be an address"),
        ({"URL": "host:8080"}, "must be an address"),
        ({"URL": "http://host:port"}, "must be an address"),
        ({"URL": "http://host/a b"}, "must be an address"),
        ({"URL": "http://host/ü"}, "must be an address"),
        ({"API": "cohere"}, "LLMREC_REMOTE_API must be openai or tei, got 'cohere'"),
        ({"TIMEOUT": "0"}, "LLMREC_REMOTE_TIMEOUT must be a positive number of seconds, got '0'"),
        ({"TIMEOUT": "inf"}, "LLMREC_REMOTE_TIMEOUT"),
        ({"TIMEOUT": "nan"}, "LLMREC_REMOTE_TIMEOUT"),
        ({"TIMEOUT": "ten"}, "LLMREC_REMOTE_TIMEOUT"),
        ({"CONCURRENCY": "0"}, "LLMREC_REMOTE_CONCURRENCY must be an integer of at least 1, got '0'"),
        ({"RETRIES": "-1"}, "LLMREC_REMOTE_RETRIES must be an integer of at least 0"),
        ({"BATCH": "1"}, "LLMREC_REMOTE_BATCH must be an integer of at least 2"),
    ],
)
def test_a_setting_that_means_nothing_is_an_error_with_its_name(variables, message):
    named = {f"LLMREC_REMOTE_{name}": value for name, value in {"URL": "http://host", **variables}.items()}
    with pytest.raises(SettingsError, match=message):
        load_remote_settings("tiny", named)


@pytest.mark.parametrize(
    "variables",
    [
        {"URL": f"https://user:{KEY}@host"},
        {"URL": f"https://host?key={KEY}"},
        {"URL": f"https://host#{KEY}"},
        {"KEY": f"{KEY}\n{KEY}"},
        {"KEY": f"{KEY} x"},
        {"KEY": f"{KEY}ü"},
    ],
)
def test_a_misplaced_key_is_refused_without_being_shown(variables):
    named = {f"LLMREC_REMOTE_{name}": value for name, value in {"URL": "http://host", **variables}.items()}
    with pytest.raises(SettingsError, match="LLMREC_REMOTE_KEY") as caught:
        load_remote_settings("tiny", named)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "warned"),
    [("http://host", True), ("http://localhost", False), ("http://[::1]:1", False), ("https://h", False)],
)
def test_a_key_that_goes_unencrypted_to_another_machine_is_a_warning(caplog, url, warned):
    load_remote_settings("tiny", {"LLMREC_REMOTE_URL": url, "LLMREC_REMOTE_KEY": KEY})
    assert ("unencrypted" in caplog.text) is warned
    assert KEY not in caplog.text


def test_a_secret_is_not_pickled():
    found = load_remote_settings("tiny", {"LLMREC_REMOTE_URL": "https://host", "LLMREC_REMOTE_KEY": KEY})
    assert found.key.reveal() == KEY
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(found)
