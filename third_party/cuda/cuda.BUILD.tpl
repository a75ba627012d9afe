package(default_visibility = ["//visibility:public"])

# The folder is outside of the compiler's own search path, so the headers that host code includes are declared.
cc_library(
    name = "headers",
    hdrs = glob(
        [
            "include/*.h",
            "include/*.hpp",
            "include/crt/**",
        ],
        allow_empty = True,
    ),
    includes = ["include"],
)

cc_library(
    name = "cudart",
    linkopts = [
        "%{HOME}/lib64/libcudart_static.a",
        "-ldl",
        "-lrt",
        "-pthread",
    ],
    deps = [":headers"],
)

# What some of the headers include besides.
cc_library(
    name = "nv",
    hdrs = glob(
        ["include/cccl/nv/**"],
        allow_empty = True,
    ),
    includes = ["include/cccl"],
    deps = [":headers"],
)

# The headers alone: programs open libnccl.so.2 when they first need it, and find this one where no other is given.
cc_library(
    name = "nccl",
    linkopts = [
        "-ldl",
        "-Wl,-rpath,%{HOME}/lib",
    ],
    deps = [":nv"],
)

# The library itself, for images.
filegroup(
    name = "nccl_library",
    srcs = glob(
        ["lib/libnccl.so.2"],
        allow_empty = True,
    ),
)

# The headers alone, as of NCCL: programs open libcublasLt.so.13.
cc_library(
    name = "cublas_lt",
    hdrs = glob(
        ["cublas/cublas*.h"],
        allow_empty = True,
    ),
    includes = ["cublas"],
    linkopts = [
        "-ldl",
        "-Wl,-rpath,%{CUBLAS}/lib",
    ],
    deps = [":nv"],
)

# Programs that link @system//:ucx and this find the UCX with CUDA, where there is one, in place of Debian's.
cc_library(
    name = "ucx",
    linkopts = ["-Wl,-rpath,%{UCX}/lib"],
)
