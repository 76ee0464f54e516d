"""Model folders and checkpoints from strangers: damaged, of other kinds, or meant to do harm."""

import argparse
import json
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults import Outcome, Started, assert_sentence, assert_well, command, contents
from safetensors.torch import load_file, save_file
from sample import copy_sample
from small_models import SPECIES

from seedling_hf.inference.familiarity import FAMILIARITY, TENSORS

INFINITY, NAN = float("inf"), float("nan")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
HTML = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"
CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
GOLDEN = Path(__file__).parents[1] / "golden" / "three_stages.pth"


@pytest.fixture
def model(model_dir, tmp_path) -> Path:
    """A copy of a model folder, to be damaged."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def predict(model: Path, images: Path, *words: object, **options) -> Outcome:
    (model.parent / "work").mkdir(exist_ok=True)
    flags = ["--model_name_or_path", model, "--images", images / "Maize", "--output_file", "answers.csv"]
    return command(["predict", *flags, *words], model.parent / "work", **options)


def assert_refused(outcome: Outcome, model: Path, *parts: str) -> None:
    assert_sentence(outcome, *parts)
    assert outcome.seconds < 60
    assert contents(model.parent / "work") == {}


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(model: Path, function: Callable[[dict], object]) -> None:
    weights = load_file(model / WEIGHTS)
    changed = function(weights)
    weights = changed if isinstance(changed, dict) else weights
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, model / WEIGHTS, {"format": "pt"})


# The configuration

FIELDS = {
    "depths": [10**9, "1122", [1.0, 1, 2, 1], None, [10**9, 1, 2, 1], [1, None, 2, 1], [True] * 4, [INFINITY] * 4,
               [[1]] * 4, [1, 1, 1, 1], [1, 1], [], {"0": 1}],
    "kernel_sizes": [[10**6 + 1, 13, 11, 7], ["15", "13", "11", "7"], [15.0, 13, 11, 7], 15, [-15, 13, 11, 7],
                     [14, 12, 10, 8]],
    "hidden_sizes": [[10**9] * 4, [16, 32, 48, 65], [0, 32, 48, 64], None],
    "small_kernel_size": ["5", 5.5, True, 10**6 + 1, INFINITY],
    "num_channels": [10**9, "3", None, 4, 3.0],
    "dw_ratio": [INFINITY, NAN, "1", 1e30, 0, None],
    "ffn_ratio": [INFINITY, NAN, 10**30, -4, [4]],
    "drop_path_rate": [NAN, "0.1", 2],
    "reparameterized": [True, "no", 1],
    "conv_implementation": ["magic", 3],
    "format_version": [99, "1"],
    "out_indices": [[-99], [99], "4", [0.5]],
    "id2label": [["a", "b", "c", "d"], {"0": "a", "1": "b", "2": "c", "5": "d"}, {"0": "a", "1": "b"}, {"a": "b"},
                 {"0": "a", "1": None, "2": "c", "3": "d"}, {str(i): f"class {i}" for i in range(10**6)}, {}, 4],
    "num_labels": [10**6, 10**9, -1, "4"],
    "dtype": ["float1", 16, "int8"],
    "quantization_config": [{"quant_method": "bitsandbytes", "load_in_8bit": True}, {"quant_method": "gptq"}],
    "problem_type": ["regression", "guessing", 3],
    "calibration_temperature": [0, -1.0, NAN, INFINITY, "1.2", True],
    "confidence_threshold": [-0.1, 1.1, NAN, INFINITY, "0.5", [0.5]],
    "model_type": ["bert", "unheard-of", 3, None],
    "architectures": ["RepLKNet", [3]],
    "per_layer_config": [{"0": {"dw_ratio": 3}}],
}  # fmt: skip
BAD_FIELDS = [
    pytest.param(name, value, id=f"{name}={str(value)[:40]}") for name, values in FIELDS.items() for value in values
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_configuration_that_no_model_here_has_is_refused(model, images, name, value):
    change(model / CONFIG, **{name: value})
    if name == "num_labels":
        change(model / CONFIG, id2label=None, label2id=None)
    assert_refused(predict(model, images), model, str(model))


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "flash_attention_2"}, {"attn_implementation": "no/such-kernel"}, {"return_dict": False},
        {"output_hidden_states": True}, {"transformers_weights": "other.safetensors"}, {"label2id": None},
        {"architectures": None}, {"auto_map": {"AutoConfig": "evil.Config"}}, {"torch_dtype": "float16"},
        {"a_field_of_a_later_version": [1, 2]}, {"extra_files": ["../../etc/passwd"]},
    ],
    ids=lambda values: next(iter(values)),
)  # fmt: skip
def test_a_switch_that_means_nothing_to_the_model_changes_nothing(model, images, values):
    assert_well(predict(model, images))
    expected = (model.parent / "work" / "answers.csv").read_bytes()
    change(model / CONFIG, **values)
    shutil.rmtree(model.parent / "work")
    assert_well(predict(model, images))
    assert (model.parent / "work" / "answers.csv").read_bytes() == expected


def test_code_in_a_model_folder_does_not_run(model, images):
    (model / "modeling_evil.py").write_text(
        f"open({str(model / 'ran')!r}, 'w')\nclass Model: pass\nclass Config: pass\n"
    )
    auto_map = {"AutoConfig": "modeling_evil.Config", "AutoModelForImageClassification": "modeling_evil.Model"}
    change(model / CONFIG, auto_map=auto_map, model_type="evil")
    change(model / PROCESSOR, auto_map={"AutoImageProcessor": "modeling_evil.Model"})
    assert_refused(predict(model, images), model, str(model))
    assert not (model / "ran").exists()


# The image processor

PROCESSOR_FIELDS = {
    "size": [{"shortest_edge": 100_000}, {"shortest_edge": 10**12}, {"shortest_edge": 0}, {"shortest_edge": -3},
             {"shortest_edge": "73"}, {"shortest_edge": 73.5}, "73", [], {}, {"side": 73}],
    "crop_size": [{"height": 100_000, "width": 100_000}, {"height": 0, "width": 64}, {"height": None, "width": 64},
                  "64"],
    "image_std": [[0, 0, 0], [0.2, 0.2, 0.0], [NAN] * 3, [INFINITY] * 3, ["0.2"] * 3, "0.2", [-0.2] * 3, [0.2, 0.2],
                  [], [1e-45] * 3],
    "image_mean": [[NAN] * 3, ["0.5"] * 3, [0.5, 0.5], {"r": 0.5}, [INFINITY, 0, 0], [[0.5]] * 3],
    "rescale_factor": [INFINITY, NAN, "1/255", 0, [1]],
    "resample": [99, -1, "bicubic", 2.5],
    "do_resize": ["yes", 1], "do_normalize": ["no"], "do_center_crop": [[]],
    "image_processor_type": ["NoSuchImageProcessor", "CLIPTokenizer", 3],
}  # fmt: skip
BAD_PROCESSOR_FIELDS = [
    pytest.param(name, value, id=f"{name}={str(value)[:40]}")
    for name, values in PROCESSOR_FIELDS.items()
    for value in values
]


@pytest.mark.parametrize(("name", "value"), BAD_PROCESSOR_FIELDS)
def test_an_image_processor_that_cannot_work_is_refused(model, images, name, value):
    change(model / PROCESSOR, **{name: value})
    outcome = predict(model, images)
    if name == "image_processor_type" and outcome.code == 0:
        return  # transformers takes the model's own
    assert_refused(outcome, model, str(model))


# Files in place of others


@pytest.mark.parametrize("name", [CONFIG, PROCESSOR, WEIGHTS])
@pytest.mark.parametrize(
    ("content", "part"),
    [
        (LFS, "git lfs pull"), (HTML, "HTML"), (b"", "empty"), (b"[]", ""), (b"null", ""), (b"3", ""),
        (b"\xff\xfe{}", ""),
        (b'{"a": ' * 5000, ""), (b"\0" * 100_000, ""), (b"not found", ""), ("half", ""), ("folder", "folder"),
        ("loop", ""),
    ],
    ids=["LFS", "HTML", "empty", "list", "null", "number", "UTF-16", "nested", "zeros", "text", "half", "folder",
         "loop"],
)  # fmt: skip
def test_something_else_in_place_of_a_file_is_named(model, images, name, content, part):
    path = model / name
    whole = path.read_bytes()
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    assert_refused(predict(model, images), model, str(model), part)


@pytest.mark.parametrize("name", [CONFIG, PROCESSOR, WEIGHTS])
def test_a_pipe_in_place_of_a_file_does_not_hang(model, images, name):
    (model / name).unlink()
    os.mkfifo(model / name)
    assert_refused(predict(model, images, timeout=60), model, name)


def test_missing_weights_are_named(model, images):
    (model / WEIGHTS).unlink()
    assert_refused(predict(model, images), model, WEIGHTS)


# What tells unfamiliar images


@pytest.fixture
def familiar(familiar_dir, tmp_path) -> Path:
    """A copy of a model folder with that file, to be damaged."""
    return Path(shutil.copytree(familiar_dir, tmp_path / "model"))


MEASURES = {
    **{f"no {name}": lambda arrays, name=name: arrays.pop(name) for name in TENSORS},
    **{f"NaN in {name}": lambda arrays, name=name: arrays[name].view(-1)[:1].fill_(NAN) for name in TENSORS},
    "infinite threshold": lambda arrays: arrays["threshold"].fill_(INFINITY),
    "threshold 0": lambda arrays: arrays["threshold"].fill_(0),
    "threshold below 0": lambda arrays: arrays["threshold"].fill_(-1),
    "a list of thresholds": lambda arrays: arrays.update(threshold=torch.ones(1)),
    "fewer features": lambda arrays: arrays.update(center=arrays["center"][:-1]),
    "the whitening of another network": lambda arrays: arrays.update(whitening=torch.eye(480)),
    "more classes": lambda arrays: arrays.update(class_means=torch.ones(5, len(arrays["center"]))),
    "no classes": lambda arrays: arrays.update(class_means=torch.ones(0, len(arrays["center"]))),
    "flat means": lambda arrays: arrays.update(class_means=arrays["class_means"].flatten()),
    "a number as means": lambda arrays: arrays.update(class_means=torch.tensor(1.0)),
    "whole numbers": lambda arrays: arrays.update(center=arrays["center"].int()),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_of_familiarity_that_cannot_be_this_model_s_is_refused(familiar, images, name):
    arrays = load_file(familiar / FAMILIARITY)
    MEASURES[name](arrays)
    save_file({name: tensor.contiguous() for name, tensor in arrays.items()}, familiar / FAMILIARITY)
    assert_refused(predict(familiar, images), familiar, str(familiar))
    assert_well(predict(familiar, images, "--no_certainty"))


@pytest.mark.parametrize("content", [LFS, HTML, b"", b"{}", bytes(1000), "half", "folder"], ids=str)
def test_something_else_in_place_of_the_measure_is_named(familiar, images, content):
    path = familiar / FAMILIARITY
    whole = path.read_bytes()
    path.unlink()
    if content == "folder":
        path.mkdir()
    else:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    assert_refused(predict(familiar, images), familiar, FAMILIARITY)


READERS = {
    "evaluate": "evaluate --test_dir {images} --output_dir out",
    "export": "export --images {images} --format torch_export --output_file out.pt2",
    "export as half": "export --format half --output_file out",
    "demo": "demo",
    "push_to_hub": "push_to_hub --dry_run",
    "push_space": "push_space --hub_space_id alice/demo --dry_run",
}


@pytest.mark.parametrize("name", READERS)
def test_no_command_uses_a_damaged_measure(familiar, labelled, name):
    arrays = load_file(familiar / FAMILIARITY)
    arrays["center"][3] = NAN
    save_file(arrays, familiar / FAMILIARITY)
    (familiar.parent / "work").mkdir()
    flag = "--output_dir" if name == "push_to_hub" else "--model_name_or_path"
    words = [*READERS[name].format(images=labelled).split(), flag, familiar]
    assert_refused(command(words, familiar.parent / "work"), familiar, FAMILIARITY, "NaN in center")


# The weights


def set_value(name: str, value: float) -> Callable[[dict], None]:
    return lambda weights: weights[name].view(-1)[:1].fill_(value)


LARGE = "replknet.encoder.stages.0.layers.0.large_kernel_block.large_kernel.large.convolution.weight"
HEAD, VARIANCE = "classifier.weight", "replknet.normalization.running_var"
LAST_MAP = "replknet.encoder.stages.3.layers.0.feed_forward_block.pointwise2.normalization.weight"
DAMAGES = {
    "NaN": (set_value(LARGE, NAN), LARGE),
    "infinity": (set_value(HEAD, INFINITY), HEAD),
    "minus infinity": (set_value("classifier.bias", -INFINITY), "classifier.bias"),
    "NaN in statistics": (set_value(VARIANCE, NAN), VARIANCE),
    "negative variance": (set_value(VARIANCE, -1.0), VARIANCE),
    "overflowing": (lambda weights: weights[HEAD].fill_(3e38), "finite logits"),
    "overflowing features": (lambda weights: weights[LAST_MAP].fill_(3e38), "finite"),
    "negative infinity": (lambda weights: weights["replknet.normalization.weight"].fill_(-3e38), "finite"),
    "float16 infinity": (lambda weights: {k: (v * 1e6).half() if k == HEAD else v for k, v in weights.items()}, HEAD),
    "other head": (lambda weights: weights.update({HEAD: torch.zeros(7, 64)}), HEAD),
    "transposed": (lambda weights: weights.update({HEAD: weights[HEAD].T}), HEAD),
    "no head": (lambda weights: {k: v for k, v in weights.items() if k != HEAD}, HEAD),
    "int8": (lambda weights: {k: v.to(torch.int8) for k, v in weights.items()}, "I8"),
    "float8": (lambda w: {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in w.items()}, "F8"),
    "bool": (lambda weights: {k: v.bool() for k, v in weights.items()}, ""),
    "complex": (lambda weights: weights.update({HEAD: weights[HEAD].to(torch.complex64)}), HEAD),
    "other names": (lambda weights: {f"backbone.{k}": v for k, v in weights.items()}, ""),
    "no tensors": (lambda weights: {"nothing": torch.zeros(1)}, ""),
    "scalars": (lambda weights: {k: torch.zeros(()) for k in weights}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_weights_that_cannot_answer_are_refused_by_name(model, images, name):
    damage, part = DAMAGES[name]
    change_weights(model, damage)
    assert_sentence(predict(model, images), part)
    assert contents(model.parent / "work") == {}


@pytest.mark.parametrize(
    ("flags", "num_processes"),
    [
        ((), 1), ((), 2), (("--tiles",), 1), (("--tiles",), 2), (("--test_time_augmentation",), 1), (("--watch",), 1)
    ],
    ids=str,
)  # fmt: skip
def test_a_refused_model_leaves_nothing_that_another_would_stumble_over(model, images, flags, num_processes):
    good = (model / WEIGHTS).read_bytes()
    change_weights(model, DAMAGES["overflowing"][0])
    flags = (*flags, "--per_device_eval_batch_size", 4)
    refused = predict(model, images, *flags, num_processes=num_processes)
    assert refused.code == 2 and "expected finite logits" in refused.stderr and "Traceback" not in refused.stderr
    assert num_processes == 2 or contents(model.parent / "work") == {}
    (model / WEIGHTS).write_bytes(good)
    if "--watch" in flags:
        return
    assert_well(predict(model, images, *flags, num_processes=num_processes))
    assert list(contents(model.parent / "work")) == ["answers.csv"]


def test_answers_of_a_watch_stay_when_its_model_is_refused(model, images):
    work, inbox = model.parent / "work", model.parent / "inbox"
    work.mkdir()
    shutil.copytree(images / "Maize", inbox)
    flags = ["--images", inbox, "--output_file", "answers.csv", "--watch"]
    watch = Started(["predict", "--model_name_or_path", model, *flags], work)
    watch.wait_for(lambda: (work / "answers.csv").exists() and (work / "answers.csv").read_text().count("\n") == 17)
    watch.send(signal.SIGINT)
    watch.finish(30)
    before = (work / "answers.csv").read_bytes()
    change_weights(model, DAMAGES["overflowing"][0])
    shutil.copy(next((images / "Charlock").iterdir()), inbox / "new.jpg")
    outcome = command(["predict", "--model_name_or_path", model, *flags], work, timeout=30)
    assert_sentence(outcome)
    assert (work / "answers.csv").read_bytes() == before and (work / "answers.csv.watched").exists()


def header(text: str | bytes, length: int | None = None) -> bytes:
    content = text if isinstance(text, bytes) else text.encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content


@pytest.mark.parametrize(
    "content",
    [
        header("{}", 2**63), header("{}", 10**9), header("[]"), header("not JSON"), header("{}"), b"\x01",
        header('{"a": {"dtype": "F32", "shape": [1000000000, 1000000000], "data_offsets": [0, 4]}}') + b"1234",
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}') + b"1234",
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}') + b"1234",
        header('{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}') + b"1234",
        header('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}') + b"1234",
        header(b'{"\xff": 1}'), header("[" * 10_000),
    ],
    ids=["2**63", "1 GB", "list", "text", "no tensors", "one byte", "shape", "offset", "order", "dtype", "negative",
         "bytes", "nested"],
)  # fmt: skip
def test_a_broken_header_is_refused(model, images, content):
    (model / WEIGHTS).write_bytes(content)
    assert_refused(predict(model, images), model, str(model))


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {HEAD: "../secret.safetensors"}}, {"weight_map": {HEAD: "/etc/passwd"}},
        {"weight_map": {HEAD: "absent.safetensors"}}, {"weight_map": {}}, {"weight_map": [HEAD]}, {}, [],
        {"weight_map": {HEAD: 3}}, {"weight_map": {HEAD: "part.safetensors"}}, {"weight_map": {HEAD: ""}},
        {"weight_map": {HEAD: "."}}, {"weight_map": {HEAD: "..\\secret.safetensors"}}, {"weight_map": None},
    ],
    ids=["parent", "absolute", "absent", "no weights", "list", "no map", "no object", "number", "one of many",
         "no name", "folder", "backslash", "null"],
)  # fmt: skip
def test_an_index_that_does_not_name_the_files_beside_it_is_refused(model, images, index):
    (model / WEIGHTS).rename(model / "whole")
    save_file({HEAD: load_file(model / "whole")[HEAD]}, model / "part.safetensors")
    shutil.copy(model / "whole", model.parent / "secret.safetensors")
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert_refused(predict(model, images), model, str(model))


def test_weights_in_several_files_are_read(model, images):
    weights = load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    names, index = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, model / f"part-{number}.safetensors", {"format": "pt"})
        index |= dict.fromkeys(part, f"part-{number}.safetensors")
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_well(predict(model, images))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_names_of_a_compiled_or_distributed_model_are_read(model, images, prefix):
    assert_well(predict(model, images))
    expected = (model.parent / "work" / "answers.csv").read_bytes()
    change_weights(model, lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()})
    shutil.rmtree(model.parent / "work")
    assert_well(predict(model, images))
    assert (model.parent / "work" / "answers.csv").read_bytes() == expected


class Malice:
    def __reduce__(self):
        return open, ("ran", "w")


def test_a_pickle_in_place_of_weights_does_not_run(model, images):
    (model / WEIGHTS).unlink()
    torch.save({HEAD: Malice()}, model / "pytorch_model.bin")
    assert_refused(predict(model, images), model, str(model))
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Malice()))
    assert_refused(predict(model, images), model, str(model))


# All commands load models by the same way

STEP = "--train_dir {images} --output_dir run --max_steps 1 --image_size 32 --per_device_train_batch_size 8"
COMMANDS = {
    "predict": "--images {images}/Maize --output_file answers.csv",
    "predict as JSON": "--images {images}/Maize --output_file answers.jsonl",
    "predict in bfloat16": "--images {images}/Maize --output_file answers.csv --mixed_precision bf16",
    "evaluate": "--test_dir {images} --output_dir report --test_time_augmentation --saliency",
    "compare": "--data_dir {images} --output_dir report",
    "probe": "--test_dir {images} --output_dir report",
    "embed": "--images {images} --embeddings_file features.parquet",
    "embed normalized": "--images {images} --embeddings_file features.parquet --normalize",
    "saliency": "--images {images}/Maize --output_dir maps",
    "visualize_erf": "--images {images} --output_dir erf --image_size 64 --max_samples 4",
    "export": "--output_file model.onnx --images {images}/Maize",
    "export with int8": "--output_file model.onnx --train_dir {images} --int8",
    "export to PyTorch": "--output_file model.pt2 --format torch_export --images {images}/Maize",
    "export as half": "--output_file half --format half",
    "train": STEP,
    "distillation": f"{STEP} --variant tiny",
    "push_to_hub": "--dry_run",
    "push_space": "--hub_space_id alice/demo --dry_run",
}
FLAGS = {"compare": "--models", "distillation": "--teacher_model_name_or_path", "push_to_hub": "--output_dir"}
WITHOUT_HEAD = ("embed", "embed normalized", "visualize_erf")  # they use the features only
WITHOUT_ANSWERS = ("push_to_hub", "push_space")  # nothing is computed


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """Images of the four classes of the model."""
    return copy_sample(tmp_path_factory.mktemp("labelled") / "images", SPECIES, slice(8))


def run_with(model: Path, images: Path, name: str, damage: Callable[[], object]) -> Outcome:
    """Runs one of `COMMANDS` after `damage()`; no number that it writes is NaN or infinite."""
    work, other = model.parent / "work", shutil.copytree(model, model.parent / "other")
    work.mkdir()
    damage()
    models = [other, model] if name == "compare" else [model]
    words = "train" if name == "distillation" else name.split()[0]
    flags = COMMANDS[name].format(images=images).split()
    outcome = command([words, FLAGS.get(name, "--model_name_or_path"), *models, *flags], work)
    written = [path for path in work.rglob("*") if path.suffix in (".json", ".jsonl", ".csv", ".md", ".html")]
    not_finite = re.compile(r"(?<!\w)(nan|inf|-inf|infinity)(?!\w)", re.IGNORECASE)
    assert not [path for path in written if not_finite.search(path.read_text())]
    assert not not_finite.search(outcome.stdout)
    return outcome


@pytest.mark.parametrize("damage", ["none", "NaN", "LFS", "overflowing", "overflowing features"])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_uses_a_damaged_model(model, labelled, damage, name):
    def do() -> None:
        if damage == "LFS":
            (model / WEIGHTS).write_bytes(LFS)
        elif damage != "none":
            change_weights(model, DAMAGES[damage][0])

    outcome = run_with(model, labelled, name, do)
    unused = {"none": COMMANDS, "overflowing": WITHOUT_HEAD + WITHOUT_ANSWERS, "overflowing features": WITHOUT_ANSWERS}
    if name in unused.get(damage, ()):
        assert_well(outcome)
        return
    overflow = "float16" if name == "export as half" else "finite"
    assert_sentence(outcome, {"NaN": LARGE, "LFS": "git lfs pull"}.get(damage, overflow))
    if damage in ("NaN", "LFS") or name != "train":
        assert str(model) in outcome.stderr or name == "export as half"
    assert name in ("train", "distillation") or contents(model.parent / "work") == {}


@pytest.mark.parametrize("scale", [1e15, 1e30])
@pytest.mark.parametrize("name", COMMANDS)
def test_huge_features_give_finite_answers_or_a_sentence(model, labelled, scale, name):
    outcome = run_with(model, labelled, name, lambda: change_weights(model, lambda w: w[LAST_MAP].fill_(scale)))
    assert outcome.code in (0, 2), outcome
    if outcome.code == 2:
        assert_sentence(outcome)
        assert name in ("train", "distillation") or contents(model.parent / "work") == {}
    elif "embed" in name:
        from pyarrow import parquet

        columns = parquet.read_table(model.parent / "work" / "features.parquet")
        lengths = torch.tensor(columns["embedding"].to_pylist(), dtype=torch.float64).norm(dim=1)
        assert lengths.isfinite().all() and (lengths > 0.999).all()


# Checkpoints of the authors


def convert(path: Path, *words: object, **options) -> Outcome:
    (path.parent / "work").mkdir(exist_ok=True)
    return command(["convert_checkpoint", "--checkpoint_path", path, "--output_dir", "model", *words],
                   path.parent / "work", **options)  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return dict(torch.load(GOLDEN, weights_only=True)["model"])


def with_block(stage: int, block: int) -> dict[str, torch.Tensor]:
    return {**tensors(), f"stages.{stage}.blocks.{block}.pw1.conv.weight": torch.zeros(8, 8, 1, 1)}


CHECKPOINTS = {
    "block 2,000,000": lambda: with_block(0, 2_000_000),
    "block 999,999,999,999": lambda: with_block(0, 999_999_999_999),
    "stage 2,000,000": lambda: with_block(2_000_000, 0),
    "a thousand blocks": lambda: with_block(0, 1_999),
    "keys that are numbers": lambda: dict(enumerate(tensors().values())),
    "one key that is a number": lambda: {**tensors(), 3: torch.zeros(1)},
    "keys that are tuples": lambda: {(name,): tensor for name, tensor in tensors().items()},
    "a list": lambda: list(tensors().values()),
    "a tensor": lambda: torch.zeros(3),
    "a number": lambda: 3,
    "None": lambda: None,
    "an empty dictionary": dict,
    "nested thrice": lambda: {"model": {"model": {"model": tensors()}}},
    "a number among the weights": lambda: {**tensors(), "epoch": 3},
    "NaN": lambda: {name: tensor * NAN if name == "norm.weight" else tensor for name, tensor in tensors().items()},
    "infinity": lambda: {k: v + INFINITY if k == "norm.bias" else v for k, v in tensors().items()},
    "integers": lambda: {name: tensor.to(torch.int32) for name, tensor in tensors().items()},
    "sparse": lambda: {name: tensor.to_sparse() for name, tensor in tensors().items()},
    "expanded": lambda: {k: v[:1].expand(100_000, *v.shape[1:]) if v.ndim == 4 else v for k, v in tensors().items()},
    "no stem": lambda: {name: tensor for name, tensor in tensors().items() if not name.startswith("stem")},
    "flat": lambda: {name: tensor.flatten() for name, tensor in tensors().items()},
    "five dimensions": lambda: {name: tensor[None] for name, tensor in tensors().items()},
    "code": lambda: {"model": Malice()},
    "a head of three dimensions": lambda: {**tensors(), "head.weight": torch.zeros(2, 3, 4)},
    "empty tensors": lambda: {name: tensor[:0] if tensor.ndim else tensor for name, tensor in tensors().items()},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, name):
    torch.save(CHECKPOINTS[name](), tmp_path / "weights.pth")
    outcome = convert(tmp_path / "weights.pth", timeout=60)
    assert_sentence(outcome)
    assert outcome.seconds < 20 and contents(tmp_path / "work") == {}


@pytest.mark.parametrize(
    ("content", "part"),
    [(LFS, "git lfs pull"), (HTML, "HTML"), (b"", "empty"), (b"PK\x03\x04", ""), (b"\x80\x02}q\x00", ""), (b"text", ""),
     ("half", ""), ("folder", "folder"), ("pipe", "pipe"), ("absent", "")],
    ids=["LFS", "HTML", "empty", "zip", "pickle", "text", "half", "folder", "pipe", "absent"],
)  # fmt: skip
def test_something_else_in_place_of_a_checkpoint_is_named(tmp_path, content, part):
    path = tmp_path / "weights.pth"
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content != "absent":
        path.write_bytes(GOLDEN.read_bytes()[:5000] if content == "half" else content)
    assert_sentence(convert(path, timeout=30), str(path), part)
    assert contents(tmp_path / "work") == {}


@pytest.mark.parametrize(
    "flags", [("--num_labels", 10**9), ("--image_size", 100_000), ("--num_labels", 0)], ids=lambda flags: flags[0]
)
def test_a_checkpoint_is_not_converted_to_what_no_machine_holds(tmp_path, flags):
    shutil.copy(GOLDEN, tmp_path / "weights.pth")
    assert_sentence(convert(tmp_path / "weights.pth", *flags), flags[0].removeprefix("--"))
