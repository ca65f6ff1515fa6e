"""The GPUs of this machine over time: clocks, power, load, and what holds their clocks down."""

import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from load_tests.reports import circumstances

_PERIOD_MS: Final = 500
_FIELDS: Final = ("index", "clocks.sm", "power.draw", "utilization.gpu", "temperature.gpu")
# Drivers have had two names for it; a field that one does not know ends nvidia-smi.
_HELD_DOWN: Final = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# Bits that say that nothing is wrong: idle, and clocks that an application has asked for.
_HARMLESS: Final = 0x1 | 0x2


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at `at_s` (`time.perf_counter`).

    held_down: bits of NVML's reasons why its clock is lower than it could be; 0: none.
    """

    at_s: float
    index: int
    sm_mhz: float
    power_w: float
    utilization: float
    celsius: float
    held_down: int = 0


def reading_of(line: str, at_s: float) -> GpuReading | None:
    """Of a line of nvidia-smi's; None where it is none."""
    cells = [cell.strip() for cell in line.split(",")]
    try:
        mhz, watts, share, celsius = map(float, cells[1 : len(_FIELDS)])
        held_down = int(cells[len(_FIELDS)], 16) if len(cells) > len(_FIELDS) else 0
        bits = held_down & ~_HARMLESS
        return GpuReading(at_s, int(cells[0]), mhz, watts, share, celsius, bits)
    except ValueError:
        return None


class GpuWatch:
    """Reads them all twice a second, from a thread; a context manager. Nothing without a GPU."""

    def __init__(self) -> None:
        self.readings: list[GpuReading] = []
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._ended = False

    def __enter__(self) -> Self:
        if circumstances.gpus():
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        if self._process is not None:
            with suppress(OSError):
                self._process.kill()
        if self._thread.is_alive():
            self._thread.join(5)

    def _watch(self) -> None:
        for more in (*_HELD_DOWN, None):
            fields = [*_FIELDS, *([more] if more else [])]
            self._read(fields)
            if self._ended or self.readings:
                return

    def _read(self, fields: Sequence[str]) -> None:
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}"]
        command += ["--format=csv,noheader,nounits", f"-lms={_PERIOD_MS}"]
        with suppress(OSError):
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert self._process.stdout is not None
            for line in self._process.stdout:
                reading = reading_of(line, time.perf_counter())
                if reading is not None:
                    self.readings.append(reading)
            self._process.wait()
