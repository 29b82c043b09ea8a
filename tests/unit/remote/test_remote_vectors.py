"""A model behind an endpoint gives the vectors of ONNX Runtime, or it is another model and is not used."""

import dataclasses
import shutil
import threading

import numpy as np
import pytest
from encoding import TEXTS, check_same, rehash
from endpoint import KEY, ONE, batch
from samples import settings
from tiny import WORDS, export_tiny
from tokenizers import Tokenizer

from llmrec_plugin.artifacts import ArtifactStore, read_artifact
from llmrec_plugin.errors import ParityError, ProviderError
from llmrec_plugin.manifests import TOKENIZER
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.runtimes import choose_runtime
from llmrec_plugin.systems.remote.session import open_model

APIS = ["openai", "tei"]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("profile", ["batch", "online"])
def test_thousands_of_texts_have_the_vectors_of_onnxruntime(remote, reference, api, profile):
    texts = [f"{text} {WORDS[number % len(WORDS)]}" for number in range(10) for text in TEXTS]
    encoder = remote(api)
    assert encoder.runtime.name == "remote"
    assert encoder.provider.startswith(f"{api} at http://127.0.0.1:")
    vectors, tokens = encoder.encode(texts)
    expected, counted = reference.encode(texts)
    check_same(vectors, expected)
    assert tokens == counted


@pytest.mark.parametrize("api", APIS)
def test_the_endpoint_is_asked_in_its_api(remote, server, api):
    remote(api, MODEL="acme/tiny", KEY=KEY).encode(["red font"])
    request = server.requests[-1]
    assert request["authorization"] == f"Bearer {KEY}"
    del request["authorization"], request["connection"]
    assert request == (
        {
            "path": "/v1/embeddings",
            "model": "acme/tiny",
            "input": ["red web server", "red font"],
            "encoding_format": "base64",
        }
        if api == "openai"
        else {"path": "/embed", "inputs": ["red web server", "red font"], "normalize": True, "truncate": False}
    )


def test_without_a_key_none_is_sent(remote, server):
    remote().encode(["red font"])
    assert {request["authorization"] for request in server.requests} == {None}
    assert {request["model"] for request in server.requests} == {"tiny"}


@pytest.mark.parametrize("api", APIS)
def test_the_endpoint_reads_no_more_tokens_than_the_model_is_declared_with(remote, reference, tiny, server, api):
    whole = Tokenizer.from_file(str(tiny.path(TOKENIZER)))
    encoder = remote(api)
    server.requests.clear()
    vectors, _ = encoder.encode(TEXTS, max_tokens=7)
    sent = [text for request in server.requests for text in request.get("input", request.get("inputs"))]
    assert max(len(encoding.ids) for encoding in whole.encode_batch(sent)) == 7
    check_same(vectors, reference.encode(TEXTS, max_tokens=7)[0])


def test_vectors_are_put_in_the_order_of_their_index(session, server, reference):
    server.change = lambda answer: {**answer, "data": answer["data"][::-1]}
    texts = TEXTS[:50]
    check_same(session().run(batch(*texts)), reference.encode(texts)[0])


def test_a_server_without_base64_is_asked_for_decimals_from_then_on(session, server, reference):
    server.knows_base64 = False
    model = session(BATCH=4)
    check_same(model.run(batch(*TEXTS[:3])), reference.encode(TEXTS[:3])[0])
    model.run(ONE)
    assert [request["encoding_format"] for request in server.requests] == ["base64", "float", "float"]


def test_a_server_that_ignores_the_format_is_understood(session, server, reference):
    server.change = lambda answer: {
        **answer,
        "data": [
            {"index": number, "embedding": reference.encode([text])[0][0].tolist()}
            for number, text in enumerate(server.requests[-1]["input"])
        ],
    }
    check_same(session().run(ONE), reference.encode(ONE.texts)[0])


@pytest.mark.parametrize("api", APIS)
def test_an_answer_in_pieces_is_read_whole(session, server, reference, api):
    server.chunked = True
    model = session(API=api)
    for _ in range(2):
        check_same(model.run(batch(*TEXTS[:50])), reference.encode(TEXTS[:50])[0])
    assert len({request["connection"] for request in server.requests}) <= 4


