"""CUDA graphs: all kernels of a model's part, recorded once and replayed by one call.

A UNet call of SDXL launches some 2,000 kernels. Python takes longer to launch them than a fast GPU takes to run
them, and the GPU waits. Graphs are recorded before the worker is ready, one for each shape of the inputs. No request
records one.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Part = Callable[..., tuple[torch.Tensor, ...]]
"""A function from tensors to tensors, all of them on the device."""

Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


class Graphs:
    """The graphs of a model's parts, which share their memory: only one of them runs at a time.

    On the CPU there are none, and every part runs directly.
    """

    def __init__(self) -> None:
        self._recording = False
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._parts: list[Graphed] = []

    def part(self, function: Part) -> "Graphed":
        """A part of the model, which runs directly until a graph of it is recorded."""
        graphed = Graphed(self, function)
        self._parts.append(graphed)
        return graphed

    @property
    def count(self) -> int:
        """The number of recorded graphs."""
        return sum(len(part.recordings) for part in self._parts)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:  # pragma: no cover
        """Within this context, a call with inputs of new shapes records a graph. An error drops all graphs."""
        current = torch.cuda.current_stream()
        # One stream for all: cuBLAS keeps a workspace for each stream that it has seen.
        self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        self._recording = True
        try:
            yield
        except BaseException:
            # A recording that fails leaves its own stream behind as the current one.
            torch.cuda.set_stream(current)
            self.drop()
            raise
        finally:
            self._recording = False

    def drop(self) -> None:  # pragma: no cover
        """Forget all graphs and free their memory."""
        self._pool = None
        for part in self._parts:
            part.recordings.clear()

    def record(self, function: Part, inputs: tuple[torch.Tensor, ...]) -> "Recording | None":  # pragma: no cover
        """A graph of a function for inputs of these shapes; None unless graphs are being recorded."""
        if not self._recording or self._stream is None:
            return None
        return Recording.of(function, inputs, self._stream, self._pool)


class Graphed:
    """A part of a model. It replays its graph for inputs of recorded shapes, and runs directly for others.

    Its results are copies, which the next replay does not overwrite.
    """

    def __init__(self, graphs: Graphs, function: Part) -> None:
        self._graphs = graphs
        self._function = function
        self.recordings: dict[Shapes, Recording] = {}

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        return self._on_cuda(inputs)  # pragma: no cover

    def _on_cuda(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:  # pragma: no cover
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        recording = self.recordings.get(shapes) or self._graphs.record(self._function, inputs)
        if recording is None:
            return self._function(*inputs)
        self.recordings[shapes] = recording
        return recording.replay(inputs)


@dataclass(eq=False)
class Recording:
    """A graph with the tensors that it reads and writes at each replay."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]

    @classmethod
    def of(
        cls, function: Part, inputs: tuple[torch.Tensor, ...], stream: torch.cuda.Stream, pool: Any
    ) -> "Recording":  # pragma: no cover
        """Record a function on a stream, for inputs of these shapes. The graph's memory is that of a shared pool."""
        own = tuple(tensor.clone() for tensor in inputs)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # The first call compiles, and sets up libraries: neither can be recorded.
            function(*own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            outputs = function(*own)
        return cls(graph, own, outputs)

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:  # pragma: no cover
        """The function's results for inputs of the recorded shapes."""
        for own, tensor in zip(self.inputs, inputs, strict=True):
            own.copy_(tensor)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)
