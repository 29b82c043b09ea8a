"""Training data: a file source that is brought up to date when somebody reads it.

Stock Feast runs a batch view's transformation when it materializes, keeps the newest row of each entity
and never runs it for ``get_historical_features``. A label between two versions of a text would then get
null, or, worse, a vector of text written later. `TrainingSource` holds one vector per row of the raw
source, under the raw row's own timestamps, so the offline store's point-in-time join finds the right one.

It is an ordinary `FileSource` to Feast (registered by its dotted path, Feast's way for custom sources),
so the offline stores that read files can join it. They call `resolve_credentials` right before they
read; there the table is written if the raw file changed. Vectors come from the value cache, so rows that
were materialized, or read before, cost no inference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import yaml
from feast import FileSource
from feast.data_format import ParquetFormat
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import RepoConfig
from filelock import FileLock

from llmrec_plugin.binding import BoundFeature, from_values
from llmrec_plugin.errors import InputError, MissingColumnError
from llmrec_plugin.pipeline.packing import value_array, value_type
from llmrec_plugin.runtime.runner import runner_for
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import TextFeature, digest

ROWS_PER_CHUNK = 65_536
_SIGNATURE = b"llmrec.source"


class TrainingSource(FileSource):
    """The vectors of every row of a raw file, for historical reads.

    Args:
        configuration: ``bound``, the bound declaration; ``uri``, the raw parquet file or folder;
            ``root``, the feature repo that a relative uri starts from, and ``project``, its name;
            ``keys``; ``timestamp``; ``created`` (maybe empty); ``field_mapping`` of the raw source.
        kwargs: Name, description, tags and owner, as of every Feast source.
    """

    def __init__(self, *, configuration: dict[str, Any], **kwargs: Any) -> None:
        self.configuration = configuration
        super().__init__(
            path=f"llmrec-training/{configuration['bound']['feature']['name']}.parquet",
            file_format=ParquetFormat(),
            timestamp_field=configuration["timestamp"],
            created_timestamp_column=configuration["created"],
            field_mapping=configuration["field_mapping"],
            **kwargs,
        )

    def source_type(self) -> DataSourceProto.SourceType.ValueType:
        return DataSourceProto.CUSTOM_SOURCE

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> TrainingSource:
        return TrainingSource(
            configuration=json.loads(data_source.custom_options.configuration),
            name=data_source.name,
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
        )

    def _to_proto_impl(self) -> DataSourceProto:
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            # Feast sets this itself only on some of its ways to the registry.
            data_source_class_type=f"{type(self).__module__}.{type(self).__name__}",
            custom_options=DataSourceProto.CustomSourceOptions(
                configuration=json.dumps(self.configuration, sort_keys=True).encode()
            ),
            field_mapping=self.field_mapping,
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainingSource) and (self.name, self.configuration) == (
            other.name,
            other.configuration,
        )

    __hash__ = FileSource.__hash__

    def validate(self, config: RepoConfig) -> None:
        """Nothing to check: the table is written when it is first read."""

    def get_table_column_names_and_types(self, config: RepoConfig) -> list[tuple[str, str]]:
        """Columns of the table and their arrow types, without reading the raw file."""
        columns = [*self.configuration["keys"], self.timestamp_field, self.created_timestamp_column]
        outputs = _output_fields(self._bound().feature)
        return [(column, "string") for column in columns if column] + [(item.name, str(item.type)) for item in outputs]

    def resolve_credentials(self) -> dict[str, str] | None:
        """Called by the offline stores right before they read `path`: writes the table if it is out of date."""
        self.file_options.uri = str(self.refresh())
        return super().resolve_credentials()

    def refresh(self) -> Path:
        """The parquet file with one vector per raw row, written anew if the raw file changed.

        Raises:
            InputError: The raw file is not there.
            MissingColumnError: It lacks a column.
        """
        bound = self._bound()
        settings = load_settings()
        raw = self._raw_path()
        table = (
            settings.cache_folder
            / "training"
            / f"{bound.feature.name}-{bound.fingerprint[:16]}-{digest([self.configuration, str(raw)])[:8]}.parquet"
        )
        table.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(f"{table}.lock"):
            signature = file_signature(raw)
            if not table.is_file() or pq.read_schema(table).metadata.get(_SIGNATURE) != signature:
                temporary = table.with_suffix(f".{os.getpid()}")
                try:
                    self._write(bound, raw, temporary, signature)
                    os.replace(temporary, table)
                finally:
                    temporary.unlink(missing_ok=True)
        return table

    def _write(self, bound: BoundFeature, raw: Path, target: Path, signature: bytes) -> None:
        raw_name = {renamed: name for name, renamed in self.field_mapping.items()}
        keep = [*self.configuration["keys"], self.timestamp_field, self.created_timestamp_column]
        names = list(dict.fromkeys(raw_name.get(name, name) for name in (*keep, *bound.feature.columns) if name))
        dataset = pads.dataset(raw, format="parquet")
        missing = [name for name in names if name not in dataset.schema.names]
        if missing:
            raise MissingColumnError(bound.feature.name, missing, dataset.schema.names)
        schema = pa.schema(
            [dataset.schema.field(raw_name.get(name, name)) for name in keep if name] + _output_fields(bound.feature),
            metadata={_SIGNATURE: signature},
        )
        runner = runner_for(load_settings())
        with pq.ParquetWriter(target, schema) as writer:
            for batch in dataset.to_batches(columns=names, batch_size=ROWS_PER_CHUNK):
                if not batch.num_rows:
                    continue
                columns = {name: batch.column(raw_name.get(name, name)).to_pylist() for name in bound.feature.columns}
                embedded = runner.embed(bound, columns, "historical")
                outputs = [value_array(bound.feature, embedded.values), pa.array(embedded.statuses, pa.string())]
                outputs = outputs[: 1 + bound.feature.status]
                kept = [batch.column(name) for name in schema.names[: -len(outputs)]]
                writer.write_batch(pa.record_batch([*kept, *outputs], schema=schema))

    def _bound(self) -> BoundFeature:
        bound = from_values(self.configuration["bound"])
        assert isinstance(bound, BoundFeature)
        return bound

    def _raw_path(self) -> Path:
        uri = Path(self.configuration["uri"])
        # A relative path starts from the feature repo. It may have been copied or moved since `feast apply`, e.g.
        # into a container; a process that stands in it reads the same file as its `feast materialize`.
        here = [Path.cwd(), Path(os.environ.get("FEAST_FS_YAML_FILE_PATH", ".")).absolute().parent]
        roots = [folder for folder in here if project_name(folder) == self.configuration["project"]]
        roots.append(Path(self.configuration["root"]))
        for root in roots:
            if (root / uri).exists():
                return root / uri
        name = self.configuration["bound"]["feature"]["name"]
        raise InputError(
            f"Training data of feature {name!r} is computed from {uri}, which is not there: looked in "
            f"{', '.join(dict.fromkeys(map(str, roots)))}. Run in the feature repo's folder, or `feast apply` again "
            "where the file is."
        )


def project_name(folder: Path) -> str | None:
    """The project that the ``feature_store.yaml`` in `folder` names; None if there is no such file."""
    path = folder / "feature_store.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")).get("project") if path.is_file() else None


def file_signature(raw: Path) -> bytes:
    """Changes whenever the raw file (or a file of the raw folder) is written."""
    files = sorted(path for path in raw.rglob("*") if path.is_file()) if raw.is_dir() else [raw]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return digest(stats).encode()


def _output_fields(feature: TextFeature) -> list[pa.Field]:
    status = [pa.field(feature.status_name, pa.string())] if feature.status else []
    return [pa.field(feature.name, value_type(feature)), *status]
