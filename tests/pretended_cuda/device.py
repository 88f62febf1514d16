"""The pretended devices from Python: what they counted and logged, and how they are made to fail.

`Devices.here()` are those of this process. `Devices.of(path)` are those of the processes that were started with the
variable PRETENDED_CUDA_CONTROL, which names a file that they share.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

MAX_DEVICES = 4
LAUNCH_FAILURE, DEVICE_UNAVAILABLE, NO_DEVICE = 719, 46, 100
"""Values of `cudaError_t`."""

OLD_DRIVER = 12040


@dataclass(frozen=True)
class Counters:
    """What a device has counted: `PRETENDED_COUNTERS` in runtime.h, in the same order."""

    launches: int
    gemms: int
    convolutions: int
    memsets: int
    captured: int
    copies_h2d: int
    copies_d2h: int
    copies_d2d: int
    pageable_h2d: int
    pageable_d2h: int
    stream_syncs: int
    event_syncs: int
    device_syncs: int
    event_records: int
    event_queries: int
    captures: int
    failed_captures: int
    graph_launches: int
    mallocs: int
    frees: int
    host_allocations: int
    busy_ns: int
    waited_ns: int
    allocated: int
    calls: int

    @property
    def syncs(self) -> int:
        """Everything that makes the host wait for the device."""
        return self.stream_syncs + self.event_syncs + self.device_syncs + self.pageable_d2h

    @property
    def kernels(self) -> int:
        """Kernels of all kinds that were launched one by one."""
        return self.launches + self.gemms + self.convolutions


class _Counters(ctypes.Structure):
    _fields_ = [(each.name, ctypes.c_int64) for each in fields(Counters)]


class _Control(ctypes.Structure):
    """`Control` in runtime.h."""

    _fields_ = [
        ("initialised", ctypes.c_int64),
        ("devices", ctypes.c_int64),
        ("driver", ctypes.c_int64),
        ("gone", ctypes.c_int64),
        ("failing_captures", ctypes.c_int64),
        ("lost", ctypes.c_int64 * MAX_DEVICES),
        ("memory_limit", ctypes.c_int64 * MAX_DEVICES),
        ("counters", _Counters * MAX_DEVICES),
    ]


@dataclass
class Devices:
    """All devices of a process, or of several that share a file."""

    _control: Any
    _keep: object = field(default=None, repr=False)

    @classmethod
    def here(cls) -> "Devices":
        return cls(_library().pretended_control().contents)

    @classmethod
    def of(cls, path: Path) -> "Devices":
        """Devices of the processes with PRETENDED_CUDA_CONTROL=path, the first of which has started."""
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), ctypes.sizeof(_Control))
        return cls(_Control.from_buffer(memory), memory)

    def counters(self, device: int = 0) -> Counters:
        counted = self._control.counters[device]
        return Counters(*(getattr(counted, each.name) for each in fields(Counters)))

    def lose(self, device: int, error: int = LAUNCH_FAILURE) -> None:
        """From now on each call on this device returns the error; 0 ends it."""
        self._control.lost[device] = error

    def remove_all(self, error: int = NO_DEVICE) -> None:
        """From now on there is no device, for new processes too: each call returns the error; 0 ends it."""
        self._control.gone = error

    def memory_limit(self, device: int) -> int:
        """How many bytes the device has."""
        return int(self._control.memory_limit[device])

    def limit_memory(self, device: int, size: int) -> None:
        """Let the device have this number of bytes."""
        self._control.memory_limit[device] = size

    def fail_captures(self, count: int) -> None:
        """Let this number of captures end in an error."""
        self._control.failing_captures = count


def reset() -> None:
    """Set this process's counters to zero, except for `allocated` and `calls`."""
    _library().pretended_reset()


def backlog(device: int) -> float:
    """Seconds until the device has done all that this process gave it."""
    return float(_library().pretended_backlog(device)) / 1e9


def occupy(device: int, seconds: float) -> None:
    """Give the device's default stream work that lasts as long."""
    _library().pretended_occupy(device, ctypes.c_double(seconds * 1e6))


@contextmanager
def log() -> Iterator[list[str]]:
    """The calls of a block, in their order, once it is over: `DEVICE STREAM CALL`; the stream may be `-`."""
    lines: list[str] = []
    _library().pretended_log(1)
    try:
        yield lines
    finally:
        _library().pretended_log(0)
        lines += _library().pretended_log_lines().decode().splitlines()


_loaded: list[ctypes.CDLL] = []


def _library() -> ctypes.CDLL:
    if not _loaded:
        library = ctypes.CDLL(str(Path(os.environ["PRETENDED_CUDA"], "libpretended.so")))
        library.pretended_control.restype = ctypes.POINTER(_Control)
        library.pretended_backlog.restype = ctypes.c_int64
        for name in ("pretended_counter_names", "pretended_log_lines"):
            getattr(library, name).restype = ctypes.c_char_p
        names = library.pretended_counter_names().decode().split()
        assert names == [each.name for each in fields(Counters)], "runtime.h and device.py name other counters"
        _loaded.append(library)
    return _loaded[0]
