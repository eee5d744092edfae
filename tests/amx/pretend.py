#!/usr/bin/env python3
"""Runs a program as on a processor with AMX, on one that has AVX512-BF16: pretend.py LIBRARY PROGRAM [ARGUMENT...]

oneDNN and the program ask CPUID. In copies of both each CPUID instruction (as objdump finds them) becomes UD2, which is
as long; LIBRARY, preloaded, answers it, and emulates AMX's instructions, some microseconds each. AMX_COUNTS=1 in the
environment tells how many there were."""
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile


def segments(image):
    """(address, offset, size) of what is loaded."""
    at, size, count = struct.unpack_from("<Q", image, 32)[0], *struct.unpack_from("<HH", image, 54)
    for i in range(count):
        kind, _, offset, address, _, bytes_, _, _ = struct.unpack_from("<IIQQQQQQ", image, at + i * size)
        if kind == 1:
            yield address, offset, bytes_


def without_cpuid(source, target):
    image = bytearray(pathlib.Path(source).read_bytes())
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", source], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        words = line.split()
        if len(words) < 2 or words[1] != "cpuid":
            continue
        where = int(words[0].rstrip(":"), 16)
        at, = (where - address + offset for address, offset, size in segments(image) if address <= where < address + size)
        assert image[at:at + 2] == b"\x0f\xa2"
        image[at:at + 2] = b"\x0f\x0b"
    target.write_bytes(image)
    target.chmod(0o755)


class Pretended:
    """A program and oneDNN without CPUID, as copies in a folder of their own for as long as it is open."""

    def __init__(self, library, program):
        self.library, self.program = library, program
        self.folder = tempfile.TemporaryDirectory()

    def __enter__(self):
        folder = pathlib.Path(self.folder.name)
        listing = subprocess.run(["ldd", self.program], capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            name, _, path = line.strip().partition(" => ")
            if name.startswith("libdnnl."):
                without_cpuid(os.path.realpath(path.split()[0]), folder / name)
        self.copy = folder / pathlib.Path(self.program).name
        without_cpuid(self.program, self.copy)
        return self

    def __exit__(self, *_):
        self.folder.cleanup()

    def run(self, arguments, **options):
        environment = {**os.environ, "LD_PRELOAD": self.library, "LD_LIBRARY_PATH": self.folder.name}
        return subprocess.run([self.copy, *arguments], env=environment, **options)


def why_not():
    """What keeps this machine from it, or None."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split("processor", 2)[1].split()
    if "amx_bf16" in flags:
        return "the processor has AMX"
    if "avx512_bf16" not in flags:
        return "the processor has no AVX512-BF16"
    return None if shutil.which("objdump") else "there is no objdump"


if __name__ == "__main__":
    with Pretended(*sys.argv[1:3]) as pretended:
        sys.exit(pretended.run(sys.argv[3:]).returncode)
