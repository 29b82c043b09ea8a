"""Feast's Redis online store, with exact vector search and on-demand views off the event loop.

In ``feature_store.yaml``::

    online_store:
      type: llmrec_plugin.feast.redis.LLMRecRedisOnlineStore
      connection_string: localhost:6379

The keys and values are those of ``type: redis``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from feast import FeatureView, Field, RepoConfig
from feast.errors import FeastExtrasDependencyImportError
from feast.infra.online_stores.helpers import _mmh3, _redis_key, _redis_key_prefix, compute_versioned_name
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from pydantic import Field as Setting

from llmrec_plugin.errors import MissingExtraError
from llmrec_plugin.feast.vectors import ExactSearch, decode
from llmrec_plugin.feast.versions import FINGERPRINT_TAG
from llmrec_plugin.pipeline.nearest import Block

try:
    from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
    from redis.backoff import FullJitterBackoff
    from redis.retry import Retry
except FeastExtrasDependencyImportError as exc:
    raise MissingExtraError("redis", "redis", "An online store in Redis") from exc

KEYS_AT_ONCE = 1000


class LLMRecRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """The settings of ``type: redis`` and two more."""

    type: Literal["llmrec_plugin.feast.redis.LLMRecRedisOnlineStore"] = (  # type: ignore[assignment]
        "llmrec_plugin.feast.redis.LLMRecRedisOnlineStore"
    )
    vectors_kept_seconds: float = 0
    """How long a process searches the vectors that it has read. With 0 it reads the view's vectors for every query;
    with more a search may miss what was written in the meantime."""
    retries: int = Setting(2, ge=0)
    """Further attempts at what failed because Redis was away or late, with pauses of at most 0.1 and 0.2 s."""


class LLMRecRedisOnlineStore(ExactSearch, RedisOnlineStore):
    """Redis with exact vector search, which reads the vectors of the whole view."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[tuple[str, str, str | None], tuple[float, list[Block]]] = {}
        self._lock = threading.RLock()

    def _get_client(self, online_store_config: LLMRecRedisOnlineStoreConfig) -> Any:
        # The client's own pauses, of seconds, hold a thread of the server each: with Redis away they would soon hold
        # all of them, and requests that need no Redis would wait, too.
        with self._lock:
            is_new = self._client is None
            client = super()._get_client(online_store_config)
            if is_new:
                client.set_retry(Retry(FullJitterBackoff(cap=1, base=0.05), online_store_config.retries))
        return client

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        # With asynchronous reads Feast's server runs on-demand views on its event loop: while one request computes,
        # every other waits. Without, it reads and computes in its thread pool.
        return SupportedAsyncMethods(read=False, write=True)

    def vector_blocks(self, config: RepoConfig, table: FeatureView, column: Field) -> Iterable[Block]:
        seconds = config.online_store.vectors_kept_seconds
        if not seconds:
            return decode(self._rows(config, table, column), column)
        # With the fingerprint, since a query is encoded by the new model as soon as the registry says so.
        name = (_stored_name(config, table), column.name, table.tags.get(FINGERPRINT_TAG))
        with self._lock:
            read_at, blocks = self._kept.get(name, (-math.inf, []))
            now = time.monotonic()
            if now - read_at >= seconds:
                blocks = list(decode(self._rows(config, table, column), column))
                self._kept = {other: kept for other, kept in self._kept.items() if now - kept[0] < seconds}
                self._kept[name] = now, blocks
            return blocks

    def delete_rows(self, config: RepoConfig, table: FeatureView, keys: Sequence[EntityKey]) -> None:
        """Deletes what the store holds of entities for this view; a Redis key with nothing else goes with it."""
        name = _stored_name(config, table)
        fields = [f"_ts:{name}".encode(), *(_mmh3(f"{name}:{field.name}") for field in table.features)]
        with self._get_client(config.online_store).pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hdel(_redis_key(config.project, key, config.entity_key_serialization_version), *fields)
            pipeline.execute()

    def _rows(self, config: RepoConfig, table: FeatureView, column: Field) -> Iterator[tuple[bytes, bytes]]:
        """Serialized entity keys of a view, and the values of one column."""
        client = self._get_client(config.online_store)
        field = _mmh3(f"{_stored_name(config, table)}:{column.name}")
        project = config.project.encode()
        join_keys = table.join_keys
        prefix = _redis_key_prefix(join_keys)
        pattern = _literally(prefix) + b"*" + _literally(project)
        keys = sorted(set(client.scan_iter(pattern, count=KEYS_AT_ONCE)))  # a scan may give a key twice
        for start in range(0, len(keys), KEYS_AT_ONCE):
            part = keys[start : start + KEYS_AT_ONCE]
            with client.pipeline(transaction=False) as pipeline:
                for key in part:
                    pipeline.hget(key, field)
                values = pipeline.execute()
            for key, value in zip(part, values, strict=True):
                entity_key = key[: -len(project)]
                if value and _ends_after_values(entity_key, len(prefix), len(join_keys)):
                    yield entity_key, value


def _stored_name(config: RepoConfig, table: FeatureView) -> str:
    return compute_versioned_name(table, config.registry.enable_online_feature_view_versioning)


def _ends_after_values(key: bytes, start: int, count: int) -> bool:
    """Whether exactly `count` serialized values follow in `key`, each after four bytes of type and four of length.

    If not, the key is one of another project, whose name ends with this one's.
    """
    for _ in range(count):
        start += 8 + int.from_bytes(key[start + 4 : start + 8], "little")
    return start == len(key)


def _literally(text: bytes) -> bytes:
    """`text` as a pattern that matches nothing else."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\" else bytes([byte]) for byte in text)
