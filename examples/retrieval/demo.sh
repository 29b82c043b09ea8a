#!/usr/bin/env bash
# Retrieval and ranking on the data of the ranker example, which is prepared if it is not there: see `make retrieval`.
set -euo pipefail
cd "$(dirname "$0")/../.."
export LLMREC_HOME="${LLMREC_HOME:-$PWD/.llmrec}"
[ -f feature_repo/data/online_store.db ] || examples/ranker/demo.sh
python examples/retrieval/retrieve.py "$@"
