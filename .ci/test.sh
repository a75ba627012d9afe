#!/bin/bash
# What `make test` runs after the set-up: the checks, all tests, the tests tagged asan, ubsan and tsan under these
# sanitizers, and every fuzz target. LONG=1: their long forms. Goes on after a failure; the last line counts.
#
# Tests find data that is not in the tree through BALLAST_SHARED, ../shared where that is a folder. Without it they are
# skipped by name; with CI=true a skipped test is an error.
set -euo pipefail
cd "$(dirname "$0")/.."

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
outcomes=$results/outcomes # a line each: PASSED, FAILED or SKIPPED and a name
touch "$outcomes"

test_flags=(--keep_going --test_env=CI="${CI:-}" --test_env=LONG="${LONG:-}")
shared=${BALLAST_SHARED:-$(pwd)/../shared}
if [ -d "$shared" ]; then
  shared=$(realpath "$shared")
  test_flags+=(--test_env=BALLAST_SHARED="$shared")
fi

# Runs `bazel test` with "$2..." and notes the outcome of every case; $1 names the run.
bazel_tests() {
  local name=$1 status=0
  shift
  echo "== tests: $name"
  local start=$SECONDS
  bazel test "${test_flags[@]}" --build_event_json_file="$results/$name.json" "$@" || status=$?
  .ci/test_outcomes.py "$name" "$status" "$results/$name.json" >> "$outcomes"
  echo "== tests: $name took $((SECONDS - start)) s"
}

echo "== checks"
.ci/check.sh --outcomes "$outcomes" || true
# All CUDA code is compiled; its tests run where there is a GPU.
plain_flags=(--config=cuda)
[ -e /dev/nvidiactl ] || plain_flags+=(--test_tag_filters=-gpu)
bazel_tests plain "${plain_flags[@]}" //...
# Both in one build: what both sets of tests need is compiled once.
bazel_tests asan-ubsan --config=asan --config=ubsan --platform_suffix=asan-ubsan --build_tests_only --test_tag_filters=asan,ubsan //...
bazel_tests tsan --config=tsan --build_tests_only --test_tag_filters=tsan //...
bazel shutdown # the fuzz targets are built by another server
echo "== fuzz targets"
.ci/fuzz.sh --outcomes "$outcomes" "$([ "${LONG:-}" = 1 ] && echo 600 || echo 20)" || true

grep '^SKIPPED' "$outcomes" || true
grep '^FAILED' "$outcomes" || true
passed=$(grep -c '^PASSED' "$outcomes" || true)
failed=$(grep -c '^FAILED' "$outcomes" || true)
skipped=$(grep -c '^SKIPPED' "$outcomes" || true)
if [ "$skipped" != 0 ] && [ "${CI:-}" = true ]; then
  echo "with CI=true nothing may be skipped"
  failed=$((failed + skipped))
  skipped=0
fi
echo "took $((SECONDS / 60)) min $((SECONDS % 60)) s"
if [ "$skipped" = 0 ]; then
  echo "$passed passed, $failed failed"
else
  echo "$passed passed, $failed failed, $skipped skipped"
fi
[ "$failed" = 0 ]
