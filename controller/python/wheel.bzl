"""The rule that makes the wheel: its file name says what platform it is for, which only the library tells."""

def _impl(ctx):
    folder = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        inputs = [ctx.file.tool, ctx.file.version_header, ctx.file.readme, ctx.file.license] + ctx.files.srcs,
        outputs = [folder],
        arguments = [ctx.file.tool.path, folder.path, ctx.file.version_header.path, ctx.file.readme.path, ctx.file.license.path] +
                    [f.path for f in ctx.files.srcs],
        command = 'exec /usr/bin/python3 "$@"',
        mnemonic = "Wheel",
    )
    return [DefaultInfo(files = depset([folder]), runfiles = ctx.runfiles([folder]))]

wheel = rule(
    implementation = _impl,
    doc = "A folder with one wheel: make_wheel.py's, of the files `srcs`.",
    attrs = {
        "srcs": attr.label_list(allow_files = True, mandatory = True),
        "license": attr.label(allow_single_file = True, mandatory = True),
        "readme": attr.label(allow_single_file = True, mandatory = True),
        "tool": attr.label(allow_single_file = True, mandatory = True),
        "version_header": attr.label(allow_single_file = True, mandatory = True),
    },
)
