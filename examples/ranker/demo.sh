#!/usr/bin/env bash
# The main job, end to end, as its users would run it: export, apply, materialize, train and rank.
# Run it by `make demo`, which installs what it needs. A second run exports nothing and computes nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
export LLMREC_HOME="${LLMREC_HOME:-$PWD/.llmrec}"

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

step "1/5 Export the encoder, the tagger and the writer to ONNX and compare them with PyTorch"
for model in all-minilm-l6-v2 debian-tagger debian-synopsis; do
    [ -f "$LLMREC_HOME/artifacts/$model/current" ] || llmrec export "$model"
done
llmrec models

step "2/5 Write the shipped sample as the parquet sources of a Feast repo"
rm -f feature_repo/data/*.db
python examples/ranker/prepare.py

cd feature_repo
step "3/5 feast apply"
feast apply 2>&1 | grep --line-buffered -v -e RuntimeWarning -e '^  warnings.warn' -e serve_features_while

step "4/5 feast materialize"
feast materialize 2023-06-10T00:00:00 2023-08-01T00:00:00

llmrec cache stats --last 7

step "5/5 Train and rank, with and without the LLM features"
python ../examples/ranker/ranker.py
