"""The table of everything that running requests have on the device."""

import numpy as np
import torch
from torch import Tensor

from serve_app.models.checkpoint.spec import TalkerSpec


class SlotTable:
    """What running requests have on the device, one row per slot and one for unwanted writes.

    ids: int32 [slots + 1, positions, 1 + Q], rows of the joined embedding table.
    seen: bool [slots + 1, V], the group-0 codes made so far (repetition penalty).
    floats: float32 [slots + 1, 5]: temperature, top_p, repetition penalty, subtalker temperature,
        subtalker top_p.
    ints: int64 [slots + 1, 5]: seed, prompt length, minimum frames, top_k, subtalker top_k.
    """

    def __init__(
        self, slots: int, positions: int, spec: TalkerSpec, zero_row: int, device: torch.device
    ):
        self.trash = slots
        self.device = device
        self.ids = torch.full(
            (slots + 1, positions, 1 + spec.num_code_groups),
            zero_row,
            dtype=torch.int32,
            device=device,
        )
        self.seen = torch.zeros(slots + 1, spec.vocab_size, dtype=torch.bool, device=device)
        self.true = torch.ones((), dtype=torch.bool, device=device)
        self.floats = torch.ones(slots + 1, 5, dtype=torch.float32, device=device)
        self.ints = torch.zeros(slots + 1, 5, dtype=torch.int64, device=device)

    def clear(self, slot: int, zero_row: int) -> None:
        """Make a slot one whose steps compute silence and cannot fail."""
        self.ids[slot] = zero_row
        self.seen[slot] = False
        self.floats[slot] = 1.0
        self.ints[slot] = 0

    def upload(self, values: np.ndarray) -> Tensor:
        """Copy to the device without waiting for it."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
