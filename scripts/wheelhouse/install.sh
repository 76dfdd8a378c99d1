#!/bin/sh
# Installs capt-local from this folder, without a network and without a compiler. README.md beside
# this file says what is here and how to check it before it runs.
#
#   sh install.sh [--to DIR] [--fingerprint HEX] [--program-only] [--allow-older]
#
# All it does is to find the Python that the wheels are for; PYTHON=/path/to/python names one.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)

fail() {
    echo "error: $1" >&2
    exit 1
}

for file in python-version install.py; do
    [ -r "$here/$file" ] || fail "$file is missing: copy the whole folder again."
done
read -r want < "$here/python-version" || [ -n "$want" ] || fail "python-version is empty: copy the whole folder again."

# -I: nothing of this user's Python. The prefix: nothing that was compiled and left on the stick.
begin() { python=$1; shift; exec "$python" -I -B -X pycache_prefix=/dev/null "$here/install.py" "$@"; }

version() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || :; }

if [ -n "${PYTHON:-}" ]; then
    found=$(version "$PYTHON")
    [ "$found" = "$want" ] ||
        fail "the wheels are for Python $want, and PYTHON=$PYTHON is ${found:-no Python that runs}."
    begin "$PYTHON" "$@"
fi
others=
for python in "python$want" python3 python; do
    found=$(version "$python")
    [ "$found" != "$want" ] || begin "$python" "$@"
    [ -z "$found" ] || others=" (here is $found)"
done
fail "the wheels are for Python $want, which was not found$others. Install it, name it as PYTHON=/path/to/python$want, or make a wheelhouse with the Python of this machine."
