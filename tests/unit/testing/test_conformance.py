"""How authors use the conformance kit: which checks there are, how they end, what the fixtures give."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
import samples

from llmrec_plugin import Choice, Decoding, Scores, ShortText, Tags, hookimpl
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import DeclarationError, UnknownNameError
from llmrec_plugin.testing import (
    CheckFailed,
    CheckSkipped,
    NetworkUseError,
    check_plugin,
    checks_of,
    parametrize_with_checks,
    refuse_network,
)

EMBEDDING = samples.embedding()
QUERY = samples.query()
MATCH = samples.match()
HISTORY = samples.history()


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory):
    from tiny import export_tiny  # loads onnx

    from llmrec_plugin.testing.tiny import add_tiny_generator

    folder = tmp_path_factory.mktemp("home")
    store = ArtifactStore([folder / "artifacts"])
    export_tiny(store)
    export_tiny(store, name="labels", labels=("web", "game", "database"))
    add_tiny_generator(store, name="writer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMREC_HOME", str(folder))
        patch.setenv("LLMREC_DEVICE", "cpu")
        patch.setenv("LLMREC_THREADS", "1")
        yield folder


SHORT = Decoding(max_new_tokens=6)
KINDS = [
    samples.embedding(name="packed", storage="int8", on_empty="zeros", status=True),
    HISTORY,
    MATCH,
    samples.labelled(output=Tags(scores=True, ids=True)),
    samples.written(name="tags", output=Tags(vocabulary=("web", "game", "database"), ids=True), decoding=SHORT),
    samples.written(name="choice", output=Choice(options=("yes", "no")), fallback="no"),
    samples.written(name="scores", output=Scores(answers=(" yes", " no"))),
    samples.written(name="summary", output=ShortText(max_chars=30), decoding=SHORT, fallback="nothing"),
]


@pytest.mark.parametrize("feature", KINDS, ids=lambda feature: feature.name)
def test_every_kind_of_feature_passes(feature):
    given = [feature, EMBEDDING, QUERY] if feature is MATCH else [feature]
    select = [f"{feature.name}-{name}" for name in ("values", "order", "hostile", "golden", "artifact", "inputs")]
    report = check_plugin(given, select=select)
    report.raise_failures()
    assert {result.status for result in report.results} == {"passed"}
    assert len(report.results) >= 4


def test_each_feature_has_the_checks_of_its_kind():
    ids = {check.id for check in checks_of([EMBEDDING, QUERY, MATCH, samples.model()])}
    assert "item_title_embedding-order_is_kept" in ids
    assert "tiny-golden_values_come_out" in ids
    assert "query_item_similarity-threads_agree" in ids
    assert "query_item_similarity-fork_agrees" not in ids  # its sides have it
    assert len(ids) == 2 * 15 + 10 + 4
    assert all(check.about.endswith(".") for check in checks_of([EMBEDDING, MATCH]))


def test_a_check_that_needs_an_artifact_is_skipped_and_says_what_to_run():
    unexported = replace(EMBEDDING, model="unexported")
    [check] = [item for item in checks_of([unexported]) if item.id.endswith("order_is_kept")]
    with pytest.raises(CheckSkipped, match="llmrec export unexported"):
        check.run()
    with pytest.raises(pytest.skip.Exception, match="llmrec export unexported"):
        check()


def test_a_failure_is_reported_and_hides_no_other():
    wrong = replace(EMBEDDING, dims=9)
    select = ["declaration_is_valid", "artifact", "golden"]
    report = check_plugin([wrong], select=select)
    assert {result.id.partition("-")[2]: result.status for result in report.results} == {
        "declaration_is_valid": "passed",
        "artifact_matches_its_manifest": "failed",
        "golden_values_come_out": "passed",
    }
    with pytest.raises(CheckFailed, match=r"1 of 3 checks of 'given' failed:\n.*declares dims=9.*exported with 8"):
        report.raise_failures()


def test_authors_rows_are_used():
    few = [{"title": "a web server"}, {"title": "a game"}]
    check_plugin([EMBEDDING], rows={EMBEDDING.name: few}, select=["order"]).raise_failures()
    blank = check_plugin([EMBEDDING], rows={EMBEDDING.name: [{"title": ""}]}, select=["declared_form"])
    assert "only statuses ['empty']" in blank.failures[0].message
    with pytest.raises(UnknownNameError, match="item_title_embedding"):
        checks_of([EMBEDDING], rows={"item_titel_embedding": few})


def test_expected_failures_are_marked_and_must_be_checks():
    reason = {"item_title_embedding-order_is_kept": "known"}
    mark = parametrize_with_checks([EMBEDDING], expected_failures=reason)
    marked = {case.id: [item.name for item in case.marks] for case in mark.args[1]}
    assert [name for name, marks in marked.items() if marks] == list(reason)
    with pytest.raises(UnknownNameError, match="order_is_kept"):
        parametrize_with_checks([EMBEDDING], expected_failures={"item_title_embedding-order_is_keptt": ""})


class Plugin:
    @hookimpl
    def llmrec_register_features(self):
        return [EMBEDDING]


def test_a_plugin_is_found_by_name_module_and_object():
    ids = {check.id for check in checks_of("minilm")}
    assert ids == {check.id for check in checks_of("llmrec_plugin.systems.minilm")}
    assert "plugin_minilm-importing_is_light" in ids
    assert "plugin_Plugin-hooks_give_declarations" in {check.id for check in checks_of(Plugin())}


@pytest.mark.parametrize(
    ("plugin", "error", "words"),
    [
        ("minlm", UnknownNameError, "'minilm'"),
        ("json", DeclarationError, "declares nothing"),
        (["a text"], DeclarationError, "Expected features and models"),
        ([EMBEDDING, EMBEDDING], DeclarationError, "Two of the given"),
    ],
)
def test_what_is_no_plugin_is_refused(plugin, error, words):
    with pytest.raises(error, match=words):
        checks_of(plugin)


def test_the_network_is_refused():
    with refuse_network():
        with pytest.raises(NetworkUseError, match=r"a connection to 192\.0\.2\.1:443"), socket.socket() as plain:
            plain.connect(("192.0.2.1", 443))
        with pytest.raises(NetworkUseError, match=r"'example\.org'"):
            socket.getaddrinfo("example.org", 443)
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            pass
    with refuse_network(local=True), pytest.raises(NetworkUseError):
        socket.create_connection(("127.0.0.1", 9))
