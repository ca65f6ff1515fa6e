"""The GPUs of this machine by NVIDIA's management library: without torch, and without CUDA."""

import ctypes
from typing import Final

_LIBRARY: Final = "libnvidia-ml.so.1"


def capabilities() -> list[int]:
    """Compute capabilities, times ten, of all GPUs of the machine; none where that is not known."""
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:
        return []
    if nvml.nvmlInit_v2():
        return []
    try:
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        found = set[int]()
        for index in range(count.value):
            device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
                return []
            if nvml.nvmlDeviceGetCudaComputeCapability(
                device, ctypes.byref(major), ctypes.byref(minor)
            ):
                return []
            found.add(10 * major.value + minor.value)
        return sorted(found)
    finally:
        nvml.nvmlShutdown()
