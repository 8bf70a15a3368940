"""Calls of one function on a GPU, recorded once and replayed.

A step of training launches hundreds of small kernels. From Python that takes several times as long as they run, so
on a GPU the launches of one call are recorded as a CUDA graph, and every later call of the same size replays them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from compiler.training.samples import Data

WARM = 2
"""Calls before one is recorded: they make what lives longer than a call, such as the state of an optimizer."""

Function = Callable[[Data], tuple[Tensor, ...]]


class Recorded:
    """`function` on `device`: what it reads besides its argument has to stay in the same tensors from call to call.

    Results are overwritten by the next call. Where a function cannot be recorded, or not on a GPU, it is called.
    """

    def __init__(self, function: Function, device: torch.device) -> None:
        self._function = function
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls, self._size = 0, 0
        self._inputs: Data | None = None
        self._results: tuple[Tensor, ...] = ()

    def __call__(self, part: Data) -> tuple[Tensor, ...]:
        """The results on some samples; those of the first call's number are recorded."""
        if self._stream is None:
            return self._function(part)
        self._size = self._size or len(part)
        if len(part) != self._size or self._calls < WARM:
            return self._beside(self._stream, part)
        if self._graph is None and not self._record(self._stream, part):
            self._stream = None
            return self._function(part)
        assert self._graph is not None and self._inputs is not None
        self._inputs.take(part)
        self._graph.replay()
        return self._results

    def _beside(self, stream: torch.cuda.Stream, part: Data) -> tuple[Tensor, ...]:
        """Called on the stream that is recorded from: what autograd sets up belongs to a stream."""
        self._calls += 1
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # optimizers warn when what can be recorded is not
            found = self._function(part)
        current.wait_stream(stream)
        return found

    def _record(self, stream: torch.cuda.Stream, part: Data) -> bool:
        """Record one call, which does not run yet; False where something in it cannot be recorded."""
        self._inputs, graph = part.copy(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize(stream.device)
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin()
                try:
                    self._results = self._function(self._inputs)
                finally:
                    graph.capture_end()
        except RuntimeError:
            return False
        self._graph = graph
        return True
