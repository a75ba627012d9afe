#!/usr/bin/python3
"""Writes C++ that carries files: embed.py OUT.cc FILE..., see assets.h."""
import os
import sys


def literal(data):
    """`data` as the elements of a char array, 32 a line."""
    rows = [data[i : i + 32] for i in range(0, len(data), 32)]
    return ",\n".join(",".join(str(b - 256 if b > 127 else b) for b in row) for row in rows)


def main():
    out, files = sys.argv[1], sys.argv[2:]
    with open(out, "w", encoding="utf-8") as code:
        code.write('#include "controller/console/assets.h"\n\nnamespace ballast {\nnamespace {\n\n')
        rows = []
        for i, path in enumerate(files):
            with open(path, "rb") as f:
                data = f.read()
            code.write(f"constexpr char kFile{i}[] = {{\n{literal(data)}}};\n")
            rows.append(f'    {{"{os.path.basename(path)}", {{kFile{i}, sizeof(kFile{i})}}}},\n')
        code.write(f"constexpr Asset kAssets[] = {{\n{''.join(rows)}}};\n\n}}  // namespace\n\n")
        code.write("std::span<const Asset> ConsoleAssets() { return kAssets; }\n\n}  // namespace ballast\n")


main()
