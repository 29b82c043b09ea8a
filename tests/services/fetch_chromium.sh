#!/usr/bin/env bash
# Puts Chromium into a folder, for the tests that look at pages. From Debian's packages, without root; nothing is
# installed. 120 MB are fetched, and 500 MB take room.
#
#     tests/services/fetch_chromium.sh [FOLDER]     default: .services/chromium
set -euo pipefail
folder=$(realpath -m "${1:-.services/chromium}")
[ -f "$folder/complete" ] && exit 0
. "$(dirname "$0")/debian.sh"

echo "Fetching Chromium into $folder"
apt get update || echo "$0: some package lists could not be read" >&2
needed=$(apt get install --simulate --no-install-recommends chromium | sed -n 's/^Inst \([^ ]*\).*/\1/p')
[ -n "$needed" ] || { echo "$0: Chromium is installed already" >&2; exit 0; }
fetch $needed fonts-liberation
rm -rf "$folder/apt" "$folder/packages"
touch "$folder/complete"
