"""A GPU that is not there: kernels are launched by the code that launches them, and not run.

Triton compiles for its compute capability, and takes this driver's word for what the card has; so
a kernel that needs more shared memory fails as it would on the card. What each came to is kept:
registers and local memory stand in the binary.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

# Of the cards of a compute capability, by CUDA's programming guide: shared memory that one program
# may have, in bytes.
SHARED_BYTES: Final[Mapping[int, int]] = {
    80: 166_912,  # A100, A30
    86: 101_376,  # RTX 3090, A10, A40
    89: 101_376,  # L4, L40S, RTX 4090
    90: 232_448,  # H100, H200
    100: 232_448,  # B200
    120: 101_376,  # RTX 5090, RTX PRO 6000
}
REGISTERS: Final = 65_536
_REGISTERS_PER_THREAD: Final = 255
# Attributes of `.nv.info`, by their numbers in the binary format.
_EIATTR_FRAME_SIZE: Final = 0x11
_EIATTR_REGCOUNT: Final = 0x2F
_SIZED: Final = 0x04


@dataclass(frozen=True, slots=True)
class Built:
    """One kernel as it was compiled; `local_bytes` of a thread are spilled registers and arrays."""

    name: str
    warps: int
    shared_bytes: int
    registers: int
    local_bytes: int

    def problem(self, capability: int) -> str | None:
        """What the card does not have."""
        if self.shared_bytes > SHARED_BYTES[capability]:
            return f"{self.name}: {self.shared_bytes} bytes of shared memory"
        if self.registers > _REGISTERS_PER_THREAD:
            return f"{self.name}: {self.registers} registers per thread"
        if self.registers * self.warps * 32 > REGISTERS:
            return f"{self.name}: {self.registers} registers in each of {self.warps} warps"
        return None


@contextmanager
def absent_gpu(capability: int) -> Iterator[list[Built]]:
    """Launch on a card that is not there; what is built is added to the list."""
    from triton.runtime import driver

    built: list[Built] = []
    driver.set_active(_Driver(capability, built))  # type: ignore[arg-type]
    try:
        yield built
    finally:
        driver.set_active(None)  # type: ignore[arg-type]


class _Driver:
    """What Triton asks of a driver on the way to a launch."""

    def __init__(self, capability: int, built: list[Built]) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)
        self._capability = capability
        self._built = built
        self.utils = self
        self.warps = 0

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        # Triton keeps what it knows of a device by its number: another for each kind.
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return device

    def get_device_properties(self, device: int) -> dict[str, int]:
        del device
        return {"max_shared_mem": SHARED_BYTES[self._capability]}

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        self.warps = metadata.num_warps
        return lambda *arguments: None

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        del device
        registers, local_bytes = resources(binary)
        self._built.append(Built(name, self.warps, shared, registers, local_bytes))
        return 0, 0, registers, local_bytes // 4, 1024


def resources(binary: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of a thread, of the one kernel in a CUDA binary (ELF)."""
    registers = local_bytes = 0
    for data in _sections(binary, ".nv.info"):
        at = 0
        while at + 4 <= len(data):
            form, attribute, size = struct.unpack_from("<BBH", data, at)
            at += 4
            if form != _SIZED:
                continue
            if attribute in (_EIATTR_REGCOUNT, _EIATTR_FRAME_SIZE):
                value = struct.unpack_from("<II", data, at)[1]
                if attribute == _EIATTR_REGCOUNT:
                    registers = max(registers, value)
                else:
                    local_bytes = max(local_bytes, value)
            at += size
    if not registers:
        raise ValueError("the binary does not say how many registers it needs")
    return registers, local_bytes


def _sections(binary: bytes, wanted: str) -> Iterator[bytes]:
    """The contents of the sections of that name in a 64-bit ELF file."""
    if binary[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", binary, 0x28)
    size, count, names = struct.unpack_from("<HHH", binary, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", binary, table + i * size) for i in range(count)]
    strings = heads[names][4]
    for name, _, _, _, offset, length in heads:
        end = binary.index(b"\0", strings + name)
        if binary[strings + name : end].decode() == wanted:
            yield binary[offset : offset + length]
