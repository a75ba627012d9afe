#!/bin/bash
# web_test.sh NAME=PATH... TEST.cjs...: see ballast_web_test in third_party/bazel/ballast.bzl.
set -euo pipefail
tests=()
for argument in "$@"; do
  case $argument in
  *=*) export "${argument%%=*}=$PWD/${argument#*=}" ;;
  *) tests+=("$argument") ;;
  esac
done
web=$PWD/../system/web
if [ ! -x "$web/node/bin/node" ]; then
  echo "Node.js is missing: run .ci/setup.sh" >&2
  exit 1
fi
# Chromium and fontconfig keep files at home.
export HOME=$TEST_TMPDIR NODE_PATH=$web/node_modules
exec "$web/node/bin/node" --test --test-concurrency=1 --test-reporter=spec --test-reporter-destination=stdout \
  --test-reporter=junit --test-reporter-destination="$XML_OUTPUT_FILE" "${tests[@]}"
