#!/bin/bash
# wheel_test.sh FOLDER_WITH_A_WHEEL TEST.py...: see ballast_wheel_test in third_party/bazel/ballast.bzl.
set -euo pipefail
wheel=$1
shift
venv=$TEST_TMPDIR/venv
/usr/bin/python3 -m venv --system-site-packages "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps "$wheel"/*.whl
# -I: neither the current folder nor PYTHONPATH, so that nothing but the wheel can be imported.
exec "$venv/bin/python" -I -m pytest -p no:cacheprovider --junitxml="$XML_OUTPUT_FILE" -q "$@"
