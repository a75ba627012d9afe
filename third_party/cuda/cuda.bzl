"""cuda_library: .cu files compiled by nvcc into a library that cc_* rules depend on."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@cuda//:info.bzl", "CUDA_HOME", "CUDA_VERSION")

# Code that uses neither wgmma nor the tensor copy engine runs on all of these; the rest is for Hopper alone.
PORTABLE = ["80", "90a", "100a"]
HOPPER = ["90a"]

def _impl(ctx):
    if not CUDA_VERSION:
        fail("no nvcc in %s/bin: run .ci/setup.sh cuda (or set CUDA_HOME), then bazel shutdown" % CUDA_HOME)
    cc_toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = cc_toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    deps = [d[CcInfo] for d in ctx.attr.deps]
    headers = cc_common.merge_cc_infos(cc_infos = deps).compilation_context
    objects = []
    for src in ctx.files.srcs:
        if src.extension != "cu":
            continue
        object = ctx.actions.declare_file("_cuda/%s/%s.o" % (ctx.label.name, src.basename[:-len(".cu")]))
        args = ctx.actions.args()
        args.add_all(["-ccbin", "/usr/bin/g++", "-c", "-std=c++20", "--expt-relaxed-constexpr", "-lineinfo"])
        args.add_all(["-Xcompiler=-fPIC,-Wall,-Wno-unknown-pragmas", "-Werror=all-warnings"])
        args.add("-G" if ctx.var["COMPILATION_MODE"] == "dbg" else "-O3")
        for arch in ctx.attr.archs:
            args.add("-gencode=arch=compute_%s,code=sm_%s" % (arch, arch))
        args.add("-I.")
        args.add("-I" + ctx.bin_dir.path)
        args.add_all(headers.defines, before_each = "-D")
        args.add(src)
        args.add("-o", object)
        ctx.actions.run(
            executable = CUDA_HOME + "/bin/nvcc",
            arguments = [args],
            inputs = depset(ctx.files.srcs + ctx.files.hdrs, transitive = [headers.headers]),
            outputs = [object],
            # The version is there for the action's key.
            env = {"PATH": CUDA_HOME + "/bin:/usr/bin:/bin", "TMPDIR": "/tmp", "CUDA_VERSION": CUDA_VERSION},
            mnemonic = "CudaCompile",
            progress_message = "Compiling %s with nvcc" % src.short_path,
        )
        objects.append(object)
    linking_context = cc_common.create_linking_context_from_compilation_outputs(
        name = ctx.label.name,
        actions = ctx.actions,
        feature_configuration = features,
        cc_toolchain = cc_toolchain,
        compilation_outputs = cc_common.create_compilation_outputs(
            objects = depset(objects),
            pic_objects = depset(objects),
        ),
        disallow_dynamic_library = True,
    )[0]
    own = CcInfo(
        compilation_context = cc_common.create_compilation_context(headers = depset(ctx.files.hdrs)),
        linking_context = linking_context,
    )
    return [
        DefaultInfo(files = depset(objects)),
        cc_common.merge_cc_infos(direct_cc_infos = [own], cc_infos = deps),
    ]

_cuda_library = rule(
    implementation = _impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu", ".cuh", ".h"]),
        "hdrs": attr.label_list(allow_files = [".cuh", ".h"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "archs": attr.string_list(mandatory = True),
        "_cc_toolchain": attr.label(default = Label("@bazel_tools//tools/cpp:current_cc_toolchain")),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)

# Left out by wildcards, with all that depends on it, unless --config=cuda is given.
CUDA_ONLY = select({
    "//third_party/cuda:enabled": [],
    "//conditions:default": ["//third_party/cuda:disabled"],
})

def cuda_library(name, deps = [], **kwargs):
    """A library of .cu files.

    Args:
      name: the library's name.
      deps: libraries whose headers the sources include.
      **kwargs: srcs (.cu, and headers private to it), hdrs, visibility; archs: PORTABLE or HOPPER.
    """
    _cuda_library(
        name = name,
        target_compatible_with = CUDA_ONLY,
        deps = deps + ["@cuda//:cudart"],
        **kwargs
    )
