"""Machine code for operations, of which PyTorch and oneDNN keep as much as a command uses."""

import os
import platform

# Inference takes about 50 operations of different kinds and shapes, a training step of nano 134, with a teacher 184.
# `benchmark` times several forms of a model in turns, which would forget each other's code.
KEPT = 64
KEPT_BY = {"train": 256, "benchmark": None}

ONEDNN_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
ONEDNN_VARIABLES = (ONEDNN_VARIABLE, "DNNL_PRIMITIVE_CACHE_CAPACITY", "MKLDNN_PRIMITIVE_CACHE_CAPACITY")
PYTORCH_VARIABLE = "LRU_CACHE_CAPACITY"


def bound_machine_code(command: str) -> None:
    """Lets PyTorch and oneDNN forget code for shapes that are long past, unless somebody has set how much they keep.

    Each keeps the code for the last 1,024 operations: gigabytes where batches or images have many sizes. What is
    forgotten is written again when it is needed, and computes the same bits. Both read the variables when they first
    compute, and further processes inherit them.
    """
    kept = KEPT_BY.get(command, KEPT)
    if kept is None:
        return
    if not any(name in os.environ for name in ONEDNN_VARIABLES):
        os.environ[ONEDNN_VARIABLE] = str(kept)
    if platform.machine().lower() not in ("aarch64", "arm64"):  # where PyTorch keeps one
        os.environ.setdefault(PYTORCH_VARIABLE, str(kept))
