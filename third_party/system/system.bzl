"""The libraries of Debian's packages, as one external repository, @system."""

# apt package -> the file that proves it is there
_PACKAGES = {
    "libgrpc++-dev": "/usr/include/grpcpp/grpcpp.h",
    "protobuf-compiler": "/usr/bin/protoc",
    "protobuf-compiler-grpc": "/usr/bin/grpc_cpp_plugin",
    "libprotobuf-dev": "/usr/include/google/protobuf/message.h",
    "libgtest-dev": "/usr/include/gtest/gtest.h",
    "libgmock-dev": "/usr/include/gmock/gmock.h",
    "libbenchmark-dev": "/usr/include/benchmark/benchmark.h",
    "prometheus-cpp-dev": "/usr/include/prometheus/exposer.h",
    "libucx-dev": "/usr/include/ucp/api/ucp.h",
    "libnuma-dev": "/usr/include/numa.h",
    "libssl-dev": "/usr/include/openssl/hmac.h",
    "libsqlite3-dev": "/usr/include/sqlite3.h",
    "libyaml-cpp-dev": "/usr/include/yaml-cpp/yaml.h",
    "nlohmann-json3-dev": "/usr/include/nlohmann/json.hpp",
    "libcli11-dev": "/usr/include/CLI/CLI.hpp",
    "libxxhash-dev": "/usr/include/xxhash.h",
    "libdnnl-dev": "/usr/include/oneapi/dnnl/dnnl.hpp",
    "libre2-dev": "/usr/include/re2/re2.h",
    "libutf8proc-dev": "/usr/include/utf8proc.h",
    "zlib1g-dev": "/usr/include/zlib.h",
}

# The same for what few targets use: with a stamp of its own, a change of it rebuilds these alone.
_EIGEN = {
    "libeigen3-dev": "/usr/include/eigen3/Eigen/Core",
}

_BOOST = {
    "libboost1.74-dev": "/usr/include/boost/beast/http.hpp",
}

# absl's locks instrumented for ThreadSanitizer, from the home folder.
_TSAN_ABSL = "/.cache/ballast/tools/tsan-absl/libabsl_synchronization.so.20220623"

# Modules of other projects' packages that tests and benchmarks compare with.
_PEERS = "/.cache/ballast/tools/peers"

# Node.js and npm packages that drive a browser in tests of web pages.
_WEB = "/.cache/ballast/tools/web"

# Programs from Go modules: .ci/go.
_GO = "/.cache/ballast/tools/go"

# Position-independent Abseil for shared libraries that carry it.
_PIC_ABSL = "/.cache/ballast/tools/pic-absl/libabsl_pic.a"

def _impl(ctx):
    missing = [p for p, f in _PACKAGES.items() + _EIGEN.items() + _BOOST.items() if not ctx.path(f).exists]
    if missing:
        fail("missing Debian packages: apt-get install -y --no-install-recommends " + " ".join(missing))

    # An upgraded package must rebuild its users, though its files are no declared inputs: a hash of the
    # versions is in a header (compilations) and in a harmless -L (links).
    res = ctx.execute(["dpkg-query", "-W", "-f", "${Package} ${Version}\n"] + _PACKAGES.keys())
    if res.return_code:
        fail(res.stderr)
    ctx.file("versions.txt", res.stdout)
    hexver = "".join([c for c in str(hash(res.stdout)).elems() if c.isdigit()])
    ctx.file("system_versions.h", "#define SYSTEM_LIBRARIES_HASH " + hexver + "\n")

    res = ctx.execute(["dpkg-query", "-W", "-f", "${Version}"] + _EIGEN.keys())
    if res.return_code:
        fail(res.stderr)
    ctx.file("eigen_version.h", "#define SYSTEM_EIGEN_VERSION \"" + res.stdout + "\"\n")

    res = ctx.execute(["dpkg-query", "-W", "-f", "${Version}"] + _BOOST.keys())
    if res.return_code:
        fail(res.stderr)
    ctx.file("boost_version.h", "#define SYSTEM_BOOST_VERSION \"" + res.stdout + "\"\n")

    ctx.symlink("/usr/bin/protoc", "bin/protoc")
    ctx.symlink("/usr/bin/grpc_cpp_plugin", "bin/grpc_cpp_plugin")

    # What a static gRPC needs, in pkg-config's own words.
    res = ctx.execute(["pkg-config", "--libs-only-l", "--static", "grpc++", "protobuf", "libcares", "re2"])
    if res.return_code:
        fail(res.stderr)
    seen = {}
    for word in res.stdout.split(" "):
        word = word.strip()
        if word.startswith("-labsl_") or word in [
            "-lgrpc++",
            "-lgrpc",
            "-lgpr",
            "-laddress_sorting",
            "-lupb",
            "-lre2",
            "-lcares",
            "-lz",
            "-lssl",
            "-lcrypto",
            "-lprotobuf",
        ]:
            seen["-l:lib" + word[2:] + ".a"] = True

    # Every absl library, and the linker keeps those that are used: its split into libraries is nobody's contract.
    res = ctx.execute(["pkg-config", "--list-package-names"])
    if res.return_code:
        fail(res.stderr)
    modules = [m for m in res.stdout.split("\n") if m.startswith("absl_")]
    res = ctx.execute(["pkg-config", "--libs-only-l"] + modules)
    if res.return_code:
        fail(res.stderr)
    absl = {w.strip()[2:]: True for w in res.stdout.split(" ") if w.strip().startswith("-labsl_")}

    # Made by the set-up script; only --config=tsan needs it, and says so when it is missing.
    tsan_absl = ctx.path(ctx.os.environ.get("HOME", "/") + _TSAN_ABSL)
    if tsan_absl.exists:
        ctx.symlink(tsan_absl, "tsan/" + tsan_absl.basename)

    # Made by the set-up script, for make python and make test. Without it shared libraries need Debian's Abseil where
    # they run.
    pic_absl = ctx.path(ctx.os.environ.get("HOME", "/") + _PIC_ABSL)
    if pic_absl.exists:
        ctx.symlink(pic_absl, "pic/libabsl_pic.a")

    # Made by the set-up script; tests that miss them say so.
    peers = ctx.path(ctx.os.environ.get("HOME", "/") + _PEERS)
    if peers.exists:
        ctx.symlink(peers, "peers")
    web = ctx.path(ctx.os.environ.get("HOME", "/") + _WEB)
    if web.exists:
        ctx.symlink(web, "web")
    go = ctx.path(ctx.os.environ.get("HOME", "/") + _GO)
    if go.exists:
        ctx.symlink(go, "go")
    ctx.template("BUILD", Label("//third_party/system:system.BUILD.tpl"), {
        "%{TSAN_ABSL}": "tsan/" + tsan_absl.basename,
        "%{PIC_ABSL}": ", ".join(["\"pic/libabsl_pic.a\""] if pic_absl.exists else []),
        "%{ABSL}": ", ".join(["\"-l%s\"" % a for a in absl]),
        "%{ABSL_STATIC}": ", ".join(["\"-l:lib%s.a\"" % a for a in absl]),
        "%{HASH}": hexver,
        "%{GRPC_STATIC}": ", ".join(["\"%s\"" % a for a in seen]),
    })

system_libraries = repository_rule(
    implementation = _impl,
    local = True,
    configure = True,
    environ = ["HOME", "PATH"],
)
