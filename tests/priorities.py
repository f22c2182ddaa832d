"""What test_nice has workers run, which import it by name, and no pytest with it."""

import os
import subprocess
import sys

seen_by_initializer: list[int] = []


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def look() -> None:
    seen_by_initializer.append(priority())


def what_the_initializer_saw() -> list[int]:
    return seen_by_initializer


def child_priority() -> int:
    code = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
