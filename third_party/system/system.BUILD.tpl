package(default_visibility = ["//visibility:public"])

exports_files(["bin/protoc", "bin/grpc_cpp_plugin", "versions.txt"])

config_setting(
    name = "link_static",
    define_values = {"link": "static"},
)

config_setting(
    name = "link_full_static",
    define_values = {"link": "full_static"},
)

_GRPC_STATIC = ["-Wl,--start-group"] + [%{GRPC_STATIC}] + ["-Wl,--end-group", "-ldl", "-lrt", "-pthread"]

_UCX_STATIC = [
    "-Wl,--whole-archive",
    "-l:libucp.a",
    "-l:libuct.a",
    "-l:libucs.a",
    "-l:libucm.a",
    "-Wl,--no-whole-archive",
    "-l:libnuma.a",
    "-lm",
    "-ldl",
    "-lrt",
    "-pthread",
]

cc_library(
    name = "versions",
    hdrs = ["system_versions.h"],
    linkopts = ["-L/nonexistent/system-%{HASH}"],
)

cc_library(
    name = "protobuf",
    linkopts = select({
        ":link_static": ["-l:libprotobuf.a", "-l:libz.a", "-pthread"],
        ":link_full_static": ["-l:libprotobuf.a", "-l:libz.a", "-pthread"],
        "//conditions:default": ["-lprotobuf", "-pthread"],
    }),
    deps = [":versions"],
)

cc_library(
    name = "grpc++",
    linkopts = select({
        ":link_static": _GRPC_STATIC,
        ":link_full_static": _GRPC_STATIC,
        "//conditions:default": ["-lgrpc++", "-lgrpc", "-lgpr", "-lprotobuf", "-labsl_synchronization", "-labsl_strings", "-pthread"],
    }),
    deps = [":versions"],
)

# The reflection plugin registers itself in a static initializer: keep the whole library.
cc_library(
    name = "grpc++_reflection",
    linkopts = select({
        ":link_static": ["-Wl,--whole-archive", "-l:libgrpc++_reflection.a", "-Wl,--no-whole-archive"],
        ":link_full_static": ["-Wl,--whole-archive", "-l:libgrpc++_reflection.a", "-Wl,--no-whole-archive"],
        "//conditions:default": ["-Wl,--push-state,--no-as-needed", "-lgrpc++_reflection", "-Wl,--pop-state"],
    }),
    deps = [":grpc++"],
)

_ABSL_STATIC = ["-Wl,--start-group"] + [%{ABSL_STATIC}] + ["-Wl,--end-group", "-pthread"]

cc_library(
    name = "absl",
    linkopts = select({
        ":link_static": _ABSL_STATIC,
        ":link_full_static": _ABSL_STATIC,
        "//conditions:default": ["-Wl,--push-state,--as-needed", %{ABSL}, "-Wl,--pop-state", "-pthread"],
    }),
    deps = [":versions"],
)

# Not part of this tree and never copied into it: see .ci/peers.py.
filegroup(
    name = "peers",
    srcs = glob(["peers/**"]),
)

# Node.js, and the npm packages of tests/web/package-lock.json; what tests of web pages run with.
filegroup(
    name = "web",
    srcs = glob(
        [
            "web/node/bin/node",
            "web/node_modules/**",
        ],
    ),
)

# Programs from Go modules, for tests.
filegroup(
    name = "grpcurl",
    srcs = glob(["go/bin/grpcurl"]),
)

filegroup(
    name = "helm",
    srcs = glob(["go/bin/helm"]),
)

# With the resource definitions that it is given, and the schemas that the chart is checked against elsewhere.
filegroup(
    name = "kube_apiserver",
    srcs = glob([
        "go/bin/kube-apiserver",
        "go/crds/**",
        "go/openapi/**",
    ]),
)

# Abseil inside a shared library. Last among its deps, after what uses it: what the archive defines, the shared libraries
# of :absl, which are linked as needed and after all archives, are not needed for.
cc_library(
    name = "absl_pic",
    srcs = [%{PIC_ABSL}],
    deps = [":versions"],
)

cc_library(
    name = "gtest",
    testonly = True,
    linkopts = ["-l:libgmock.a", "-l:libgtest.a", "-pthread"],
    deps = [":versions"],
)

cc_library(
    name = "gtest_main",
    testonly = True,
    linkopts = ["-l:libgmock_main.a"],
    deps = [":gtest"],
)

