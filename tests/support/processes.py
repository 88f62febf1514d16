"""What the kernel shows of processes."""

from pathlib import Path


def children(parent: int) -> list[int]:
    """Process ids of the children of all threads of a process."""
    return [int(pid) for path in Path(f"/proc/{parent}/task").glob("*/children") for pid in path.read_text().split()]