def test_requests_hold_no_more_texts_than_allowed_and_are_made_together_on_kept_connections(session, server):
    server.gate = threading.Barrier(4, timeout=60)  # each waits for three others, so there must be four at a time
    model = session(BATCH=11, CONCURRENCY=4)
    assert (model.placement.callers, model.adjustable) == (4, False)
    for _ in range(2):
        model.run(batch(*(f"text {number}" for number in range(80))))
    assert [len(request["input"]) for request in server.requests] == [11] * 16
    assert server.largest_at_once == 4
    assert len({request["connection"] for request in server.requests}) == 4


# --- another model


@pytest.mark.parametrize("api", APIS)
def test_another_model_behind_the_address_is_not_loaded(remote, server, tmp_path, api):
    other = Encoder(export_tiny(ArtifactStore([tmp_path / "other"]), seed=1), settings(tmp_path))
    server.encode = lambda texts: other.encode(texts)[0]
    with pytest.raises(ParityError, match=r"does not compute model 'tiny'.*another model.*LLMREC_REMOTE_MODEL"):
        remote(api)


def test_a_model_that_is_swapped_while_it_is_used_is_noticed_in_the_next_request(remote, server, tmp_path):
    encoder = remote()
    other = Encoder(export_tiny(ArtifactStore([tmp_path / "other"]), seed=1), settings(tmp_path))
    server.encode = lambda texts: other.encode(texts)[0]
    with pytest.raises(ParityError, match="does not compute model 'tiny'"):
        encoder.encode(["red web"])


def test_a_model_that_differs_in_other_texts_only_is_not_loaded(remote, server, reference):
    def encode(texts):
        vectors = reference.encode(texts)[0]
        return np.array([-vector if "python" in text else vector for text, vector in zip(texts, vectors, strict=True)])

    server.encode = encode
    with pytest.raises(ParityError, match=r"in remote on openai at http://.*'a fast python library' has cosine -1"):
        remote()


@pytest.mark.parametrize("normalize", [True, False])
def test_an_endpoint_that_normalizes_otherwise_is_not_loaded(remote, server, tmp_path, normalize):
    exported = export_tiny(ArtifactStore([tmp_path / "a"]), normalize=normalize)
    other = Encoder(export_tiny(ArtifactStore([tmp_path / "b"]), normalize=not normalize), settings(tmp_path))
    server.encode = lambda texts: other.encode(texts)[0]
    with pytest.raises(
        ParityError, match="the endpoint does not normalize" if normalize else "the endpoint normalizes"
    ):
        remote(artifact=exported)


def test_text_embeddings_inference_is_told_not_to_normalize_where_the_model_does_not(remote, server, tmp_path):
    plain = export_tiny(ArtifactStore([tmp_path / "a"]), normalize=False)
    encoder = Encoder(plain, settings(tmp_path))
    server.encode = lambda texts: encoder.encode(texts)[0]
    remote("tei", artifact=plain)
    assert {request["normalize"] for request in server.requests} == {False}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_model_of_any_precision_may_be_served(remote, tiny, tmp_path, precision):
    folder = shutil.copytree(tiny.folder, tmp_path / "copy")
    rehash(folder, precision=precision)
    assert remote(artifact=read_artifact(folder)).encode(["red"])[0].shape == (1, 8)


def test_texts_are_never_sent_unasked(tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "copy")
    rehash(folder, precision="bf16")
    chosen = settings(tmp_path, disabled_plugins=frozenset({"openvino"}))
    with pytest.raises(ProviderError, match="which no installed runtime has"):
        choose_runtime(read_artifact(folder), chosen)
    assert choose_runtime(read_artifact(folder), dataclasses.replace(chosen, runtime="remote")).name == "remote"


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_of_this_machine_is_refused_rather_than_ignored(tiny, server, device, monkeypatch):
    monkeypatch.setenv("LLMREC_REMOTE_URL", server.url)
    with pytest.raises(ProviderError, match=f"LLMREC_DEVICE={device} was asked for"):
        open_model(tiny, device=device, placement=None)
