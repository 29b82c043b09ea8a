"""The texts of the shop, and every feature of installed plugins that fits them."""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource
from feast.types import String

from llmrec_plugin.feast import publish

package = Entity(name="package", join_keys=["package"])
package_text = FeatureView(
    name="package_text",
    entities=[package],
    ttl=timedelta(days=3650),
    schema=[Field(name="package", dtype=String), Field(name="synopsis", dtype=String)],
    source=FileSource(path="data/packages.parquet", timestamp_field="event_timestamp"),
)

llm = publish(globals())
