"""Images as they come: other formats, broken metadata, names, suffixes, and sizes that do not fit."""

import io
import json
import os
import shutil
import struct
import sys
import zlib
from functools import partial
from pathlib import Path

import pytest
import tiffs
from faults import Started, assert_sentence, assert_well, command, contents
from PIL import ExifTags, Image

TRAIN = ["train", "--train_dir", "images", "--output_dir", "run", "--variant", "tiny", "--image_size", 32,
         "--per_device_train_batch_size", 8, "--max_steps", 2, "--no_duplicate_check", "true"]  # fmt: skip
TRAIN = TRAIN[:-1]
COMMANDS = {
    "train": TRAIN,
    "predict": ["predict", "--images", "images", "--output_file", "out.csv"],
    "evaluate": ["evaluate", "--test_dir", "images", "--output_dir", "out"],
    "compare": ["compare", "--models", "model", "other", "--data_dir", "images", "--output_dir", "out"],
    "probe": ["probe", "--test_dir", "images", "--output_dir", "out"],
    "embed": ["embed", "--images", "images", "--embeddings_file", "out.parquet"],
    "saliency": ["saliency", "--images", "images", "--output_dir", "out"],
    "export": ["export", "--format", "torch_export", "--output_file", "out.pt2", "--images", "images"],
    "describe_dataset": ["describe_dataset", "--train_dir", "images"],
    "inspect_dataset": ["inspect_dataset", "--train_dir", "images", "--output_dir", "out"],
    "make_split": ["make_split", "--train_dir", "images", "--output_dir", "out"],
    "preview_augmentation": ["preview_augmentation", "--train_dir", "images", "--output_dir", "out"],
    "visualize_erf": ["visualize_erf", "--images", "images", "--output_dir", "out", "--untrained", "tiny",
                      "--image_size", 64],
    "push_dataset": ["push_dataset", "--train_dir", "images", "--dataset_name", "a/b", "--license", "mit", "--dry_run"],
}  # fmt: skip
WITH_MODEL = {"predict", "evaluate", "probe", "embed", "saliency", "export"}
SKIPPING = {"train", "predict", "evaluate", "compare", "probe", "embed", "saliency", "describe_dataset", "make_split",
            "push_dataset"}  # fmt: skip


@pytest.fixture
def folder(tmp_path, images, model_dir) -> Path:
    """A folder with a few images of its own, and a model."""
    for label in ("Black-grass", "Charlock", "Maize"):
        (tmp_path / "work" / "images" / label).mkdir(parents=True)
        for file in sorted((images / label).iterdir())[:4]:
            shutil.copyfile(file, tmp_path / "work" / "images" / label / file.name)
    shutil.copytree(model_dir, tmp_path / "work" / "model")
    return tmp_path / "work"


def words_of(name: str, *flags: object) -> list:
    return [*COMMANDS[name], *(["--model_name_or_path", "model"] if name in WITH_MODEL else []), *flags]


def prepare(folder: Path, name: str) -> None:
    if name == "compare":
        shutil.copytree(folder / "model", folder / "other")


# Ghostscript


def with_ghostscript(folder: Path) -> None:
    """A stand-in first on PATH, which leaves a file when it is called."""
    for program in ("gs", "gswin32c", "gswin64c"):
        path = folder / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {folder}/called\ncat >/dev/null\n")
        path.chmod(0o755)


def put_first_on_the_path(folder: Path) -> None:
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"


def write_eps(path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "green").save(stream, "EPS")
    path.write_bytes(stream.getvalue())


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_starts_ghostscript(folder, name):
    prepare(folder, name)
    with_ghostscript(folder)
    write_eps(folder / "images" / "Maize" / "a.png")
    outcome = command(words_of(name), folder, before=partial(put_first_on_the_path, folder))
    assert not (folder / "called").exists()
    if name == "inspect_dataset":
        assert outcome.code == 1 and "Traceback" not in outcome.stderr, outcome
        assert "PostScript" in (folder / "out" / "inspection.json").read_text()
    else:
        assert_sentence(outcome, "a.png", "PostScript")


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp", ".jfif"])
def test_predict_starts_no_ghostscript_for_an_image_given_by_name(folder, suffix):
    with_ghostscript(folder)
    write_eps(folder / f"a{suffix}")
    words = ["predict", "--model_name_or_path", "model", "--images", f"a{suffix}"]
    outcome = command(words, folder, before=partial(put_first_on_the_path, folder))
    assert not (folder / "called").exists()
    assert_sentence(outcome, f"a{suffix}")


