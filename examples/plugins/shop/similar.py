"""Finds packages by a text. It knows Feast and numpy, and no model."""

import sys

import numpy as np
from feast import FeatureStore
from packages import SYNOPSES

FEATURE = "package_synopsis_embedding"

store = FeatureStore("feature_repo")
stored = store.get_online_features(
    features=[f"{FEATURE}:{FEATURE}"],
    entity_rows=[{"package": name} for name in SYNOPSES],
).to_dict()
asked = store.get_online_features(
    features=[f"{FEATURE}_on_demand:{FEATURE}_on_demand"],
    entity_rows=[{"synopsis": sys.argv[1]}],
).to_dict()

vectors = np.array(stored[FEATURE], dtype=np.float32)  # (packages, 128)
query = np.array(asked[f"{FEATURE}_on_demand"][0], dtype=np.float32)  # (128,)
similarities = vectors @ query
for row in np.argsort(-similarities)[:3]:
    name = stored["package"][row]
    print(f"{similarities[row]:.2f} {name}: {SYNOPSES[name]}")
