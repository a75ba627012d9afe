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

# The headers alone: programs open libnccl.so.2 when they first need it, and find this one where no other is given.
cc_library(
    name = "nccl",
    hdrs = glob(
        ["include/cccl/nv/**"],
        allow_empty = True,
    ),
    includes = ["include/cccl"],
    linkopts = [
        "-ldl",
        "-Wl,-rpath,%{HOME}/lib",
    ],
    deps = [":headers"],
)
