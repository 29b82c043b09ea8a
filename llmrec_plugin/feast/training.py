"""Training data: a file source that is brought up to date when somebody reads it.

Stock Feast runs a batch view's transformation when it materializes, keeps the newest row of each entity
and never runs it for ``get_historical_features``. A label between two versions of a text would then get
null, or, worse, a vector of text written later. `TrainingSource` holds one vector per row of the raw
source, under the raw row's own timestamps, so the offline store's point-in-time join finds the right one.

It is an ordinary `FileSource` to Feast (registered by its dotted path, Feast's way for custom sources),
so the offline stores that read files can join it. They call `resolve_credentials` right before they
read; there the parts of the table whose raw files changed are written. Vectors come from the value cache,
so rows that were materialized, or read before, cost no inference.

Feast's stores for Ray and Spark run the transformation over the whole source instead; ours
(`llmrec_plugin.feast.ray`, `llmrec_plugin.feast.spark`) read the same table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.acero as acero
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import yaml
from feast import FileSource
from feast.data_format import ParquetFormat
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import RepoConfig

from llmrec_plugin.binding import BoundColumn, BoundSimilarity, from_values
from llmrec_plugin.errors import EngineError, InputError, MissingColumnError
from llmrec_plugin.feast.tokens import cheap_tokens
from llmrec_plugin.pipeline.columns import output_arrays, output_fields
from llmrec_plugin.runtime.runner import Computed, runner_for
from llmrec_plugin.runtime.tables import Table
from llmrec_plugin.runtime.workers import worker_settings
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import digest

if TYPE_CHECKING:
    from feast import FeatureView

ROWS_PER_CHUNK = 65_536


class TrainingSource(FileSource):
    """The vectors of every row of a raw file, for historical reads.

    Args:
        configuration: ``bound``, the bound declaration; what the raw rows are: ``uri``, a parquet file or folder,
            or ``spark``, the options of a SparkSource; ``root``, the feature repo that a relative uri starts from,
            and ``project``, its name; ``keys``; ``timestamp``; ``created`` (maybe empty); ``field_mapping`` of the
            raw source.
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
        outputs = output_fields(self.bound.feature)
        return [(column, "string") for column in columns if column] + [(item.name, str(item.type)) for item in outputs]

    @property
    def bound(self) -> BoundColumn:
        """The feature whose values these are."""
        bound = from_values(self.configuration["bound"])
        assert not isinstance(bound, BoundSimilarity)
        return bound

    @property
    def kept(self) -> list[str]:
        """Names of the key and timestamp columns, as the raw source has them."""
        keep = [*self.configuration["keys"], self.timestamp_field, self.created_timestamp_column]
        return [self.raw_name(name) for name in keep if name]

    def raw_name(self, name: str) -> str:
        """The raw source's name of a column."""
        return {renamed: raw for raw, renamed in self.field_mapping.items()}.get(name, name)

    def resolve_credentials(self) -> dict[str, str] | None:
        """Called by the offline stores right before they read `path`: brings the table up to date."""
        self.before_read()
        return super().resolve_credentials()

    def before_read(self) -> None:
        """Brings the table up to date and `path` to its files."""
        self.file_options.uri = str(self.refresh() / "*.parquet")
        cheap_tokens()

    def refresh(self) -> Path:
        """The folder of parquet files with one vector per raw row; parts whose raw file changed are written anew.

        Raises:
            EngineError: The raw rows are Spark's, which only `llmrec_plugin.feast.spark` reads.
            InputError: The raw file is not there.
            MissingColumnError: It lacks a column.
        """
        if "uri" not in self.configuration:
            raise EngineError(
                f"The raw rows of feature {self.bound.feature.name!r} are read by Spark. Set offline_store.type to "
                "llmrec_plugin.feast.spark.LLMSparkOfflineStore in feature_store.yaml."
            )
        raw = self._raw_path()
        # Folders named key=value are columns, as for those who read the raw source.
        dataset = pads.dataset(raw, format="parquet", partitioning="hive")
        signatures = {file: _signature(Path(file), raw) for file in sorted(dataset.files)}
        return self.table(str(raw)).up_to_date(
            digest(sorted(signatures.values()))[:16],
            lambda: signatures,
            lambda file, part: self._write(dataset, file, part),
        )

    def table(self, raw: str) -> Table:
        """The table of the vectors of the raw rows that `raw` describes."""
        bound = self.bound
        name = f"{bound.feature.name}-{bound.fingerprint[:16]}-{digest([self.configuration, raw])[:8]}"
        return Table(load_settings().training_folder / name)

    def distinct_keys(self) -> Iterator[pa.RecordBatch]:
        """The keys of the raw file's entities, each once, in no order; rows without a key are left out."""
        keys = self.configuration["keys"]
        columns = {key: pads.field(self.raw_name(key)) for key in keys}
        dataset = pads.dataset(self._raw_path(), format="parquet", partitioning="hive")
        scan = acero.Declaration("scan", acero.ScanNodeOptions(dataset, columns=columns))
        project = acero.Declaration("project", acero.ProjectNodeOptions(list(columns.values()), keys))
        distinct = acero.Declaration("aggregate", acero.AggregateNodeOptions([], keys=keys))
        for batch in acero.Declaration.from_sequence([scan, project, distinct]).to_reader():
            yield from pa.Table.from_batches([batch]).drop_null().to_batches()

    def _write(self, dataset: pads.FileSystemDataset, file: str, part: Path) -> None:
        bound = self.bound
        columns = {name: self.raw_name(name) for name in bound.feature.columns}
        names = list(dict.fromkeys([*self.kept, *columns.values()]))
        missing = [name for name in names if name not in dataset.schema.names]
        if missing:
            raise MissingColumnError(bound.feature.name, missing, dataset.schema.names)
        outputs = output_fields(bound.feature)
        schema = pa.schema([*(dataset.schema.field(name) for name in self.kept), *outputs])
        runner = runner_for(worker_settings())
        [fragment] = [fragment for fragment in dataset.get_fragments() if fragment.path == file]
        with pq.ParquetWriter(part, schema) as writer:
            for batch in fragment.to_batches(schema=dataset.schema, columns=names, batch_size=ROWS_PER_CHUNK):
                batch = batch.filter(batch.column(self.kept[0]).is_valid())  # a label always has a key
                if not batch.num_rows:
                    continue
                texts = {name: batch.column(raw).to_pylist() for name, raw in columns.items()}
                computed = runner.compute(bound, texts, "historical")
                _check_answered(bound, computed)
                arrays = output_arrays(bound.feature, computed.values, computed.statuses)
                kept = [batch.column(name) for name in self.kept]
                writer.write_batch(pa.record_batch([*kept, *arrays], schema=schema))

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


def _check_answered(bound: BoundColumn, computed: Computed) -> None:
    """A table with gaps would count as up to date, and a model would learn from them."""
    if computed.unanswered:
        summary = computed.unanswered_summary(bound.feature.name)
        raise EngineError(f"{summary}. Read again later; what was answered is kept.")


def project_name(folder: Path) -> str | None:
    """The project that the ``feature_store.yaml`` in `folder` names; None if there is no such file."""
    path = folder / "feature_store.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")).get("project") if path.is_file() else None


def is_stored(view: FeatureView) -> bool:
    """Whether historical reads of `view` are to use its training table."""
    return isinstance(view.batch_source, TrainingSource)


def file_signature(raw: Path) -> bytes:
    """Changes whenever the raw file (or a file of the raw folder) is written."""
    files = sorted(path for path in raw.rglob("*") if path.is_file()) if raw.is_dir() else [raw]
    return digest([_signature(file, raw) for file in files]).encode()


def _signature(file: Path, raw: Path) -> str:
    """Changes whenever a file of the raw source is written."""
    stat = file.stat()
    return digest([str(file.relative_to(raw)), stat.st_size, stat.st_mtime_ns])
