"""What was run, where and when: the line above every table."""

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path


def heading(module: str) -> str:
    """The command, the date and the machine."""
    command = " ".join(["python -m", module, *sys.argv[1:]])
    cores = len(os.sched_getaffinity(0))
    return (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {processor()}, {cores} cores, Python {platform.python_version()}"
    )


def processor() -> str:
    """The processor's name, as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "an unnamed processor"
