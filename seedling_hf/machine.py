"""The machine that figures are measured on: its name, its memory and its clock."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch


def device_name(device: torch.device | str) -> str:
    """The model name of a GPU, or of the processor as far as the system reports it."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type.upper()
    info = Path("/proc/cpuinfo")  # platform.processor() is empty on Linux
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine() or "CPU")


def precision_name(mixed_precision: str | None) -> str:
    """What `--mixed_precision` means, in words."""
    return "float32" if mixed_precision in (None, "no") else f"mixed precision {mixed_precision}"


def has_bfloat16_instructions() -> bool:
    """Whether the CPU multiplies bfloat16 numbers itself (AVX512_BF16, AMX)."""
    return any(is_there for name, is_there in torch.cpu.get_capabilities().items() if "bf16" in name)


def memory_size(device: torch.device | str = "cpu") -> int:
    """Bytes of memory of a GPU; or of the machine with its swap, or of the container where that is less."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    total = psutil.virtual_memory().total
    with suppress(OSError, RuntimeError):  # some containers hide it
        total += psutil.swap_memory().total
    return min([total, *_container_limits()])


def _container_limits() -> Iterator[int]:
    """The limits of memory of the control groups that this process is in."""
    file = Path("/proc/self/cgroup")
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        # Within a container, the root is what its own group is outside.
        for folder in {Path(group), *Path(group).parents}:
            limit = Path("/sys/fs/cgroup", root, folder.relative_to("/"), name)
            with suppress(OSError, ValueError):  # no such file, or "max"
                yield int(limit.read_text(encoding="utf-8"))


def time_in_turns(
    runs: dict[str, Callable[[], object]], repeats: int, device: str = "cpu", pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each run, `repeats` of them; on a GPU by its own clock.

    Before each run it waits for `pause` seconds: threads of other runtimes use the cores for a while after their work.

    Each round runs every entry once, so a machine that slows down slows all of them. A first round warms up.
    """
    seconds = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            time.sleep(pause)
            took = _seconds(run, device)
            if turn > 0:
                seconds[name].append(took)
    return seconds


def _seconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
