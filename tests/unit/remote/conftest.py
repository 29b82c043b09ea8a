"""The tiny encoder behind an endpoint of this machine."""

import pytest
from endpoint import serve
from fake_clock import FakeClock
from samples import settings

from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.systems.remote.configuration import load_remote_settings
from llmrec_plugin.systems.remote.session import RemoteSession


@pytest.fixture(scope="package")
def reference(tiny, tmp_path_factory):
    """What ONNX Runtime gives."""
    return Encoder(tiny, settings(tmp_path_factory.mktemp("unused")))


@pytest.fixture
def server(reference):
    with serve(lambda texts: reference.encode(texts)[0]) as endpoint:
        yield endpoint


@pytest.fixture
def remote(server, tmp_path, monkeypatch, tiny):
    """Loads the model from the endpoint."""

    def load(api="openai", artifact=tiny, **variables):
        monkeypatch.setenv("LLMREC_REMOTE_URL", server.url)
        monkeypatch.setenv("LLMREC_REMOTE_API", api)
        for name, value in variables.items():
            monkeypatch.setenv(f"LLMREC_REMOTE_{name}", str(value))
        return Encoder(artifact, settings(tmp_path, runtime="remote"))

    return load


@pytest.fixture
def time():
    return FakeClock()


@pytest.fixture
def session(server, tiny, time):
    """Opens a session on fake time; variables without their prefix."""

    def open_session(url=None, artifact=tiny, **variables):
        environ = {"URL": url or server.url, **{name: str(value) for name, value in variables.items()}}
        named = {f"LLMREC_REMOTE_{name}": value for name, value in environ.items()}
        return RemoteSession(artifact, load_remote_settings("tiny", named), time.clock())

    return open_session
