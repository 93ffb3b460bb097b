"""Time and tokens of one measurement, and its deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from evaluators.errors import MeasurementFailed
from evaluators.evaluation import Cost, FailureKind


class Meter:
    """Started when made. Wall time by the monotonic clock, CPU time of the whole process."""

    def __init__(self, *, device: torch.device, timeout_seconds: float) -> None:
        self._cuda = device.type == "cuda"
        self._timeout = timeout_seconds
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        self._forward = self._forward_cpu = 0.0
        self._tokens = 0

    @contextmanager
    def forward(self, tokens: int) -> Iterator[None]:
        """Count what happens inside as the model's; ``tokens`` are computed in it."""
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            yield
            if self._cuda:  # kernels run behind our back: without this their time would be counted elsewhere
                torch.cuda.synchronize()
        finally:
            self._forward += time.perf_counter() - start
            self._forward_cpu += time.process_time() - cpu_start
            self._tokens += tokens

    def check_deadline(self) -> None:
        """Raise if the measurement has taken too long.

        Raises:
            MeasurementFailed: timed out.
        """
        seconds = time.perf_counter() - self._start
        if seconds > self._timeout:
            raise MeasurementFailed(
                FailureKind.TIMED_OUT,
                f"the measurement took {seconds:.1f} s so far; timeout_seconds is {self._timeout:g}",
            )

    def cost(self, *, documents: int) -> Cost:
        """Return what was spent up to now."""
        return Cost(
            seconds=time.perf_counter() - self._start,
            forward_seconds=self._forward,
            cpu_seconds=time.process_time() - self._cpu_start,
            forward_cpu_seconds=self._forward_cpu,
            tokens=self._tokens,
            documents=documents,
        )
