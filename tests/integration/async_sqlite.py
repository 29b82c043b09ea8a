"""A SQLite store that Feast takes for an asynchronous one, as Redis is: pushes then run on the event loop."""

from __future__ import annotations

from typing import Any

from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.infra.supported_async_methods import SupportedAsyncMethods


class AsyncSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    type: str = "async_sqlite.AsyncSqliteOnlineStore"


class AsyncSqliteOnlineStore(SqliteOnlineStore):
    @property
    def async_supported(self) -> SupportedAsyncMethods:
        return SupportedAsyncMethods(write=True)

    async def online_write_batch_async(self, config: Any, table: Any, data: Any, progress: Any) -> None:
        self.online_write_batch(config, table, data, progress)