def test_no_other_format_is_opened(folder):
    for format, name in (("PCX", "a.png"), ("SGI", "b.png"), ("TGA", "c.png"), ("ICO", "d.png"), ("IM", "e.png")):
        Image.new("RGB", (32, 32)).save(folder / "images" / "Maize" / name, format=format)
    outcome = command(words_of("predict", "--skip_bad_images"), folder)
    assert_well(outcome)
    assert (folder / "out.failed.csv").read_text().count("\n") == 6


# Metadata


def png_with(kind: bytes, content: bytes, *, checksum: bool = True) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((48, 32), 50).convert("RGB").save(stream, "PNG")
    data, crc = stream.getvalue(), zlib.crc32(kind + content) if checksum else 7
    return data[:33] + struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc) + data[33:]


def jpeg_with(kind: int, content: bytes) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((48, 32), 50).convert("RGB").save(stream, "JPEG")
    data = stream.getvalue()
    return data[:2] + struct.pack(">BBH", 0xFF, kind, len(content) + 2) + content + data[2:]


def webp_with(**options: bytes) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((48, 32), 50).convert("RGB").save(stream, "WEBP", **options)
    return stream.getvalue()


BOMB = zlib.compress(bytes(5 << 20))
NOISE = Image.effect_noise((48, 32), 50).convert("RGB")
BROKEN = {
    "exif.png": png_with(b"eXIf", b"garbage garbage"),
    "exif-checksum.png": png_with(b"eXIf", b"II*\0", checksum=False),
    "text-as-exif.png": png_with(b"tEXt", b"Raw profile type exif\0\nexif\n  12\nzz zz"),
    "text-checksum.png": png_with(b"tEXt", b"a\0b", checksum=False),
    "text-bomb.png": png_with(b"zTXt", b"a\0\0" + BOMB),
    "profile.png": png_with(b"iCCP", b""),
    "profile-bomb.png": png_with(b"iCCP", b"a\0\0" + BOMB),
    "resolution.png": png_with(b"pHYs", b"\0"),
    "gamma.png": png_with(b"gAMA", b"\0"),
    "animation.png": png_with(b"acTL", b"\0"),
    "exif.jpg": jpeg_with(0xE1, b"Exif\0\0garbage"),
    "exif-count.jpg": jpeg_with(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\0\0\x10"),
    "profile.jpg": jpeg_with(0xE2, b"ICC_PROFILE\0"),
    "jfif.jpg": jpeg_with(0xE0, b"JFIF"),
    "adobe.jpg": jpeg_with(0xEE, b"Adobe"),
    "xmp.jpg": jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken"),
    "exif.webp": webp_with(exif=b"garbage garbage"),
    "exif-head.webp": webp_with(exif=b"Exif\0\0garbage"),
    "profile.webp": webp_with(icc_profile=b"garbage"),
    **{f"{name}.tif": content for name, content in tiffs.whole(NOISE).items()},
}
BROKEN_TIFFS = {f"{name}.tif": content for name, content in tiffs.broken(NOISE).items()}


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_with_broken_metadata_is_predicted(folder, name):
    (folder / "images" / "Maize" / name).write_bytes(BROKEN[name])
    outcome = command(words_of("predict"), folder)
    assert_well(outcome)
    assert name in (folder / "out.csv").read_text()
    assert not (folder / "out.failed.csv").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_images_with_broken_metadata_are_used_by_every_command(folder, name):
    prepare(folder, name)
    for file, content in BROKEN.items():
        (folder / "images" / "Maize" / file).write_bytes(content)
    outcome = command(words_of(name), folder)
    if name == "inspect_dataset":
        assert outcome.code in (0, 1) and "Traceback" not in outcome.stderr, outcome
        assert json.loads((folder / "out" / "inspection.json").read_text())["corrupt"] == []
    else:
        assert_well(outcome)


@pytest.mark.parametrize("name", BROKEN_TIFFS)
def test_a_tiff_without_whole_pixels_is_named(folder, name):
    (folder / "images" / "Maize" / name).write_bytes(BROKEN_TIFFS[name])
    assert_sentence(command(words_of("predict"), folder), name)
    assert not (folder / "out.csv").exists()


@pytest.mark.parametrize("name", sorted(SKIPPING))
def test_tiffs_without_whole_pixels_are_skipped_on_request(folder, name):
    prepare(folder, name)
    for file, content in BROKEN_TIFFS.items():
        (folder / "images" / "Maize" / file).write_bytes(content)
    assert_well(command(words_of(name, "--skip_bad_images"), folder))
    if name == "predict":
        assert (folder / "out.failed.csv").read_text().count("\n") == 1 + len(BROKEN_TIFFS)


def test_an_image_is_turned_once(folder):
    upright = Image.open(next((folder / "images" / "Maize").iterdir())).convert("RGB").resize((64, 48))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.save(folder / "a.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "b.png", exif=exif)
    words = ["predict", "--model_name_or_path", "model", "--images", "a.png", "b.png", "--output_file", "out.csv"]
    assert_well(command(words, folder))
    first, second = (folder / "out.csv").read_text().splitlines()[1:]
    assert first.removeprefix("a.png") == second.removeprefix("b.png")


# Suffixes and other files

SUFFIXES = [".jfif", ".jpe", ".avif", ".JPG", ".JPEG", ".JFIF", ".PNG", ".AVIF", ".TIFF", ".Webp", ".jp2", ".pbm",
            ".pnm", ".dib", ".apng", ".mpo"]  # fmt: skip


WRITTEN = {"predict": "out.csv", "evaluate": "out/predictions.csv", "embed": "out.parquet", "train": "run/split.csv"}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_suffix_that_pillow_decodes_is_taken(folder, name):
    for suffix in SUFFIXES:
        format = Image.registered_extensions()[suffix.lower()]
        image = Image.effect_noise((48, 32), 50).convert("RGB")
        image.save(folder / "images" / "Maize" / f"a{suffix}", format="JPEG" if format == "MPO" else format)
    outcome = command(words_of(name), folder)
    assert_well(outcome)
    text = (folder / WRITTEN[name]).read_bytes()
    if name == "embed":
        from pyarrow import parquet

        text = " ".join(parquet.read_table(folder / WRITTEN[name])["file"].to_pylist()).encode()
    assert not [suffix for suffix in SUFFIXES if f"a{suffix}".encode() not in text]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_left_out_is_counted_once_with_the_reason(folder, name):
    prepare(folder, name)
    for file in ("a.heic", "b.HEIC", "c.cr2", "d.txt", "e.txt", "f.xml", "Thumbs.db"):
        (folder / "images" / "Maize" / file).write_bytes(b"x")
    outcome = command(words_of(name), folder, before=hide_pillow_heif)
    assert "Traceback" not in outcome.stderr and outcome.code in (0, 1), outcome
    (notice,) = [line for line in outcome.stderr.splitlines() if "left out in images" in line]
    for words in ("2 .heic", "convert", "1 .cr2", "2 .txt", "1 .xml"):
        assert words in notice


@pytest.mark.parametrize("name", ["predict", "evaluate", "train", "embed"])
def test_a_folder_of_heic_only_says_how_to_convert(folder, name):
    for file in (folder / "images").rglob("*.jpg"):
        file.rename(file.with_suffix(".heic"))
    outcome = command(words_of(name), folder, before=hide_pillow_heif)
    assert_sentence(outcome)
    assert "pillow-heif" in outcome.stderr and "magick" in outcome.stderr


def hide_pillow_heif() -> None:
    sys.modules["pillow_heif"] = None


INSTEAD = {
    "empty": (b"", "empty"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    "html": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML"),
    "pdf": (b"%PDF-1.7\n", "PDF"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heif"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "zip": (b"PK\x03\x04", "ZIP"),
    "jxl": (b"\xff\x0a\x00", "JPEG XL"),
}


@pytest.mark.parametrize("name", ["predict", "evaluate", "train", "embed", "export"])
@pytest.mark.parametrize("kind", INSTEAD)
def test_what_lies_in_place_of_an_image_is_named(folder, kind, name):
    content, reason = INSTEAD[kind]
    (folder / "images" / "Maize" / "a.jpg").write_bytes(content)
    assert_sentence(command(words_of(name), folder), "a.jpg", reason)


# Names

BAD_NAME = b"\xe4\xff.jpg"


def add_bad_name(folder: Path) -> None:
    first = min((folder / "images" / "Maize").iterdir())
    shutil.copyfile(first, os.fsencode(folder / "images" / "Maize") + b"/" + BAD_NAME)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_name_that_is_not_utf8_works_or_is_named(folder, name):
    prepare(folder, name)
    add_bad_name(folder)
    outcome = command(words_of(name), folder)
    assert "Traceback" not in outcome.stderr, outcome
    if outcome.code == 2:
        assert_sentence(outcome, "\\xe4\\xff.jpg")
    elif name == "inspect_dataset":
        assert outcome.code == 1
        assert "xff.jpg" in (folder / "out" / "inspection.json").read_text()
    else:
        assert_well(outcome)


@pytest.mark.parametrize("name", sorted(SKIPPING))
def test_a_name_that_is_not_utf8_does_not_stop_what_skips_bad_images(folder, name):
    prepare(folder, name)
    add_bad_name(folder)
    outcome = command(words_of(name, "--skip_bad_images"), folder)
    assert_well(outcome)
    if name in ("predict", "saliency"):
        assert len(list((folder / "out").glob("*.png"))) == 14 if name == "saliency" else True
        assert name == "saliency" or BAD_NAME in (folder / "out.csv").read_bytes()
    else:
        assert "\\xe4\\xff.jpg" in outcome.stderr


@pytest.mark.parametrize("output", [[], ["--output_file", "out.jsonl"], ["--format", "kaggle"], ["--format", "jsonl"]])
def test_predict_writes_a_name_that_is_not_utf8_in_every_format(folder, output):
    add_bad_name(folder)
    words = ["predict", "--model_name_or_path", "model", "--images", "images/Maize", *output]
    outcome = command(words, folder, environment={"PYTHONUTF8": "1"})
    assert_well(outcome)


def test_predict_takes_an_image_and_a_folder_given_by_names_that_are_not_utf8(folder):
    add_bad_name(folder)
    os.rename(folder / "images" / "Charlock", os.fsencode(folder) + b"/\xff")
    words = ["predict", "--model_name_or_path", "model", "--output_file", "out.csv", "--images",
             os.fsdecode(b"images/Maize/" + BAD_NAME), os.fsdecode(b"\xff")]  # fmt: skip
    assert_well(command(words, folder))
    assert (folder / "out.csv").read_bytes().count(b"\n") == 6


def test_a_watch_answers_an_image_whose_name_is_not_utf8(folder):
    words = words_of("predict", "--watch")
    watch = Started(words, folder)
    watch.wait_for(lambda: (folder / "out.csv").exists())
    add_bad_name(folder)
    old = os.fsencode(folder / "images" / "Maize") + b"/" + BAD_NAME
    os.utime(old, (1e9, 1e9))
    watch.wait_for(lambda: (folder / "out.csv").read_bytes().count(b"\n") == 14, timeout=30)
    watch.send(15)
    outcome = watch.finish()
    assert outcome.code in (0, 75) and "Traceback" not in outcome.stderr, outcome
    assert BAD_NAME in (folder / "out.csv").read_bytes()


@pytest.mark.parametrize("name", ["train", "evaluate", "inspect_dataset", "embed", "predict"])
def test_a_class_folder_whose_name_is_not_utf8_works_or_is_named(folder, name):
    os.rename(folder / "images" / "Maize", os.fsencode(folder / "images") + b"/Ma\xefs")
    outcome = command(words_of(name), folder)
    assert "Traceback" not in outcome.stderr, outcome
    if outcome.code:
        assert_sentence(outcome, "Ma\\xefs")


# Sizes

SIDE = 300_000  # of a single image, 270 GB in 8 bits: more than a machine has


@pytest.mark.parametrize("flags", [
    [], ["--per_device_train_batch_size", 1], ["--auto_find_batch_size"], ["--gradient_checkpointing"],
    ["--mixed_precision", "bf16"], ["--image_size_start", 32], ["--dataloader_num_workers", 1],
], ids=str)  # fmt: skip
def test_training_on_images_that_cannot_fit_is_refused_with_figures(folder, flags):
    outcome = command([*TRAIN, "--image_size", SIDE, *flags], folder)
    assert_sentence(outcome, "GB", "300,000", "--image_size")
    assert outcome.seconds < 30
    assert not (folder / "run" / "checkpoints").exists()


@pytest.mark.parametrize("variant", ["nano", "31B"])
def test_training_of_any_variant_on_images_that_cannot_fit_is_refused(folder, variant):
    outcome = command([*TRAIN, "--variant", variant, "--image_size", SIDE], folder)
    assert_sentence(outcome, "GB", "--image_size")


def test_training_of_a_timm_network_on_images_that_cannot_fit_is_refused(folder):
    words = [*TRAIN, "--timm_architecture", "resnet18", "--image_size", SIDE]
    del words[words.index("--variant") : words.index("--variant") + 2]
    assert_sentence(command(words, folder), "GB", "--image_size")


def with_large_images(folder: Path) -> None:
    """A processor of the largest images that a model folder may ask for."""
    path = folder / "model" / "preprocessor_config.json"
    values = json.loads(path.read_text())
    values |= {"size": {"shortest_edge": 30_000}, "crop_size": {"height": 30_000, "width": 30_000}}
    path.write_text(json.dumps(values))


def with_little_memory() -> None:
    """A machine of 1 GB, as far as the command can see."""
    import psutil

    class Memory:
        total = available = 10**9

    psutil.virtual_memory = psutil.swap_memory = lambda: Memory


@pytest.mark.parametrize("name", ["predict", "evaluate", "compare", "probe", "embed", "saliency", "export"])
def test_a_model_of_images_that_cannot_fit_is_refused(folder, name):
    with_large_images(folder)
    prepare(folder, name)
    outcome = command(words_of(name), folder, before=with_little_memory, timeout=30)
    assert_sentence(outcome)
    assert "GB" in outcome.stderr or "pixels" in outcome.stderr or "30000" in outcome.stderr


def test_the_demo_of_a_model_of_images_that_cannot_fit_is_refused(folder):
    with_large_images(folder)
    words = ["demo", "--model_name_or_path", "model", "--port", 0]
    outcome = command(words[:3], folder, before=with_little_memory, timeout=30)
    assert_sentence(outcome)


@pytest.mark.parametrize("words", [
    ["preview_augmentation", "--train_dir", "images", "--output_dir", "out"],
    ["visualize_erf", "--images", "images", "--output_dir", "out", "--untrained", "tiny"],
    ["benchmark", "--output_dir", "out", "--variant", "tiny", "--parts", "inference"],
], ids=lambda words: words[0])  # fmt: skip
def test_other_commands_refuse_images_that_cannot_fit(folder, words):
    assert_sentence(command([*words, "--image_size", SIDE], folder, timeout=60), "GB", "--image_size")


@pytest.mark.parametrize("name", ["predict", "evaluate", "embed"])
def test_a_large_batch_of_few_images_is_not_refused(folder, name):
    assert_well(command(words_of(name, "--per_device_eval_batch_size", 10**6), folder))


def test_a_training_batch_that_fits_is_not_refused(folder):
    before = contents(folder / "images")
    assert_well(command([*TRAIN, "--per_device_eval_batch_size", 10**6], folder))
    assert contents(folder / "images") == before
