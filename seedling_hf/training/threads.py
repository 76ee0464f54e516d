"""How many threads a run on a CPU computes with: as many as other programs leave cores free, and then always as many.

All threads of an operation end together, so that one that waits for a busy core holds the others up: on two cores, one
of them busy, nano trains in half the time with one thread. The number decides how sums are rounded, so a resumed run
takes that of its checkpoint. OMP_NUM_THREADS sets it, and launchers do so where several processes share the cores.
"""

import logging
import math
import os

import torch
from accelerate import Accelerator

from seedling_hf.data.images import num_cores
from seedling_hf.escaping import format_count

VARIABLE = "OMP_NUM_THREADS"
SPARE_CORE = 0.25  # so much of a core may others use before a thread on it waits for them longer than it helps

logger = logging.getLogger(__name__)


def choose_threads(accelerator: Accelerator) -> None:
    """Takes fewer threads than cores where other programs are busy; says so."""
    if not _is_ours(accelerator):
        return
    free = free_cores()
    best = max(1, math.floor(free + SPARE_CORE))
    if best < torch.get_num_threads():
        logger.info(
            "other programs leave %.1f of %s free: computing in %s, which is faster; %s takes another number",
            free, format_count(num_cores(), "core"), format_count(best, "thread"), VARIABLE,
        )  # fmt: skip
        torch.set_num_threads(best)


def restore_threads(accelerator: Accelerator, number: int | None) -> None:
    """Takes the number of threads of a checkpoint; older ones have none."""
    if number is None or number == torch.get_num_threads() or accelerator.device.type != "cpu":
        return
    if _is_ours(accelerator):
        torch.set_num_threads(number)
        logger.info("computing in %s, as before", format_count(number, "thread"))
    else:
        logger.warning(
            "the checkpoint was written by %s for each process and is resumed by %d: sums are rounded differently, so "
            "results are not bit-equal",
            format_count(number, "thread"), torch.get_num_threads(),
        )  # fmt: skip


def free_cores(seconds: float = 0.3) -> float:
    """How many of our cores other programs leave free while this process sleeps; all of them if nothing tells."""
    import psutil

    try:
        busy = psutil.cpu_percent(seconds, percpu=True)
    except (OSError, RuntimeError):  # some containers hide it
        return float(num_cores())
    ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(busy))
    return num_cores() - sum(busy[core] for core in ours if core < len(busy)) / 100


def _is_ours(accelerator: Accelerator) -> bool:
    return accelerator.device.type == "cpu" and accelerator.num_processes == 1 and VARIABLE not in os.environ
