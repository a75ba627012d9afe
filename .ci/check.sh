#!/bin/bash
# What `make check` runs after the set-up: every check, each with how to put right what it finds. Needs no network.
# --outcomes FILE appends PASSED or FAILED and the check's name to FILE, a line each.
set -euo pipefail
cd "$(dirname "$0")/.."
outcomes=/dev/null
if [ "${1:-}" = --outcomes ]; then outcomes=$2; fi
tools=$HOME/.cache/ballast/tools
failed=0

# check NAME "what it checks" "how to fix" COMMAND...
check() {
  local name=$1 what=$2 fix=$3
  shift 3
  echo "check: $name: $what"
  if "$@"; then
    echo "PASSED check $name" >> "$outcomes"
  else
    failed=1
    echo "check: $name FAILED. To fix: $fix"
    echo "FAILED check $name" >> "$outcomes"
  fi
}

format() { git ls-files -z '*.cc' '*.h' '*.cu' '*.cuh' | xargs -0 clang-format-14 --dry-run --Werror; }

# SC2317: functions that check() calls by name look unreachable.
shell() { git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck -e SC2317; }

proto_lint() { "$tools/python/bin/buf" lint proto; }

# Against every release: a client of the oldest one still has to work.
proto_compatibility() {
  local image
  for image in proto/released/*.binpb; do
    [ -e "$image" ] || continue
    echo "check: proto-compatibility: against $image"
    "$tools/python/bin/buf" breaking proto --against "$image" || return 1
  done
}

clang() {
  bazel build --config=cuda --keep_going --output_groups=clang_check --aspects=//third_party/bazel:clang_check.bzl%clang_check //...
}

# Prints what breaks "A never depends on B" and fails then. $1, $2: regular expressions of top folders.
no_dependency() {
  local users="kind('cc_(library|binary) rule', filter('^//($1)[/:]', //...))" found
  found=$(bazel query --noshow_progress --ui_event_filters=-info --noimplicit_deps --nohost_deps "deps($users) intersect filter('^//($2)[/:]', //...)") || return 1
  if [ -n "$found" ]; then
    printf '%s reaches %s: %s\n' "$1" "$2" "$found"
    return 1
  fi
}

layers() {
  no_dependency proto 'controller|worker|kernels|tests' && no_dependency kernels 'proto(?!/base)|controller|worker|tests' &&
    no_dependency controller 'worker|kernels|tests' && no_dependency worker 'controller|tests'
}

dashboards() {
  dashboards/generate.py --check && promtool check rules dashboards/generated/rules.yaml &&
    promtool test rules dashboards/generated/rules_test.yaml
}

check format "C++ is formatted as .clang-format says" "clang-format-14 -i FILE" format
check style "header guards, white space, the list of Debian packages" "see each line" .ci/check_style.py
check docs "links and paths in the pages lead somewhere" "correct the page, or the path it names" .ci/check_docs.py
check dashboards "every metric of the table is shown, dashboards/generated is up to date, alerts fire when they should" \
  "run dashboards/generate.py, and see each line" dashboards
check api-reference "docs/api.md is what the protos say" "run docs/make_api.py" docs/make_api.py --check
check shell "shellcheck on the scripts (warnings and style)" "see the SC number's wiki page" shell
check chart "the Helm chart: lint, kubeconform, a comment on each value" "see each line" .ci/check_chart.py
check proto-lint "buf's standard rules on proto/" "see each line; exceptions are in proto/buf.yaml" proto_lint
check proto-compatibility "proto/ still serves clients of the releases in proto/released/" \
  "add fields and messages instead of changing or reusing them; reserve what goes" proto_compatibility
check layers "proto <- controller, proto <- worker -> kernels, and no other way (proto/base is below all)" \
  "move what both need into proto/base or proto/placement" layers
check clang "clang's warnings and thread-safety analysis on all C++" \
  "see each line; lock annotations are in proto/base/mutex.h" clang
exit $failed
