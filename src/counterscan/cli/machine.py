"""What a command line says of the machine."""

from __future__ import annotations

from counterscan.errors import InputError


def use(threads: int, device: str = "cpu") -> None:
    """Set torch's CPU threads, and see that the device is there before anything is loaded to it.

    Args:
        threads: 0 leaves torch's choice.
        device: as torch names it; "auto" is whatever there is.

    Raises:
        InputError: negative threads, or no such device.
    """
    import torch

    from counterscan.inputs import check_device

    if threads < 0:
        raise InputError(f"{threads} must be 0 or more", field="--threads")
    if threads:
        torch.set_num_threads(threads)
    if device != "auto":
        check_device(device, "--device")
