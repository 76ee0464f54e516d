"""The machine that figures were measured on."""

import platform
from pathlib import Path

import torch


def device_name(device: torch.device | str) -> str:
    """What its maker calls a device: the GPU, or the processor as far as the system tells."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type.upper()
    info = Path("/proc/cpuinfo")  # platform.processor() knows nothing on Linux
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine() or "CPU")
