#!/bin/bash
# Builds what the planner's shared library needs of Abseil as one archive, libabsl_pic.a, from Debian's source package,
# into $1. Debian's own archives are not position-independent (thread-locals of the local-exec model), so no shared
# library can contain them.
set -euo pipefail
out=${1:?folder to install into}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
"$here/abseil_source.sh" "$work"
cd "$work"
# Without NDEBUG, as Debian builds it.
cmake -S src -B build -G Ninja -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_STANDARD=17 -DCMAKE_POSITION_INDEPENDENT_CODE=ON \
  -DCMAKE_CXX_FLAGS="-O2 -g0 -fvisibility=hidden"
ninja -C build status statusor strings
find build -name '*.o' -print0 | sort -z | xargs -0 ar qcsD "$out/libabsl_pic.a"
