"""Requests for endpoints."""

from llmrec_plugin import Request, Segment


def request(text, instructions="Repeat: ", system="", **changes):
    """A prompt with one value."""
    return Request((Segment(instructions), Segment(text, data=True, **changes)), system=system, seed=7)
