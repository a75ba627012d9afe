#!/bin/bash
# Runs fuzz targets under asan and ubsan: .ci/fuzz.sh [--outcomes FILE] [SECONDS_EACH [TARGET...]], 20 s and all
# targets by default. New inputs are thrown away; an input that fails is kept in fuzz-failures/ with the command that
# runs it again. --outcomes appends PASSED or FAILED and the target to FILE, a line each.
set -euo pipefail
cd "$(dirname "$0")/.."
outcomes=/dev/null
if [ "${1:-}" = --outcomes ]; then
  outcomes=$2
  shift 2
fi
seconds=${1:-20}
shift || true
# clang instead of gcc changes the toolchain's repository: an output base of its own keeps the other one warm.
bazel=(bazel --output_base="$HOME/.cache/ballast/fuzz-$(pwd | sha256sum | cut -c1-12)")
trap '"${bazel[@]}" shutdown' EXIT
if [ $# -gt 0 ]; then
  targets=("$@")
else
  # Not //...: to this output base the links bazel-* of the other one are folders full of packages.
  folders=()
  for folder in */; do
    if [ ! -L "${folder%/}" ] && [ -n "$(find "$folder" -name 'BUILD*' -print -quit)" ]; then
      folders+=("//$folder...")
    fi
  done
  found=$("${bazel[@]}" query --noshow_progress "attr(tags, '\\bfuzz\\b', set(${folders[*]}))") || {
    echo "FAILED fuzz: the targets cannot be listed" >> "$outcomes"
    exit 1
  }
  mapfile -t targets < <(grep . <<< "$found" || true)
fi
if [ ${#targets[@]} = 0 ]; then
  echo "fuzz: there is no fuzz target"
  exit 0
fi
"${bazel[@]}" build --config=fuzz --experimental_convenience_symlinks=ignore "${targets[@]}" || {
  echo "FAILED fuzz: the targets do not build" >> "$outcomes"
  exit 1
}
bin=$("${bazel[@]}" info --config=fuzz bazel-bin)
export ASAN_SYMBOLIZER_PATH=/usr/bin/llvm-symbolizer-16
failed=0
for target in "${targets[@]}"; do
  name=${target#*:}
  package=${target#//}
  work=$(mktemp -d)
  seeds=()
  if [ -d "testdata/fuzz/$name" ]; then seeds=("testdata/fuzz/$name"); fi
  if "$bin/${package%%:*}/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$work/failure-" \
    -print_final_stats=1 "$work" "${seeds[@]}" > "$work.log" 2>&1; then
    echo "PASSED fuzz $target" >> "$outcomes"
    echo "fuzz: PASSED $target: $(sed -n 's/.*number_of_executed_units: *//p' "$work.log") inputs in $seconds s"
  else
    failed=1
    tail -n 60 "$work.log"
    mkdir -p fuzz-failures
    for input in "$work"/failure-*; do
      if [ -e "$input" ]; then
        mv "$input" "fuzz-failures/$name-$(basename "$input")"
        echo "fuzz: input kept: $bin/${package%%:*}/$name fuzz-failures/$name-$(basename "$input")"
      fi
    done
    echo "FAILED fuzz $target" >> "$outcomes"
    echo "fuzz: FAILED $target"
  fi
  rm -rf "$work" "$work.log"
done
exit $failed
