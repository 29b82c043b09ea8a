#!/usr/bin/env bash
# Puts Redis and PostgreSQL with pgvector into a folder, for the tests. From Debian's packages, without root; nothing
# is installed and no service is started. Where the release has no package of pgvector (Debian 12), Debian's source
# package is compiled, which needs gcc and make and takes half a minute.
#
#     tests/services/fetch.sh [FOLDER]     default: .services
set -euo pipefail
folder=$(realpath -m "${1:-.services}")
[ -f "$folder/complete" ] && exit 0
. "$(dirname "$0")/debian.sh"
SOURCES_OF_PGVECTOR="deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]
    http://deb.debian.org/debian trixie main"

echo "Fetching Redis and PostgreSQL into $folder"
apt get update || echo "$0: some package lists could not be read" >&2
major=$(apt cache depends postgresql | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p')
servers=(redis-server redis-tools "postgresql-$major" "postgresql-client-$major")

# Libraries that the servers need and this machine lacks. LLVM is for PostgreSQL's compiled queries, which we turn off.
needed=$(apt cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances "${servers[@]}" | grep -E '^lib' | grep -vE '^(libc6|libllvm|libelogind)|-perl$' | cut -d: -f1 | sort -u)
for library in $needed; do
    dpkg-query -W -f '${Status}' "$library" 2>/dev/null | grep -q 'ok installed' || servers+=("$library")
done
fetch "${servers[@]}"

if apt cache show "postgresql-$major-pgvector" >/dev/null 2>&1; then
    fetch "postgresql-$major-pgvector"
else
    echo "Compiling pgvector for PostgreSQL $major"
    fetch "postgresql-server-dev-$major"
    echo $SOURCES_OF_PGVECTOR >"$folder/apt/pgvector.list"
    options+=(-o "Dir::Etc::SourceList=$folder/apt/pgvector.list" -o Dir::Etc::SourceParts=/dev/null)
    apt get update
    (cd "$folder/packages" && apt get source --download-only pgvector)
    mkdir -p "$folder/pgvector"
    tar -xf "$folder"/packages/pgvector_*.orig.tar.gz -C "$folder/pgvector" --strip-components=1
    # Without OPTFLAGS the library would be tuned to this processor, and fail on another that shares the folder.
    make -s -C "$folder/pgvector" PG_CONFIG="$folder/usr/lib/postgresql/$major/bin/pg_config" OPTFLAGS="" with_llvm=no \
        install >"$folder/pgvector.log" 2>&1 || { tail -20 "$folder/pgvector.log" >&2; exit 1; }
fi
rm -rf "$folder/apt" "$folder/packages" "$folder/pgvector"
touch "$folder/complete"
