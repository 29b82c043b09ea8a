# Sourced, not run: Debian's packages into $folder, without root and without installing them.
for command in apt-get dpkg; do
    command -v "$command" >/dev/null || { echo "$0: needs $command, found only on Debian and its kin" >&2; exit 1; }
done

# apt with state of its own, so that the machine's stays as it is.
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/packages"
options=(-qq -o "Dir::State=$folder/apt" -o "Dir::State::status=/var/lib/dpkg/status" -o "Dir::Cache=$folder/apt")
options+=(-o Acquire::http::Timeout=20 -o "APT::Sandbox::User=$(id -un)")
apt() { local command=$1; shift; "apt-$command" "${options[@]}" "$@"; }

fetch() {  # downloads packages and unpacks them
    (cd "$folder/packages" && apt get download "$@")
    for file in "$folder"/packages/*.deb; do dpkg -x "$file" "$folder"; done
    rm -f "$folder"/packages/*.deb
}
