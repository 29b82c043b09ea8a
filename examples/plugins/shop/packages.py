"""Writes the shop's packages, as a pipeline of yours would."""

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

SYNOPSES = {
    "apache2": "web server for large sites",
    "audacity": "records and edits sound",
    "caddy": "HTTP server that fetches its own certificates",
    "gimp": "edits photographs and other images",
    "kdenlive": "cuts and joins video clips",
    "mariadb": "SQL database for many clients",
    "mutt": "reads mail in a terminal",
    "nginx": "small and fast web server and proxy",
    "sqlite3": "SQL database in a single file",
    "thunderbird": "reads mail and news",
}

if __name__ == "__main__":
    rows = pd.DataFrame({"package": SYNOPSES.keys(), "synopsis": SYNOPSES.values()})
    rows["event_timestamp"] = datetime(2026, 1, 1, tzinfo=UTC)
    file = Path("feature_repo/data/packages.parquet")
    file.parent.mkdir(exist_ok=True)
    rows.to_parquet(file)
