"""How many CPUs this process may use."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """Fewer than the machine has inside a container or a batch job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
