"""cc_test with what every test of this tree needs."""

def ballast_cc_test(name, deps = [], size = "small", **kwargs):
    """A GoogleTest cc_test with the sanitizers' options and gtest's main.

    Args:
      name: the test's name, NAME_test.
      deps: as for cc_test; gtest_main and sanitizer_defaults are added.
      size: Bazel's size; "small" is at most a minute.
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
