"""What the measuring machine is, and how a benchmark gets as much of it as it can."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

from runtime.errors import UserError

_AUTOGROUP = Path("/proc/self/autogroup")
# Fields of nvidia-smi, and how we call them. Clocks are the highest: those of a moment say nothing of a run.
_GPU_FIELDS = {
    "name": "GPU",
    "driver_version": "driver",
    "memory.total": "GPU memory",
    "clocks.max.sm": "GPU clock",
    "clocks.max.memory": "GPU memory clock",
    "power.limit": "GPU power limit",
}


def describe_machine(device: str = "cpu") -> dict[str, str | int]:
    """Processor, cores, caches, memory and kernel, as Linux names them; of "cuda" the first GPU, as nvidia-smi does.

    UserError if nvidia-smi is wanted and does not answer.
    """
    cpuinfo = _fields(Path("/proc/cpuinfo"))
    return {
        "processor": cpuinfo.get("model name", platform.processor() or platform.machine()),
        "family/model": f"{cpuinfo.get('cpu family', '?')}/{cpuinfo.get('model', '?')}",
        "cores": os.cpu_count() or 1,
        "last-level cache": _last_level_cache(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    } | (_describe_gpu() if device == "cuda" else {})


def _describe_gpu() -> dict[str, str]:
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"nvidia-smi, which comes with NVIDIA's driver, does not describe the GPU: {error}") from None
    values = [value.strip() for value in answer.strip().split(",")]
    return dict(zip(_GPU_FIELDS.values(), values, strict=True))


def _fields(path: Path) -> dict[str, str]:
    """The first value of each ``key : value`` line."""
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _last_level_cache() -> str:
    sizes = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return sizes[-1].read_text().strip() if sizes else "unknown"


def use_threads(count: int) -> None:
    """The number of TVM's threads, whose default is half the cores; it is read when the first parallel kernel runs."""
    os.environ["TVM_NUM_THREADS"] = str(count)
    os.environ["TVM_BIND_THREADS"] = "0"


def run_in_own_session() -> None:
    """Restart this program in a session of its own, unless it leads one already; the first process only waits for it.

    Linux divides the CPU between sessions first (``kernel.sched_autogroup_enabled``) and by niceness only within each,
    so the priority of a benchmark is that of its session.
    """
    if os.getsid(0) == os.getpid():
        return
    child = subprocess.Popen(sys.orig_argv, executable=sys.executable, start_new_session=True)
    # The terminal's Ctrl-C does not reach another session, and a SIGTERM is for the work, not for who waits.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: child.send_signal(number))
    status = child.wait()
    sys.exit(status if status >= 0 else 128 - status)  # of one that a signal ended, as shells tell it


def raise_priority() -> str:
    """Give this session the highest CPU priority, which needs root; says in words whether it has it."""
    try:
        _AUTOGROUP.write_text("-20")
    except FileNotFoundError:
        return "normal (no autogroups)"
    except OSError as error:
        return f"normal ({error.strerror})"
    return "autogroup at nice -20"
