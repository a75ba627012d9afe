#!/bin/bash
# Builds the programs and the targets given, and leaves links to the programs in bin/. bin/.bazel is Bazel's output
# folder of the default configuration, whatever was built last.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=(//controller:ballast-controller //worker:ballast-worker //controller/ctl:ballastctl)
bazel build "${programs[@]}" "$@"
mkdir -p bin
ln -sfn "$(bazel info bazel-bin)" bin/.bazel
for program in "${programs[@]}"; do
  path=${program#//}
  ln -sfn ".bazel/${path/://}" "bin/${path#*:}"
done
