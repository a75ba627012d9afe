#!/bin/bash
# Makes the Python package and the C library: a wheel in bin/python, libballast_planner.so and its header in bin/.
set -euo pipefail
cd "$(dirname "$0")/.."
bazel build //controller/python:wheel //controller/capi:libballast_planner.so
bin=$(bazel info bazel-bin)
mkdir -p bin/python
rm -f bin/python/*.whl
install -m 644 "$bin"/controller/python/wheel/*.whl bin/python/
install -m 644 "$bin/controller/capi/libballast_planner.so" controller/capi/ballast_planner.h bin/
wheel=$(ls bin/python/*.whl)
case $wheel in
*manylinux*) ;;
*)
  echo "python: $wheel would run on this machine only: the library needs more than glibc" >&2
  exit 1
  ;;
esac
echo "made $wheel; install it by: pip install $wheel"
