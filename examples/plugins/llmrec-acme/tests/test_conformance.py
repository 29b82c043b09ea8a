"""What every plugin promises."""

from __future__ import annotations

from llmrec_plugin.testing import Check, parametrize_with_checks


@parametrize_with_checks("acme")
def test_conformance(check: Check) -> None:
    check()
