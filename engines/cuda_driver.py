"""Asks for NVIDIA's driver before anything that would end the process without one; imports nothing of CUDA.

TensorRT's runtime logs an error without a driver and then crashes the process on its first use, so nobody may make
one before this has been asked. It initialises the driver in this process: fork no more afterwards, spawn.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

LIBRARY = "libcuda.so.1"
NO_DEVICE, NOT_READY = 100, 802  # CUresult
KERNEL = Path("/proc/driver/nvidia/version")


def driver_trouble(library: str = LIBRARY) -> str:
    """Why no GPU can be used, in words that say what to do; empty: one can."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return (
            f"no NVIDIA driver ({library} is not here): install it; in a container start it with the GPU (--gpus all)"
        )
    if code := driver.cuInit(0):
        return _said(driver, code)
    count = ctypes.c_int()
    if code := driver.cuDeviceGetCount(ctypes.byref(count)):
        return _said(driver, code)
    return "" if count.value else _said(driver, NO_DEVICE)


def _said(driver: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(code, ctypes.byref(text))
    words = (text.value or b"unknown error").decode(errors="replace")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if code == NO_DEVICE and hidden is not None:
        return f"the driver shows no GPU: CUDA_VISIBLE_DEVICES is {hidden!r}"
    mend = {
        NO_DEVICE: "is a card built in, and may this user open /dev/nvidia*?",
        NOT_READY: "start nvidia-persistenced (and nvidia-fabricmanager on boards with NVSwitch)",
    }.get(code, "load the nvidia module, or start the machine again after an update of the driver")
    return f"the NVIDIA driver does not start ({words}, {code}): {mend}"


def kernel_driver() -> str:
    """Version of the kernel's driver, as 580.65.06; empty where it is not known."""
    try:
        words = KERNEL.read_text("ascii", "replace").split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "")
