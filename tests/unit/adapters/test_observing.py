"""Metrics and spans of runs."""

import logging
import threading

import pytest
from samples import bound, embedding, query

from llmrec_plugin.adapters import observe_with_opentelemetry, observe_with_prometheus
from llmrec_plugin.errors import MissingExtraError
from llmrec_plugin.runtime import observers

prometheus_client = pytest.importorskip("prometheus_client", reason="it comes with Feast")


@pytest.fixture
def registry(monkeypatch):
    # Once Feast is imported, all registries of a process share their counts in files.
    monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.MutexValue)
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def counted(registry):
    end = observe_with_prometheus(registry)
    yield lambda name, **labels: registry.get_sample_value(name, labels) or 0
    end()


@pytest.fixture
def run(new_runner, tiny):
    runner = new_runner()

    def run(feature, texts, mode):
        column = feature.columns[0]
        computed = runner.compute(bound(feature, tiny.id), {column: texts}, mode)
        runner.drain()
        return computed

    return run


def test_a_batch_run_is_counted_by_feature_and_mode(run, counted):
    run(embedding(), ["red", "blue", "red", "", b"unreadable"], "batch")
    run(embedding(), ["red", "green"], "batch")
    labels = {"feature": "item_title_embedding", "mode": "batch"}
    rows = {o: counted("llmrec_rows_total", **labels, outcome=o) for o in ("ok", "empty", "invalid", "fallback")}
    assert rows == {"ok": 5, "empty": 1, "invalid": 1, "fallback": 0}
    texts = {s: counted("llmrec_texts_total", **labels, source=s) for s in ("cache", "model", "none")}
    assert texts == {"cache": 1, "model": 3, "none": 0}
    assert counted("llmrec_tokens_total", **labels) == 9  # a word each, [CLS] and [SEP]
    assert counted("llmrec_run_seconds_count", **labels) == 2
    assert 0 < counted("llmrec_run_seconds_sum", **labels) < 60


def test_requests_are_counted_with_the_tokens_of_their_batches(run, counted):
    run(query(), ["red", "blue red"], "on_demand")
    run(query(), ["red"], "on_demand")
    labels = {"feature": "query_text_embedding", "mode": "on_demand"}
    assert counted("llmrec_rows_total", **labels, outcome="ok") == 3
    assert counted("llmrec_texts_total", **labels, source="cache") == 1
    assert counted("llmrec_tokens_total", **labels) == 7
    assert counted("llmrec_waiting_texts") == 0


def test_what_waits_is_seen_when_a_request_leaves_without_it(new_runner, tiny, counted, monkeypatch):
    runner, may_go = new_runner(), threading.Event()
    encode = runner._encode_texts
    monkeypatch.setattr(runner, "_encode_texts", lambda *given: may_go.wait(30) and encode(*given))
    late = runner.compute(bound(query(deadline_ms=1), tiny.id), {"query": ["red", "blue"]}, "on_demand")
    assert late.statuses == ["fallback", "fallback"]
    assert counted("llmrec_waiting_texts") == 2
    labels = {"feature": "query_text_embedding", "mode": "on_demand"}
    assert counted("llmrec_texts_total", **labels, source="none") == 2
    assert counted("llmrec_rows_total", **labels, outcome="fallback") == 2
    may_go.set()
    runner.drain()


def test_runs_are_counted_once_however_often_it_is_asked_for(registry, run, counted):
    observe_with_prometheus(registry)
    run(embedding(), ["red"], "batch")
    labels = {"feature": "item_title_embedding", "mode": "batch", "outcome": "ok"}
    assert counted("llmrec_rows_total", **labels) == 1
    observe_with_prometheus(registry)()
    run(embedding(), ["red"], "batch")
    assert counted("llmrec_rows_total", **labels) == 1
    observe_with_prometheus(registry)
    run(embedding(), ["red"], "batch")
    assert counted("llmrec_rows_total", **labels) == 2


def test_the_metrics_are_exposed_as_text(registry, run, counted):
    run(embedding(), ["red"], "batch")
    text = prometheus_client.generate_latest(registry).decode()
    assert 'llmrec_rows_total{feature="item_title_embedding",mode="batch",outcome="ok"} 1.0' in text


def test_nobody_is_told_unless_asked_for():
    assert observers._observers == ()


def test_an_observer_that_fails_is_logged_and_disturbs_no_run(run, caplog):
    class Broken:
        def ran(self, report, waiting):
            raise OSError("disk full")

        encoded = ran

    end = observers.add_observer(Broken())
    try:
        with caplog.at_level(logging.ERROR):
            assert run(query(), ["red"], "on_demand").statuses == ["ok"]
            assert run(embedding(), ["red"], "batch").statuses == ["ok"]
    finally:
        end()
    assert sum("is not affected" in record.message for record in caplog.records) == 2


@pytest.fixture
def spans():
    pytest.importorskip("opentelemetry.sdk", reason="the extra 'opentelemetry' is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    end = observe_with_opentelemetry(tracer)
    yield tracer, exporter.get_finished_spans
    end()
    provider.shutdown()


def test_a_run_is_a_span_within_that_of_its_caller(run, spans):
    tracer, finished = spans
    with tracer.start_as_current_span("request") as request:
        report = run(query(), ["red", "", "red"], "on_demand").report
    span = next(span for span in finished() if span.name == "llmrec query_text_embedding")
    assert span.parent.span_id == request.get_span_context().span_id
    assert span.end_time - span.start_time == int(report.seconds * 1e9)
    assert span.attributes["llmrec.mode"] == "on_demand"
    assert span.attributes["llmrec.fingerprint"] == report.fingerprint
    counts = {name: span.attributes[f"llmrec.{name}"] for name in ("rows", "empty", "texts", "cached", "computed")}
    assert counts == {"rows": 3, "empty": 1, "texts": 1, "cached": 0, "computed": 1}


def test_spans_hold_no_text(run, spans):
    run(embedding(), ["red server"], "batch")
    (span,) = spans[1]()
    assert "red" not in [str(value) for value in span.attributes.values()]
    assert not any("red server" in str(value) for value in span.attributes.values())


def test_without_a_provider_runs_go_on_and_there_are_no_spans(run):
    pytest.importorskip("opentelemetry.trace", reason="the extra 'opentelemetry' is not installed")
    end = observe_with_opentelemetry()
    assert run(embedding(), ["red"], "batch").statuses == ["ok"]
    end()


def test_a_missing_library_is_an_error_with_the_extra_s_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.trace", None)
    with pytest.raises(MissingExtraError, match=r"llmrec-plugin\[opentelemetry\]"):
        observe_with_opentelemetry()
