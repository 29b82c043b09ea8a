"""Which packages does this package depend on? A Feast repo with plain features and LLM features.

A *dependant* is the user: it has texts and a history, the dependencies it has already declared.
A *package* is the item. Everything above "LLM features" is plain Feast; the similarities below it come
from llmrec_plugin and are read like any other feature. Data and provenance: README.md.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float64, Int64, String

from llmrec_plugin import (
    Decoding,
    EmbeddingFeature,
    HistoryEmbeddingFeature,
    ShortText,
    SimilarityFeature,
    Tags,
    TokenFeature,
)
from llmrec_plugin.feast import publish

# The sample's times are synthetic and lie in 2023. A long ttl keeps old rows in reach.
TTL = timedelta(days=20 * 365)

package = Entity(name="package", join_keys=["package"], value_type=ValueType.STRING)
dependant = Entity(name="dependant", join_keys=["dependant"], value_type=ValueType.STRING)


# ---- plain features

package_text = FeatureView(
    name="package_text",
    entities=[package],
    ttl=TTL,
    schema=[Field(name="synopsis", dtype=String), Field(name="description", dtype=String)],
    source=FileSource(path="data/package_text.parquet", timestamp_field="event_timestamp"),
)

package_stats = FeatureView(
    name="package_stats",
    entities=[package],
    ttl=TTL,
    schema=[
        Field(name="package_section", dtype=String),
        Field(name="popularity", dtype=Int64, description="Histories that name the package"),
        Field(name="description_words", dtype=Int64),
        Field(name="package_tags", dtype=String),
        Field(name="package_name_words", dtype=String),
        Field(name="package_synopsis_words", dtype=String),
        Field(name="co_packages", dtype=String, description="name=cosine of packages found in the same histories"),
    ],
    source=FileSource(path="data/package_stats.parquet", timestamp_field="event_timestamp"),
)

dependant_text = FeatureView(
    name="dependant_text",
    entities=[dependant],
    ttl=TTL,
    schema=[
        Field(name="synopsis", dtype=String),
        Field(name="description", dtype=String),
        Field(name="history_texts", dtype=Array(String), description="Texts of known dependencies, newest first"),
    ],
    source=FileSource(path="data/dependant_text.parquet", timestamp_field="event_timestamp"),
)

dependant_stats = FeatureView(
    name="dependant_stats",
    entities=[dependant],
    ttl=TTL,
    schema=[
        Field(name="dependant_section", dtype=String),
        Field(name="history_size", dtype=Int64),
        Field(name="dependant_tags", dtype=String),
        Field(name="dependant_name_words", dtype=String),
        Field(name="dependant_synopsis_words", dtype=String),
        Field(name="dependant_text_words", dtype=String),
        Field(name="history_packages", dtype=String),
        Field(name="history_sections", dtype=String),
        Field(name="history_tags", dtype=String),
        Field(name="history_name_words", dtype=String, description="One line per known dependency"),
        Field(name="history_synopsis_words", dtype=String, description="One line per known dependency"),
    ],
    source=FileSource(path="data/dependant_stats.parquet", timestamp_field="event_timestamp"),
)

# The control: the same texts, each under a package that it does not belong to.
package_shuffled_text = FeatureView(
    name="package_shuffled_text",
    entities=[package],
    ttl=TTL,
    schema=[Field(name="shuffled_synopsis", dtype=String), Field(name="shuffled_description", dtype=String)],
    source=FileSource(path="data/package_shuffled_text.parquet", timestamp_field="event_timestamp"),
)


@on_demand_feature_view(
    sources=[package_stats, dependant_stats],
    schema=[
        Field(name="same_section", dtype=Float64),
        Field(name="history_section_share", dtype=Float64),
        Field(name="co_occurrence", dtype=Float64),
        Field(name="co_occurrence_share", dtype=Float64),
        Field(name="tag_overlap", dtype=Float64),
        Field(name="history_tag_overlap", dtype=Float64),
        Field(name="name_overlap", dtype=Float64),
        Field(name="history_name_overlap_max", dtype=Float64),
        Field(name="history_name_overlap_mean", dtype=Float64),
        Field(name="synopsis_overlap", dtype=Float64),
        Field(name="history_synopsis_overlap_max", dtype=Float64),
        Field(name="name_in_text", dtype=Float64),
    ],
    mode="python",
)
def dependant_package_match(inputs: dict) -> dict:
    """What a ranker can tell about a pair without a language model: counts and shared words."""
    # Feast runs this function from its source text: everything it needs is defined inside.

    def words(value):
        return set(value.split()) if isinstance(value, str) else set()

    def lines(value):
        return [set(line.split()) for line in value.split("\n")] if isinstance(value, str) else []

    def jaccard(a, b):
        return len(a & b) / len(a | b) if a and b else 0.0

    def match(row):
        tags, name, synopsis = (words(row[f"package_{part}"]) for part in ("tags", "name_words", "synopsis_words"))
        pairs = (pair.partition("=") for pair in words(row["co_packages"]))
        together = {other: float(score or 0) for other, _, score in pairs}
        scores = [together.get(past, 0.0) for past in sorted(words(row["history_packages"]))]
        sections = row["history_sections"].split() if isinstance(row["history_sections"], str) else []
        past_names = [jaccard(name, past) for past in lines(row["history_name_words"])]
        past_synopses = [jaccard(synopsis, past) for past in lines(row["history_synopsis_words"])]
        return {
            "same_section": float(row["package_section"] == row["dependant_section"]),
            "history_section_share": sections.count(row["package_section"]) / max(1, len(sections)),
            "co_occurrence": sum(scores, 0.0),
            "co_occurrence_share": sum(score > 0 for score in scores) / max(1, len(scores)),
            "tag_overlap": float(len(tags & words(row["dependant_tags"]))),
            "history_tag_overlap": float(len(tags & words(row["history_tags"]))),
            "name_overlap": jaccard(name, words(row["dependant_name_words"])),
            "history_name_overlap_max": max(past_names, default=0.0),
            "history_name_overlap_mean": sum(past_names) / max(1, len(past_names)),
            "synopsis_overlap": jaccard(synopsis, words(row["dependant_synopsis_words"])),
            "history_synopsis_overlap_max": max(past_synopses, default=0.0),
            "name_in_text": len(name & words(row["dependant_text_words"])) / max(1, len(name)),
        }

    rows = [match(dict(zip(inputs, values, strict=True))) for values in zip(*inputs.values(), strict=True)]
    return {column: [row[column] for row in rows] for column in rows[0]}


# ---- LLM features

MINILM = {
    "model": "all-minilm-l6-v2",
    "pooling": "mean",
    "normalize": True,
    "prefix": "",
    "metric": "cosine",
    "max_tokens": 256,
    "dims": 384,
}

package_text_embedding = EmbeddingFeature(
    name="package_text_embedding", entity="package", text="{synopsis}. {description}", **MINILM
)
dependant_text_embedding = EmbeddingFeature(
    name="dependant_text_embedding", entity="dependant", text="{synopsis}. {description}", **MINILM
)
dependant_history_embedding = HistoryEmbeddingFeature(
    name="dependant_history_embedding",
    entity="dependant",
    events="history_texts",
    order="newest_first",
    last_n=10,
    half_life=5.0,
    **MINILM,
)
query_text_embedding = EmbeddingFeature(name="query_text_embedding", entity=None, text="{query}", **MINILM)

dependant_package_similarity = SimilarityFeature(
    name="dependant_package_similarity",
    left="dependant_text_embedding",
    right="package_text_embedding",
    metric="cosine",
)
history_package_similarity = SimilarityFeature(
    name="history_package_similarity",
    left="dependant_history_embedding",
    right="package_text_embedding",
    metric="cosine",
)
query_package_similarity = SimilarityFeature(
    name="query_package_similarity", left="query_text_embedding", right="package_text_embedding", metric="cosine"
)

# The control: as many embedding features, of texts that say nothing about the package.
package_shuffled_embedding = EmbeddingFeature(
    name="package_shuffled_embedding",
    entity="package",
    text="{shuffled_synopsis}. {shuffled_description}",
    **MINILM,
)
dependant_shuffled_similarity = SimilarityFeature(
    name="dependant_shuffled_similarity",
    left="dependant_text_embedding",
    right="package_shuffled_embedding",
    metric="cosine",
)
history_shuffled_similarity = SimilarityFeature(
    name="history_shuffled_similarity",
    left="dependant_history_embedding",
    right="package_shuffled_embedding",
    metric="cosine",
)

# What models write about a text: tags of debtags' closed vocabulary, and a one-line summary for people.
package_written_tags = TokenFeature(
    name="package_written_tags",
    entity="package",
    model="debian-tagger",
    text="{description}",
    output=Tags(max_items=12),
)
dependant_written_tags = TokenFeature(
    name="dependant_written_tags",
    entity="dependant",
    model="debian-tagger",
    text="{description}",
    output=Tags(max_items=12),
)
package_written_synopsis = TokenFeature(
    name="package_written_synopsis",
    entity="package",
    model="debian-synopsis",
    text="{description}",
    output=ShortText(max_chars=80),
    decoding=Decoding(max_new_tokens=24, repetition_ngram=3),
)

llm = publish(globals())


# ---- columns of tags for rankers that read numbers: plain Feast again

TAG_COLUMNS = 16


@on_demand_feature_view(
    sources=[llm["package_written_tags"], llm["dependant_written_tags"]],
    schema=[
        Field(name="written_tag_overlap", dtype=Float64),
        Field(name="written_tag_similarity", dtype=Float64),
        *(Field(name=f"written_tag_hash_{number}", dtype=Float64) for number in range(TAG_COLUMNS)),
    ],
    mode="python",
)
def written_tag_match(inputs: dict) -> dict:
    """Tags that both have, and the package's tags hashed into columns: how many of them fall into each."""
    # Feast runs this function from its source text: everything it needs is defined inside.
    import zlib

    columns = 16

    def tags(value):
        return {str(tag) for tag in value} if value is not None and not isinstance(value, float) else set()

    result = {"written_tag_overlap": [], "written_tag_similarity": []}
    result |= {f"written_tag_hash_{number}": [] for number in range(columns)}
    pairs = zip(inputs["package_written_tags"], inputs["dependant_written_tags"], strict=True)
    for package, dependant in ((tags(one), tags(other)) for one, other in pairs):
        shared, either = len(package & dependant), len(package | dependant)
        result["written_tag_overlap"].append(float(shared))
        result["written_tag_similarity"].append(shared / either if either else 0.0)
        places = [zlib.crc32(tag.encode()) % columns for tag in package]
        for number in range(columns):
            result[f"written_tag_hash_{number}"].append(float(places.count(number)))
    return result


# ---- what the ranker asks for

baseline = [
    package_stats[["package_section", "popularity", "description_words"]],
    dependant_stats[["dependant_section", "history_size"]],
    dependant_package_match,
]

ranker_baseline = FeatureService(name="ranker_baseline", features=baseline)
ranker_llm = FeatureService(
    name="ranker_llm",
    features=[*baseline, llm["dependant_package_similarity"], llm["history_package_similarity"]],
)
ranker_tags = FeatureService(
    name="ranker_tags",
    features=[
        *baseline,
        llm["dependant_package_similarity"],
        llm["history_package_similarity"],
        written_tag_match,
    ],
)
ranker_shuffled = FeatureService(
    name="ranker_shuffled",
    features=[*baseline, llm["dependant_shuffled_similarity"], llm["history_shuffled_similarity"]],
)
search = FeatureService(name="search", features=[llm["query_package_similarity"]])
