"""No command is silent for longer than ten seconds while one image takes longer than that."""

import shutil
import sys

import pytest
from silence import listen

SLOW_SECONDS = 14
# The first image that is decoded takes its time, as on a network drive.
PROGRAM = f"""
import itertools, sys, time
from seedling_hf.data import images

decode, count = images._decode, itertools.count()

def slow(*arguments, **options):
    if next(count) == 0:
        time.sleep({SLOW_SECONDS})
    return decode(*arguments, **options)

images._decode = slow
from seedling_hf.commands import main
sys.exit(main())
"""
TRAINING = "--variant tiny --image_size 32 --max_steps 2 --per_device_train_batch_size 8"
COMMANDS = {
    "describe_dataset": "--train_dir IMAGES",
    "inspect_dataset": "--train_dir IMAGES --output_dir OUT",
    "make_split": "--train_dir IMAGES --output_dir OUT --split_strategy grouped",
    "preview_augmentation": "--train_dir IMAGES --output_dir OUT --image_size 32 --num_examples 1",
    "train": f"--train_dir IMAGES --output_dir OUT {TRAINING}",
    "evaluate": "--model_name_or_path MODEL --test_dir IMAGES --output_dir OUT",
    "compare": "--models MODEL OTHER --data_dir IMAGES --output_dir OUT",
    "probe": "--model_name_or_path MODEL --test_dir IMAGES --output_dir OUT --max_samples 4",
    "predict": "--model_name_or_path MODEL --images IMAGES --output_file OUT/answers.csv",
    "embed": "--model_name_or_path MODEL --images IMAGES --embeddings_file OUT/features.parquet",
    "saliency": "--model_name_or_path MODEL --images IMAGES --output_dir OUT --max_samples 2",
    "visualize_erf": "--untrained tiny --images IMAGES --output_dir OUT --image_size 64 --max_samples 2",
    "export": "--model_name_or_path MODEL --output_file OUT/model.onnx --images IMAGES --max_check_samples 2",
}
NEEDED = {"saliency": "captum", "export": "onnxscript"}


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_never_silent_for_ten_seconds(command, terminal, images, model_dir, tmp_path):
    if command in NEEDED:
        pytest.importorskip(NEEDED[command])
    places = {"IMAGES": images, "MODEL": model_dir, "OTHER": tmp_path / "other", "OUT": tmp_path / "out"}
    words = COMMANDS[command].split()
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    (tmp_path / "out").mkdir()
    if command == "compare":
        shutil.copytree(model_dir, tmp_path / "other")
    program = [sys.executable, "-c", PROGRAM, command, *words]
    heard = listen(program, terminal=terminal, env={"TQDM_DISABLE": "", "HF_DATASETS_CACHE": str(tmp_path / "cache")})
    assert heard.code in (0, 1 if command == "inspect_dataset" else 0), heard.text
    assert heard.seconds > SLOW_SECONDS, heard.text
    assert heard.longest < 10, f"{heard.longest:.1f} s of {heard.seconds:.1f}\n{heard.text}"
