"""An aspect that runs clang's warnings and thread-safety analysis over the sources of cc targets.

  bazel build --aspects=//third_party/bazel:clang_check.bzl%clang_check --output_groups=clang_check //...

One cached action a source file. gcc builds the tree; clang alone checks lock annotations (proto/base/mutex.h).
"""

# Debian's package clang-16; clang-14 lacks parts of C++20 that gcc 12 has.
_CLANG = "/usr/bin/clang++-16"

_FLAGS = [
    "-fsyntax-only",
    "-std=c++20",
    "-Werror",
    "-Wall",
    "-Wextra",
    "-Wthread-safety",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    # Pragmas and options that only gcc knows.
    "-Wno-unknown-pragmas",
    "-Wno-unknown-warning-option",
    "-Wno-ignored-optimization-argument",
]

def _impl(target, ctx):
    if CcInfo not in target or target.label.workspace_name or not hasattr(ctx.rule.attr, "srcs"):
        return []
    context = target[CcInfo].compilation_context
    stamps = []
    copts = [ctx.expand_make_variables("copts", o, {}) for o in getattr(ctx.rule.attr, "copts", [])]
    for src in [f for s in ctx.rule.attr.srcs for f in s.files.to_list()]:
        if src.extension not in ["cc", "cpp"] or not src.is_source:
            continue
        stamp = ctx.actions.declare_file("%s.%s.clang_check" % (target.label.name, src.basename))
        args = ctx.actions.args()
        args.add_all(_FLAGS)
        args.add_all(copts)
        args.add_all(context.defines, before_each = "-D")
        args.add_all(context.local_defines, before_each = "-D")
        args.add_all(context.quote_includes, before_each = "-iquote")
        args.add_all(context.includes, before_each = "-isystem")
        args.add_all(context.system_includes, before_each = "-isystem")
        args.add(src)
        ctx.actions.run_shell(
            outputs = [stamp],
            inputs = depset(
                [src] + [f for s in ctx.rule.attr.srcs for f in s.files.to_list() if f.extension in ["h", "inc"]],
                transitive = [context.headers],
            ),
            arguments = [stamp.path, args],
            command = "stamp=$1; shift; [ -x %s ] || { echo 'missing: apt-get install clang-16' >&2; exit 1; }; %s \"$@\" && touch $stamp" % (_CLANG, _CLANG),
            mnemonic = "ClangCheck",
            progress_message = "Analysing %s with clang" % src.short_path,
        )
        stamps.append(stamp)
    return [OutputGroupInfo(clang_check = depset(stamps))]

clang_check = aspect(implementation = _impl)
