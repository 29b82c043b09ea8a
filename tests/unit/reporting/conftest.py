import pytest
from browser import browsers


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    yield from browsers(tmp_path_factory.mktemp("browser"))
