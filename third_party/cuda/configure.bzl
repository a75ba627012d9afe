"""The CUDA toolkit as an external repository: CUDA_HOME where that is set, else what .ci/setup.sh laid out."""

# The links to the pinned toolkit and cuBLAS, from the home folder.
_PINNED = "/.cache/ballast/tools/cuda"
_PINNED_CUBLAS = "/.cache/ballast/tools/cublas"

# UCX with CUDA, where there is a GPU.
_PINNED_UCX = "/.cache/ballast/tools/ucx/libucx"

def _impl(ctx):
    home = ctx.os.environ.get("CUDA_HOME", "") or ctx.os.environ.get("HOME", "/") + _PINNED

    # The real path names the pinned versions, so that another toolkit recompiles.
    nvcc = ctx.path(home + "/bin/nvcc")
    found = nvcc.exists
    home = str(ctx.path(home).realpath) if found else home
    version = ""
    if found:
        res = ctx.execute([home + "/bin/nvcc", "--version"])
        if res.return_code:
            fail("%s/bin/nvcc --version failed: %s" % (home, res.stderr))
        version = [w for w in res.stdout.replace("\n", " ").split(" ") if w.startswith("V")][0]
        ctx.symlink(home + "/include", "include")
        if ctx.path(home + "/lib/libnccl.so.2").exists:
            ctx.symlink(home + "/lib/libnccl.so.2", "lib/libnccl.so.2")

    # A whole toolkit has cuBLAS, the pinned one has it beside.
    cublas = home if ctx.path(home + "/include/cublasLt.h").exists else ctx.os.environ.get("HOME", "/") + _PINNED_CUBLAS
    if ctx.path(cublas + "/include/cublasLt.h").exists:
        cublas = str(ctx.path(cublas).realpath)
        ctx.symlink(cublas + "/include", "cublas")
    ctx.file("info.bzl", "CUDA_HOME = %r\nCUDA_VERSION = %r\n" % (home, version))
    ctx.template("BUILD", Label("//third_party/cuda:cuda.BUILD.tpl"), {
        "%{CUBLAS}": cublas,
        "%{HOME}": home,
        "%{UCX}": ctx.os.environ.get("HOME", "/") + _PINNED_UCX,
        "%{VERSION}": version,
    })

cuda_configure = repository_rule(
    implementation = _impl,
    local = True,
    configure = True,
    environ = ["CUDA_HOME", "HOME"],
)
