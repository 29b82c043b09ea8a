"""What older versions of Feast cannot do; `docs/versioning.md` tells users of each."""

from importlib import metadata

import pytest

FEAST = tuple(int(number) for number in metadata.version("feast").split(".")[:2])

since_feast_0_67 = pytest.mark.skipif(
    FEAST < (0, 67), reason="Feast before 0.67 refuses reads of a view that is materialized, and tells no versions"
)
