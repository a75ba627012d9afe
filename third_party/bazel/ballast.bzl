"""cc_test with what every test of this tree needs."""

def ballast_cc_test(name, deps = [], size = "small", **kwargs):
    """A GoogleTest cc_test with the sanitizers' options and gtest's main.

    Args:
      name: the test's name, NAME_test.
      deps: as for cc_test; gtest_main and sanitizer_defaults are added.
      size: Bazel's size: how long it takes; .bazelrc has the limits.
      **kwargs: passed to cc_test.
    """
    native.cc_test(
        name = name,
        size = size,
        deps = deps + [
            "//third_party/sanitizers:sanitizer_defaults",
            "@system//:gtest_main",
        ],
        **kwargs
    )

def ballast_cc_fuzz_test(name, srcs, deps = [], data = [], size = "small", tags = [], **kwargs):
    """A fuzz target, and a test that replays its corpus.

    The sources define LLVMFuzzerTestOneInput and abort (BALLAST_CHECK) when a property does not hold. The corpus is
    the folder testdata/fuzz/NAME. Makes NAME_test, an ordinary GoogleTest with one case a corpus file, and NAME, the
    libFuzzer binary under asan and ubsan, which .ci/fuzz.sh builds with clang and runs.

    Args:
      name: the target's name, ..._fuzz.
      srcs: the sources, ..._fuzz.cc.
      deps: as for cc_test.
      data: as for cc_test; the fuzzer itself runs at the tree's root.
      size: Bazel's size of the replaying test.
      tags: tags of the replaying test.
      **kwargs: passed to both.
    """
    native.cc_test(
        name = name + "_test",
        srcs = srcs,
        args = ["testdata/fuzz/" + name],
        data = data + ["//testdata/fuzz:corpora"],
        size = size,
        tags = tags,
        deps = deps + [
            "//third_party/fuzz:replay_main",
            "//third_party/sanitizers:sanitizer_defaults",
        ],
        **kwargs
    )
    native.cc_binary(
        name = name,
        testonly = True,
        srcs = srcs,
        linkopts = ["-fsanitize=fuzzer"],
        # manual: only clang has libFuzzer, so wildcards leave it out.
        tags = ["fuzz", "manual"],
        deps = deps,
        **kwargs
    )

def ballast_wheel_test(name, srcs, wheel, data = [], size = "small", **kwargs):
    """A pytest of a Python package as its users have it: installed from its wheel.

    The wheel is installed by pip, without a network, into a fresh virtual environment, which sees Debian's Python
    packages (NumPy, PyTorch, pytest) beside it and nothing of this tree.

    Args:
      name: the test's name, ..._test.
      srcs: the files that pytest runs.
      wheel: the target whose one output is a folder with one wheel.
      data: as for sh_test.
      size: Bazel's size.
      **kwargs: passed to sh_test.
    """
    native.sh_test(
        name = name,
        srcs = ["//third_party/python:wheel_test.sh"],
        args = ["$(rootpath %s)" % wheel] + ["$(rootpath %s)" % src for src in srcs],
        data = srcs + data + [wheel],
        size = size,
        **kwargs
    )

def ballast_web_test(name, srcs, files = {}, data = [], size = "medium", **kwargs):
    """A test of web pages: scripts that Node.js' own test runner runs, each test() in them a case.

    They are CommonJS (.cjs) and require the npm packages of tests/web/package-lock.json; tests/web/browser.cjs opens a
    browser.

    Args:
      name: the test's name, ..._test.
      srcs: the scripts.
      files: environment variable -> target whose one output's absolute path it names.
      data: as for sh_test.
      size: Bazel's size.
      **kwargs: passed to sh_test.
    """
    native.sh_test(
        name = name,
        srcs = ["//third_party/web:web_test.sh"],
        args = ["%s=$(rootpath %s)" % item for item in files.items()] + ["$(rootpath %s)" % src for src in srcs],
        data = srcs + data + files.values() + [
            "//tests/web:browser",
            "@system//:web",
        ],
        size = size,
        **kwargs
    )
