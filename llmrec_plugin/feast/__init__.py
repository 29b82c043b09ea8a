"""Feast objects from declarations. The only part of the package that imports feast.

In a feature repo::

    from llmrec_plugin.feast import publish

    llm = publish(globals())

In its ``static_artifacts.py``::

    from llmrec_plugin.feast import load_artifacts

In a ranker that reads with a ``FeatureStore``::

    from llmrec_plugin.feast import fetch, layout_of

    layout = layout_of(store, "ranker")
    fetched = fetch(store, layout, {"item": ["i1", "i2"]})
"""

from llmrec_plugin.feast.patches import apply_patches
from llmrec_plugin.feast.publishing import publish
from llmrec_plugin.feast.search import search
from llmrec_plugin.feast.serving import fetch, layout_of
from llmrec_plugin.feast.warmup import load_artifacts
from llmrec_plugin.pipeline.history import history_frame

apply_patches()

__all__ = ["fetch", "history_frame", "layout_of", "load_artifacts", "publish", "search"]
