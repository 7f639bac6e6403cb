"""How much memory a piece of work takes beyond what is there before it, measured in a process of its own:
`python -m benchmarks.memory MODULE SIDE THREADS [ARGUMENT ...]` calls `MODULE.prepare(SIDE, ARGUMENT, ...)`, then once
what that returns, and prints the growth in MiB. SIDE is "arlow" or "peer".
"""

from __future__ import annotations

import contextlib
import importlib
import resource
import subprocess
import sys
from pathlib import Path

import torch

from .settings import DEVICE


ON_HOST = "ON_HOST"  # a module with this name set works on the CPU whatever else there is


def growth_mib(side: str, module: str, *arguments: str) -> float:
    """Memory growth of one call of the work that `module.prepare(side, *arguments)` returns."""
    command = [sys.executable, "-m", "benchmarks.memory", module, side, str(torch.get_num_threads()), *arguments]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def main(module: str, side: str, threads: str, *arguments: str) -> None:
    torch.set_num_threads(int(threads))
    case = importlib.import_module(module)
    work, cuda = case.prepare(side, *arguments), DEVICE.type == "cuda" and not hasattr(case, ON_HOST)
    before = _forget_peak(cuda)
    work()
    print((_peak(cuda) - before) / 2**20)


def _forget_peak(cuda: bool) -> int:
    """Bytes in use now; from here on only later peaks count."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # not Linux: then the highest peak so far counts
        Path("/proc/self/clear_refs").write_text("5")
    return _peak(cuda)


def _peak(cuda: bool) -> int:
    """Bytes in use at the highest moment."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        # On Linux this one begins at the parent's peak, which hides the growth.
        scale = 1 if sys.platform == "darwin" else 1024
        return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:])