cc_library(
    name = "benchmark",
    linkopts = ["-lbenchmark", "-pthread"],
    deps = [":versions"],
)

# Debian has no static prometheus-cpp and no static civetweb.
cc_library(
    name = "prometheus_cpp",
    linkopts = ["-lprometheus-cpp-pull", "-lprometheus-cpp-core"],
    deps = [":versions"],
)

cc_library(
    name = "ucx",
    # All four archives whole: their constructors set the configuration's defaults.
    linkopts = select({
        ":link_static": _UCX_STATIC,
        ":link_full_static": _UCX_STATIC,
        "//conditions:default": ["-lucp", "-luct", "-lucs", "-lucm"],
    }),
    deps = [":versions"],
)

# OpenSSL's libssl, for what gRPC's own TLS does not say.
cc_library(
    name = "ssl",
    linkopts = select({
        ":link_static": ["-l:libssl.a"],
        ":link_full_static": ["-l:libssl.a"],
        "//conditions:default": ["-lssl"],
    }),
    deps = [":crypto"],
)

# OpenSSL's libcrypto.
cc_library(
    name = "crypto",
    linkopts = select({
        ":link_static": ["-l:libcrypto.a", "-ldl", "-pthread"],
        ":link_full_static": ["-l:libcrypto.a", "-ldl", "-pthread"],
        "//conditions:default": ["-lcrypto"],
    }),
    deps = [":versions"],
)

cc_library(
    name = "sqlite3",
    linkopts = select({
        ":link_static": ["-l:libsqlite3.a", "-lm", "-ldl", "-pthread"],
        ":link_full_static": ["-l:libsqlite3.a", "-lm", "-ldl", "-pthread"],
        "//conditions:default": ["-lsqlite3"],
    }),
    deps = [":versions"],
)

cc_library(
    name = "yaml_cpp",
    linkopts = select({
        ":link_static": ["-l:libyaml-cpp.a"],
        ":link_full_static": ["-l:libyaml-cpp.a"],
        "//conditions:default": ["-lyaml-cpp"],
    }),
    deps = [":versions"],
)

cc_library(
    name = "nlohmann_json",
    deps = [":versions"],
)

# Header-only.
cc_library(
    name = "cli11",
    deps = [":versions"],
)

# Header-only: #include <eigen3/Eigen/...>.
cc_library(
    name = "eigen",
    hdrs = ["eigen_version.h"],
)

# Header-only: Asio and Beast. Asio's TLS wants :ssl beside it.
cc_library(
    name = "boost",
    hdrs = ["boost_version.h"],
    linkopts = ["-pthread"],
)

cc_library(
    name = "xxhash",
    linkopts = select({
        ":link_static": ["-l:libxxhash.a"],
        ":link_full_static": ["-l:libxxhash.a"],
        "//conditions:default": ["-lxxhash"],
    }),
    deps = [":versions"],
)

# oneDNN.
cc_library(
    name = "dnnl",
    linkopts = ["-ldnnl"],
    deps = [":versions"],
)

cc_library(
    name = "zlib",
    linkopts = select({
        ":link_static": ["-l:libz.a"],
        ":link_full_static": ["-l:libz.a"],
        "//conditions:default": ["-lz"],
    }),
    deps = [":versions"],
)

# In the runfiles of every test under --config=tsan, whose LD_LIBRARY_PATH names its folder.
genrule(
    name = "tsan_absl",
    srcs = glob(["%{TSAN_ABSL}"]),
    outs = ["tsan_libs/libabsl_synchronization.so.20220623"],
    cmd = "if [ -z '$(SRCS)' ]; then echo 'run .ci/setup.sh test, then bazel shutdown: absl for TSan is missing' >&2; exit 1; fi; cp $(SRCS) $@",
)

cc_library(
    name = "re2",
    linkopts = select({
        ":link_static": ["-l:libre2.a", "-pthread"],
        ":link_full_static": ["-l:libre2.a", "-pthread"],
        "//conditions:default": ["-lre2"],
    }),
    deps = [":versions"],
)

# NFC.
cc_library(
    name = "utf8proc",
    linkopts = select({
        ":link_static": ["-l:libutf8proc.a"],
        ":link_full_static": ["-l:libutf8proc.a"],
        "//conditions:default": ["-lutf8proc"],
    }),
    deps = [":versions"],
)
