"""Memory that the C library keeps for the next step, in place of returning it to the system."""

import ctypes

# Of <malloc.h> in glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Lets this process use freed memory again instead of asking the system for it at each step.

    A training step frees what it has allocated. glibc returns large blocks to the system, which has to give them out
    again, filled with zeros, page by page: a tenth to a quarter of a step on a CPU. What the process holds is then what
    its largest step needed. Other allocators and C libraries are left alone.

    Returns:
        Whether the C library can do so.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; Windows takes no None
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
