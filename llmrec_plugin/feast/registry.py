"""Feast's file registry, replaced as a whole: one line in ``feature_store.yaml``.

    registry: {path: data/registry.db, registry_store_type: llmrec_plugin.feast.registry.AtomicFileRegistryStore}

Feast 0.67 empties the file before it writes it anew (infra/registry/file.py), twice in every materialization: a
process that is killed in between leaves a registry without views, and one that reads in between sees none.
"""

from __future__ import annotations

import os
from pathlib import Path

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry


class AtomicFileRegistryStore(FileRegistryStore):
    """Feast's file registry; a reader finds the old file or the new one."""

    _filepath: Path

    def _write_registry(self, registry_proto: Registry) -> None:
        target = self._filepath
        self._filepath = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            super()._write_registry(registry_proto)
            os.replace(self._filepath, target)
        finally:
            self._filepath.unlink(missing_ok=True)
            self._filepath = target
