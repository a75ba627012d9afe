#!/bin/bash
# Runs every benchmark (binaries tagged "benchmark") one after another: a table on the terminal, JSON in bench-results/.
set -euo pipefail
cd "$(dirname "$0")/.."
found=$(bazel query --noshow_progress "attr(tags, '\\bbenchmark\\b', //...)")
mapfile -t targets < <(grep . <<< "$found" || true)
if [ ${#targets[@]} = 0 ]; then
  echo "bench: there is no benchmark"
  exit 0
fi
bazel build "${targets[@]}"
bin=$(bazel info bazel-bin)
mkdir -p bench-results
for target in "${targets[@]}"; do
  path=${target#//}
  echo "== $target"
  "$bin/${path/://}" --benchmark_out="bench-results/${path//[:\/]/-}.json" --benchmark_out_format=json
done
