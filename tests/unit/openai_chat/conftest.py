"""A model behind an endpoint of this machine."""

import pytest
from chat_endpoint import ChatEndpoint
from endpoint import serving
from fake_clock import FakeClock

from llmrec_plugin import GeneratorModel
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.export.endpoint import export_endpoint
from llmrec_plugin.systems.openai_chat.configuration import load_endpoint_settings, read_served
from llmrec_plugin.systems.openai_chat.session import EndpointSession


@pytest.fixture
def time():
    return FakeClock()


@pytest.fixture
def server():
    with serving(ChatEndpoint()) as endpoint:
        yield endpoint


@pytest.fixture
def export(tmp_path):
    """Exports a model behind an endpoint."""

    def made(**changes):
        fields = {"name": "ours", "source": "endpoint:writer@1", "task": "causal", "max_tokens": 1000, "chat": True}
        return export_endpoint(GeneratorModel(**{**fields, **changes}), ArtifactStore([tmp_path / "artifacts"]))

    return made


@pytest.fixture
def session(server, export, time):
    """Opens a session on fake time; variables without their prefix."""

    def opened(model=None, clock=None, **variables):
        served = read_served(export(**(model or {})), "openai")
        named = {"URL": server.url, "CONCURRENCY": 1, **variables}
        environ = {f"LLMREC_OPENAI_{name}": str(value) for name, value in named.items()}
        return EndpointSession(served, load_endpoint_settings(served.chat, environ), clock or time.clock())

    return opened
