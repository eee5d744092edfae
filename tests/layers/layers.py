#!/usr/bin/env python3
"""No file includes upward, and nothing below the server prints or knows of libuv and libmicrohttpd.

base < kernels < engine < sched < server < main. Includes of ours are written relative to src/. TAP on stdout.
"""
import pathlib
import re
import sys

LAYERS = ["base", "kernels", "engine", "sched", "server", "main"]
SUFFIXES = {".c", ".h", ".cu", ".cuh", ".inc"}
# The folders that must build on a machine that has neither library.
NO_SERVER_LIBRARIES = {"base", "kernels", "engine", "sched"}
SERVER_LIBRARIES = re.compile(r'#\s*include\s*<(uv\.h|uv/.*|microhttpd\.h)>')
OURS = re.compile(r'^\s*#\s*include\s*"([^"]+)"')
PRINTS = re.compile(r'(?<![\w.>])(printf|puts|putchar|perror|fputs|fprintf|vfprintf|fwrite)\s*\(([^;]*)')
# ts_assert_failed is a bug's last word before abort(); the log is how the server and main print.
MAY_PRINT = {"base/error.c", "base/log.c"}


def layer_of(path):
    return path.parts[0] if len(path.parts) > 1 else "main"


def without_comments(text):
    keep = lambda m: re.sub(r"[^\n]", " ", m.group(0)) if m.group(0).startswith("/") else m.group(0)
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', keep, text, flags=re.S)


def complaints(src, path):
    relative = path.relative_to(src)
    layer = layer_of(relative)
    if layer not in LAYERS:
        return [f"{relative}: in no layer"]
    found = []
    text = without_comments(path.read_text())
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{relative}:{number}"
        include = OURS.match(line)
        if include:
            target = pathlib.PurePosixPath(include.group(1))
            if len(target.parts) < 2 and layer != "main":
                found.append(f'{where}: "{target}" is not relative to src/')
            elif layer_of(target) not in LAYERS:
                found.append(f'{where}: "{target}" is in no layer')
            elif LAYERS.index(layer_of(target)) > LAYERS.index(layer):
                found.append(f'{where}: {layer} includes upward: "{target}"')
            elif not (src / target).is_file() and target.suffix != ".inc":
                found.append(f'{where}: "{target}" does not exist')
        if layer in NO_SERVER_LIBRARIES and SERVER_LIBRARIES.search(line):
            found.append(f"{where}: a server library in {layer}")
        if layer in NO_SERVER_LIBRARIES and str(relative) not in MAY_PRINT:
            call = PRINTS.search(line)
            # Writing to a file that it was given is not printing.
            if call and (call.group(1) in ("printf", "puts", "putchar", "perror")
                         or re.search(r"\b(stderr|stdout)\b", call.group(2))):
                found.append(f"{where}: {layer} prints")
    return found


def self_test():
    """The check itself must see what it is for."""
    import tempfile
    cases = [
        ("base/a.c", '#include "engine/x.h"\n', 1),
        ("engine/a.c", '#include "kernels/x.h"\n', 0),
        ("engine/a.c", '#include "x.h"\n', 1),
        ("engine/a.c", '/* #include "server/x.h" */\n', 0),
        ("sched/a.c", "#include <uv.h>\n", 1),
        ("server/a.c", "#include <uv.h>\n", 0),
        ("kernels/a.c", 'fprintf(stderr, "x");\n', 1),
        ("kernels/a.c", 'ts_buffer_printf(b, "x"); fprintf(file, "x");\n', 0),
        ("main.c", '#include "server/x.h"\n', 0),
        ("server/a.c", '#include "main.h"\n', 1),
        ("base/a.c", '#include "base/absent.h"\n', 1),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, text, expected) in enumerate(cases):
            src = pathlib.Path(folder) / str(index)
            for layer in LAYERS[:-1]:
                (src / layer).mkdir(parents=True)
                (src / layer / "x.h").touch()
            (src / "main.h").touch()
            (src / name).write_text(text)
            if len(complaints(src, src / name)) != expected:
                return f"{name}: {text!r} gave {complaints(src, src / name)}"
    return None


def main():
    src = pathlib.Path(sys.argv[1]) / "src"
    files = sorted(p for p in src.rglob("*") if p.suffix in SUFFIXES)
    print(f"1..{len(files) + 1}")
    failed = self_test()
    print(f"{'not ok' if failed else 'ok'} 1 - the check sees what it is for")
    if failed:
        print(f"# {failed}")
    for number, path in enumerate(files, 2):
        found = complaints(src, path)
        print(f"{'not ok' if found else 'ok'} {number} - {path.relative_to(src)} looks only down")
        for line in found:
            print(f"# {line}")


main()
