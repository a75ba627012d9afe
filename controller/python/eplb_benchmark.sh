#!/bin/bash
# Runs eplb_benchmark.py with the package of this tree; takes its options.
set -euo pipefail
if [ -z "${BALLAST_SHARED:-}" ] && [ -d ../shared ]; then export BALLAST_SHARED=$PWD/../shared; fi
runfiles=${RUNFILES_DIR:-$0.runfiles}
here=$runfiles/ballast/controller/python
package=$(mktemp -d)
trap 'rm -rf "$package"' EXIT
/usr/bin/python3 -m zipfile -e "$here"/wheel/*.whl "$package"
# -P: not the sources beside the script, which have no library.
PYTHONPATH=$package /usr/bin/python3 -P "$here/eplb_benchmark.py" --peers "$runfiles/system/peers" "$@"
