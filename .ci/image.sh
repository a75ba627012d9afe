#!/bin/bash
# Makes the container images named (controller, worker, worker-cuda) as an OCI image layout, bin/images/oci, with their bills of
# materials and a values file for the chart beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
images=("$@")
[ ${#images[@]} != 0 ] || { echo "image: error: no image named: controller, worker or worker-cuda" >&2; exit 1; }
tools=$HOME/.cache/ballast/tools
programs=$(mktemp -d)
trap 'rm -rf "$programs"' EXIT

# bazel_build FLAG... LABEL: the last one's output is copied to where the next build does not replace it, named $image.
bazel_build() {
  local target=${*: -1}
  bazel build "$@"
  local path=${target#//}
  install -m 755 "$(bazel info bazel-bin)/${path/://}" "$programs/$image"
}

flags=()
for image in "${images[@]}"; do
  case $image in
  controller) bazel_build //controller:ballast-controller.stripped ;;
  worker) bazel_build //worker:ballast-worker.stripped ;;
  worker-cuda)
    bazel_build --config=cuda //worker:ballast-worker.stripped
    # What the worker opens when it runs; all else of CUDA is in it.
    flags+=(--cuda-library "$tools/cuda/lib/libnccl.so.2" --cuda-library "$tools/cublas-run/lib/libcublasLt.so.13")
    flags+=(--cuda-pins .ci/cuda-requirements.txt --cuda-pins .ci/cublas-requirements.txt)
    ;;
  *)
    echo "image: error: no image '$image': controller, worker or worker-cuda" >&2
    exit 1
    ;;
  esac
  flags+=("--$image" "$programs/$image")
done
image=ballastctl
bazel_build //deploy/image:controller_dependencies //deploy/image:worker_dependencies //controller/ctl:ballastctl.stripped

version=$(sed -n 's/.*kVersion\[\] = "\(.*\)".*/\1/p' proto/base/version.h)
revision=$(git rev-parse HEAD)
[ -z "$(git status --porcelain)" ] || revision=$revision-dirty
deploy/image/make_image.py "${flags[@]}" --ballastctl "$programs/ballastctl" --dependencies "$(bazel info bazel-bin)/deploy/image" \
  --version "$version" --revision "$revision" \
  --created "$(git log -1 --format=%ct)" --out bin/images
name=ballast-${images[0]}:$version
echo "image: to push one: skopeo copy --preserve-digests oci:bin/images/oci:$name docker://REGISTRY/$name"
