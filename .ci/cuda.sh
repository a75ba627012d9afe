#!/bin/bash
# Builds everything with the CUDA code, and runs the tests that need a GPU where there is one.
set -euo pipefail
cd "$(dirname "$0")/.."
bazel build --config=cuda //...
if [ -e /dev/nvidiactl ]; then
  bazel test --config=cuda --build_tests_only --test_tag_filters=gpu //...
else
  echo "cuda: no GPU here: the tests that need one are built and not run"
fi
