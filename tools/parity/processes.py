"""Programs in processes of their own: their output, time and memory."""
import subprocess
import tempfile
import time
from pathlib import Path


def peak(pid):
    """GB. (ru_maxrss would begin with what the process that started it had.)"""
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) / 1e6 for line in status.splitlines() if line.startswith("VmHWM")), 0)


class Failed(Exception):
    pass


def run(command, text=""):
    """Its output, seconds, and GB of memory at its peak. What it says on stderr passes through."""
    begin, memory = time.perf_counter(), 0
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as given:
        given.write(text.encode())
        given.seek(0)
        process = subprocess.Popen([str(c) for c in command], stdin=given, stdout=out)
        while process.poll() is None:
            memory = max(memory, peak(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        if process.returncode:
            raise Failed(f"{Path(command[0]).name} ... ended with {process.returncode}")
        out.seek(0)
        return out.read().decode(), seconds, memory
