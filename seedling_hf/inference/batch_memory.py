"""Whether a batch fits into the memory: estimated before the first one, and refused with figures where it cannot.

The memory of an image grows with its pixels. What one pixel takes is counted on a small black image, so the estimate is
a lower bound, and what fits is never refused.
"""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

# Private: torch gives the hook that sees each operation no public name.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.errors import InputError
from seedling_hf.machine import device_name, memory_size

EVAL_ADVICE = "lower --per_device_eval_batch_size, or use a model for smaller images"
PROBE_SIDE = 64
# More than a pixel takes in any model here, with and without what the backward pass needs; with less memory than that
# would take, it is counted.
MOST_BYTES_OF_A_PIXEL = {False: 4_000, True: 40_000}
LEAST_BYTES = 48  # of a pixel, in the forward pass of the smallest model here
BYTES_OF_AN_INPUT = 12  # three channels in float32


def check_memory(
    model: PreTrainedModel,
    images: int,
    side: int | None,
    advice: str,
    *,
    trains: bool = False,
    share: float = 1.0,
    count: Callable[[], int] | None = None,
    device: torch.device | None = None,
) -> None:
    """Refuses a batch of square images that cannot fit into the memory of a device.

    Args:
        model: In the memory.
        images: How many there are in a batch, at most.
        side: In pixels; None where it is unknown, and nothing is checked.
        advice: What to do.
        trains: Whether there is a backward pass.
        share: Of the activations in float32 that are kept: half in half precision.
        count: How many images there are, where that takes a while to find.
        device: That of the model if None.

    Raises:
        InputError: with the memory that is needed and that there is.
    """
    device = device or model.device
    memory = memory_size(device)
    if images * (side or 0) ** 2 * MOST_BYTES_OF_A_PIXEL[trains] < memory:
        return
    images = min(images, count()) if count else images
    pixels = images * side**2
    needed = pixels * (BYTES_OF_AN_INPUT + share * bytes_of_a_pixel(model, side, trains=trains))
    refuse_beyond(memory, needed, f"{images:,} images of {side:,}×{side:,} pixels", advice, device)


def refuse_beyond(memory: int, needed: float, what: str, advice: str, device: torch.device | str = "cpu") -> None:
    """Raises InputError if `what` needs more than the `memory` of a device; both in bytes."""
    if needed > memory:
        where = "this machine" if torch.device(device).type == "cpu" else device_name(device)
        raise InputError(
            f"expected batches that fit into the {memory / 1e9:,.1f} GB of {where}, found {what} at a time, which need "
            f"at least {needed / 1e9:,.0f} GB; {advice}"
        )


def bytes_of_a_pixel(model: PreTrainedModel, side: int, *, trains: bool) -> float:
    """What one pixel of an image takes in the forward pass, or what of it is kept for the backward pass.

    Counted on one black image of at most `PROBE_SIDE` pixels a side; 0 for a model that takes no images of that size.
    """
    side = min(side, PROBE_SIDE)
    was_training, live = model.training, LiveStorages()
    for tensor in (*model.parameters(), *model.buffers()):
        live.exclude(tensor)
    model.eval()
    try:
        image = torch.zeros(1, getattr(model.config, "num_channels", 3), side, side, device=model.device)
        with torch.inference_mode(False), torch.set_grad_enabled(trains), live:
            outputs = model(pixel_values=image)
            kept = live.now if trains else live.most
        del outputs
    except (RuntimeError, ValueError, AssertionError):
        return 0.0
    finally:
        model.train(was_training)
    return kept / side**2


def image_side(image_processor: BaseImageProcessor) -> int | None:
    """The longer side of what an image processor makes of a square image, in pixels; None if it does not say."""
    crops = getattr(image_processor, "do_center_crop", False) and getattr(image_processor, "crop_size", None)
    size = crops or getattr(image_processor, "size", None)
    if not size:
        return (getattr(image_processor, "data_config", None) or {}).get("input_size", [None])[-1]
    values = dict(size) if not isinstance(size, int) else {"side": size}
    return max((value for value in values.values() if isinstance(value, int)), default=None)


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of the tensors that operations create, until they are freed.

    Attributes:
        now: Bytes alive.
        most: The most that were alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.count, result)
        return result

    def exclude(self, tensor: Tensor) -> None:
        """Excludes the storage of `tensor`, which is counted elsewhere."""
        self._known[tensor.untyped_storage()] = True

    def count(self, tensor: Tensor) -> None:
        """Counts the storage of `tensor`, once."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = True
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size
