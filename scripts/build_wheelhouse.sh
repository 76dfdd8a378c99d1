#!/usr/bin/env bash
# Makes a folder from which capt-local installs on machines without a network, for the Python that
# runs this (PYTHON=python3.12 takes another) and machines of this kind:
#
#   scripts/build_wheelhouse.sh -o /media/stick/capt-local --new-key hospital.key
#   scripts/build_wheelhouse.sh -o stick --key hospital.key --bundle our-trio
#
# --help lists the options; docs/airgap.md says what the folder holds and how it is used.
set -euo pipefail

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "error: Python 3.11 or newer is needed; name one as PYTHON=/path/to/python." >&2
    exit 1
}
project=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m scripts.wheelhouse "$@"
