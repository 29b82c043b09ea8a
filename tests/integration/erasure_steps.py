"""What `test_erasure.py` asks of processes of its own."""

from __future__ import annotations

from integration.steps import open_store, read_historical

from llmrec_plugin.errors import ErasureError


def erase_while_reading(feature: str, items: list[str], erased: str) -> str:
    """Reads training data, which keeps its table until this process ends, and erases a key of it: the error."""
    from llmrec_plugin.feast.erasure import erase

    read_historical([feature], [{"item": item, "event_timestamp": "2026-02-01T00:00:00+00:00"} for item in items])
    try:
        erase(open_store(None), "item", [erased])
    except ErasureError as exc:
        return str(exc)
    return ""
