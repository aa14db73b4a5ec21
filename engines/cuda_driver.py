"""Asks for NVIDIA's driver before anything that would end the process without one; imports nothing of CUDA.

TensorRT's runtime logs an error without a driver and then crashes the process on its first use, so nobody may make
one before this has been asked. It initialises the driver in this process: fork no more afterwards, spawn.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

LIBRARY = "libcuda.so.1"
NO_DEVICE, NOT_READY = 100, 802  # CUresult
KERNEL = Path("/proc/driver/nvidia/version")


class Lack(NamedTuple):
    """Something that is missing to run on a GPU, and what to do about it."""

    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}"


def driver_trouble(library: str = LIBRARY) -> Lack | None:
    """Why no GPU can be used, if so."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        mend = "install it; in a container start it with the GPU (--gpus all)"
        return Lack(f"no NVIDIA driver ({library} is not here)", mend)
    if code := driver.cuInit(0):
        return _refusal(driver, code)
    count = ctypes.c_int()
    if code := driver.cuDeviceGetCount(ctypes.byref(count)):
        return _refusal(driver, code)
    return None if count.value else _refusal(driver, NO_DEVICE)


def _refusal(driver: ctypes.CDLL, code: int) -> Lack:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(code, ctypes.byref(text))
    words = (text.value or b"unknown error").decode(errors="replace")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if code == NO_DEVICE and hidden is not None:
        return Lack(f"the driver shows no GPU: CUDA_VISIBLE_DEVICES is {hidden!r}", "unset it, or name a GPU in it")
    mend = {
        NO_DEVICE: "is a card built in, and may this user open /dev/nvidia*?",
        NOT_READY: "start nvidia-persistenced (and nvidia-fabricmanager on boards with NVSwitch)",
    }.get(code, "load the nvidia module, or start the machine again after an update of the driver")
    return Lack(f"the NVIDIA driver does not start ({words}, {code})", mend)


def kernel_driver() -> str:
    """Version of the kernel's driver, as 580.65.06; empty where it is not known."""
    try:
        words = KERNEL.read_text("ascii", "replace").split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "")
