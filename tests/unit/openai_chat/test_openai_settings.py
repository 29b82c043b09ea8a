"""Which endpoint the environment names, and which model the artifact."""

import pytest
from endpoint import KEY

from llmrec_plugin.errors import ArtifactMismatchError, ProviderError, SettingsError
from llmrec_plugin.systems.openai_chat.configuration import load_batch_folder, load_endpoint_settings, read_served


def load(chat=True, **variables):
    return load_endpoint_settings(
        chat, {f"LLMREC_OPENAI_{name}": value for name, value in {"URL": "http://host", **variables}.items()}
    )


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/v1/", "http://host:8000/v1"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        ("https://host/v1/completions", "https://host/v1"),
        ("https://host/v1beta/openai/chat/completions", "https://host/v1beta/openai"),
        ("https://host/gateway", "https://host/gateway/v1"),
    ],
)
def test_the_address_may_be_that_of_the_server_or_of_the_api(url, root):
    assert load(URL=url).url == f"{root}/chat/completions"
    assert load(chat=False, URL=url).url == f"{root}/completions"


def test_what_is_not_set_has_a_default():
    found = load()
    assert (found.timeout, found.retries, found.concurrency, found.deadline) == (120, 4, 8, 600)
    assert (found.per_minute, found.token_limit, found.structured, dict(found.extra)) == (0, 0, "none", {})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"URL": ""}, "needs LLMREC_OPENAI_URL, the address of an OpenAI-compatible server"),
        ({"URL": "host:8080"}, "LLMREC_OPENAI_URL must be an address"),
        ({"TIMEOUT": "0"}, "LLMREC_OPENAI_TIMEOUT must be a positive number of seconds, got '0'"),
        ({"RETRIES": "-1"}, "LLMREC_OPENAI_RETRIES must be an integer of at least 0"),
        ({"CONCURRENCY": "0"}, "LLMREC_OPENAI_CONCURRENCY must be an integer of at least 1"),
        ({"PER_MINUTE": "x"}, "LLMREC_OPENAI_PER_MINUTE must be an integer of at least 0"),
        ({"TOKEN_LIMIT": "1e6"}, "LLMREC_OPENAI_TOKEN_LIMIT must be an integer"),
        ({"STRUCTURED": "json"}, "LLMREC_OPENAI_STRUCTURED must be none, json_schema, .*got 'json'"),
        ({"EXTRA": "[1]"}, "LLMREC_OPENAI_EXTRA must be a JSON object"),
    ],
)
def test_a_setting_that_means_nothing_is_an_error_with_its_name(variables, message):
    with pytest.raises(SettingsError, match=message):
        load(**variables)


@pytest.mark.parametrize(
    "variables", [{"URL": f"https://user:{KEY}@host"}, {"KEY": f"{KEY}\n{KEY}"}, {"EXTRA": f'{{"key": "{KEY}"'}]
)
def test_a_misplaced_key_is_refused_without_being_shown(variables):
    with pytest.raises(SettingsError) as caught:
        load(**variables)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_neither_key_nor_further_fields_are_shown():
    found = load(KEY=KEY, EXTRA=f'{{"api-key": "{KEY}"}}')
    assert KEY not in repr(found)


def test_a_batch_folder_has_a_folder_for_each_model(tmp_path):
    assert load_batch_folder("ours", {"LLMREC_BATCH_FOLDER": str(tmp_path)}) == tmp_path / "ours"
    with pytest.raises(SettingsError, match="needs LLMREC_BATCH_FOLDER"):
        load_batch_folder("ours", {})


def test_the_artifact_names_the_model(export):
    artifact = export(source="endpoint:org/writer:7b@2026-01-01", chat=False, max_tokens=99)
    served = read_served(artifact, "openai")
    assert (served.model, served.version, served.chat, served.max_tokens) == ("org/writer:7b", "2026-01-01", False, 99)
    assert served.artifact_id == artifact.id


def test_a_model_that_is_here_is_not_asked_for_elsewhere(tiny):
    with pytest.raises(ProviderError, match="LLMREC_GENERATOR=openai runs models behind an endpoint"):
        read_served(tiny, "openai")


def test_an_artifact_whose_file_is_not_ours_is_an_error(export):
    artifact = export()
    artifact.path("endpoint.json").write_text("{}")
    with pytest.raises(ArtifactMismatchError, match="expected model, version and chat"):
        read_served(artifact, "openai")
