"""A model folder with weights in float16, half the size."""

import copy
import json
import shutil
from pathlib import Path

from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.errors import InputError
from seedling_hf.files import check_new_folder, creating_folder, write_text
from seedling_hf.inference.familiarity import Familiarity


def export_half(
    model: PreTrainedModel, image_processor: BaseImageProcessor, card: Path | None, output_dir: Path,
    familiarity: Familiarity | None = None,
) -> int:  # fmt: skip
    """Writes a model folder in float16; `from_pretrained` turns the weights into float32 again.

    Args:
        model: Neither merged nor folded, so that it can be trained further.
        card: README.md to copy.
        output_dir: A folder that does not exist or is empty; it appears when it is complete.
        familiarity: Of the model, for the folder.

    Returns:
        The size of the weights in bytes.

    Raises:
        InputError: if a weight is too large for float16, or the folder is not empty; nothing is written then.
    """
    check_new_folder(output_dir, "--output_file")
    half = copy.deepcopy(model).half()
    large = [name for name, tensor in half.state_dict().items() if not tensor.isfinite().all()]
    if large:
        raise InputError(f"expected weights within float16, up to 65504, found larger ones in {large[0]}")
    with creating_folder(output_dir) as folder:
        half.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float32"  # what it is loaded as: CPUs are slow in float16
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        if familiarity is not None:
            familiarity.save(folder)
        if card:
            shutil.copyfile(card, folder / "README.md")
    return (output_dir / "model.safetensors").stat().st_size
