"""How float32 products are computed is a switch of the whole process, set and not put back."""

import threading

import torch

from serve_app.models.device import allow_tf32


def switches() -> tuple[object, object]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]


def test_of_two_threads_none_undoes_what_the_other_has_set() -> None:
    before = switches()
    entered, other_done = threading.Event(), threading.Event()

    def first() -> None:
        allow_tf32(True)
        entered.set()
        assert other_done.wait(60)

    thread = threading.Thread(target=first)
    try:
        thread.start()
        assert entered.wait(60)
        allow_tf32(False)
        other_done.set()
        thread.join()
        # A context that restores what it found would have left "tf32" behind, or something older.
        assert switches() == ("ieee", "ieee")
        allow_tf32(True)
        assert switches() == ("tf32", "tf32")
    finally:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before  # pyright: ignore[reportAttributeAccessIssue]
