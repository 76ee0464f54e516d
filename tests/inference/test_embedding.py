import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from pyarrow import parquet
from sample import copy_sample
from small_models import SPECIES, write_model

from seedling_hf.commands import run
from seedling_hf.commands.embed import main as embed_command
from seedling_hf.errors import InputError
from seedling_hf.inference import embedding, nearest
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.inference.embedding import find_class_names, hash_weights
from seedling_hf.inference.nearest import find_nearest, format_nearest

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("unsettled_precision")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Seven images of one class, six of the others: 25, not divisible by any batch size of these tests."""
    folder = copy_sample(tmp_path_factory.mktemp("images"), SPECIES, slice(6))
    return copy_sample(folder, ["Maize"], slice(6, 7))


@pytest.fixture(scope="module")
def embeddings_file(model_dir, images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("embeddings") / "new" / "features.parquet"
    assert embed(model_dir, path, images=images, per_device_eval_batch_size=4) == 0
    return path


def embed(model_dir: Path, embeddings_file: Path, **values: object) -> int:
    words = ["--model_name_or_path", str(model_dir), "--embeddings_file", str(embeddings_file)]
    for name, value in values.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return run(embed_command, words)


def load(path: Path, folder: Path):
    return load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(folder))


def test_datasets_loads_files_class_names_and_vectors(embeddings_file, images, tmp_path):
    rows = load(embeddings_file, tmp_path)
    assert rows.column_names == ["file", "label", "embedding"]
    assert rows.features["label"].names == SPECIES
    assert (rows.features["embedding"].length, rows.features["embedding"].feature.dtype) == (64, "float32")
    assert rows["file"][:] == [str(file) for file in sorted(images.glob("*/*"))]
    assert [SPECIES[i] for i in rows["label"]] == [Path(file).parent.name for file in rows["file"]]


def test_the_vectors_are_the_pooled_features_of_the_trained_model(embeddings_file, model_dir, images, tmp_path):
    model, image_processor = load_classifier(str(model_dir), merge=False)
    opened = [Image.open(file) for file in sorted(images.glob("*/*"))]
    with torch.inference_mode():
        expected = model.replknet(image_processor(opened, return_tensors="pt").pixel_values).pooler_output
    found = torch.tensor(load(embeddings_file, tmp_path)["embedding"][:])
    # 1e-4: merged kernels sum float32 in another order.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_normalised_vectors_of_huge_features_have_length_1_too(model_dir, images, tmp_path):
    model, image_processor = load_classifier(str(model_dir))
    with torch.no_grad():
        for parameter in model.replknet.normalization.parameters():
            parameter.mul_(1e30)
    model.save_pretrained(tmp_path / "model")
    image_processor.save_pretrained(tmp_path / "model")
    path = tmp_path / "features.parquet"
    assert embed(tmp_path / "model", path, images=images / "Maize", normalize=True) == 0
    vectors = np.array(parquet.read_table(path)["embedding"].to_pylist())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)  # rounded to float32


def test_each_image_is_most_similar_to_itself(embeddings_file, images, model_dir, capsys):
    for file in sorted(images.glob("*/*"))[::8]:
        assert embed(model_dir, embeddings_file, query=file, top_k=3) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert lines[0].startswith(f"1.0000  {file} ") and lines[0].endswith(f"  {file.parent.name}")


def test_an_image_saved_again_is_found(embeddings_file, images, model_dir, tmp_path, capsys):
    file = sorted(images.glob("Maize/*"))[3]
    Image.open(file).save(tmp_path / "again.jpg", quality=90)
    assert embed(model_dir, embeddings_file, query=tmp_path / "again.jpg") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert str(file) in lines[0]


def test_the_nearest_are_those_of_all_cosines(embeddings_file, monkeypatch):
    monkeypatch.setattr(nearest, "ROWS_AT_ONCE", 4)  # more than one chunk
    table = parquet.read_table(embeddings_file)
    vectors, query = np.array(table["embedding"].to_pylist()), np.arange(64.0) - 30
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosines)[:7]
    rows = find_nearest(embeddings_file, query, 7)
    assert [row["file"] for row in rows] == [table["file"][i].as_py() for i in order]
    assert [row["similarity"] for row in rows] == pytest.approx(cosines[order], rel=1e-12)
    assert [row["label"] for row in rows] == [Path(row["file"]).parent.name for row in rows]


def test_vectors_that_are_not_finite_are_refused(embeddings_file, tmp_path):
    table, path = parquet.read_table(embeddings_file), tmp_path / "damaged.parquet"
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    vectors[3, 5] = np.nan
    column = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), vectors.shape[1])
    parquet.write_table(table.set_column(2, table.schema.field("embedding"), column), path)
    with pytest.raises(InputError, match=r"damaged.parquet, .*features that are NaN or infinite"):
        find_nearest(path, np.ones(64), 5)


def test_a_top_k_above_the_number_of_images_gives_all_images(embeddings_file):
    assert len({row["file"] for row in find_nearest(embeddings_file, np.ones(64), 100)}) == 25


def test_normalised_vectors_have_length_1_and_the_same_direction(embeddings_file, model_dir, images, tmp_path):
    assert embed(model_dir, tmp_path / "unit.parquet", images=images, normalize=True) == 0
    unit = np.array(load(tmp_path / "unit.parquet", tmp_path)["embedding"][:])
    plain = np.array(load(embeddings_file, tmp_path)["embedding"][:])
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)  # float32
    # 1e-4: the batches differ, and with them the order of sums.
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=0, atol=1e-4)


def test_workers_that_load_images_change_nothing(embeddings_file, model_dir, images, tmp_path):
    words = {"per_device_eval_batch_size": 4, "dataloader_num_workers": 2}
    assert embed(model_dir, tmp_path / "workers.parquet", images=images, **words) == 0
    assert parquet.read_table(tmp_path / "workers.parquet").equals(parquet.read_table(embeddings_file))


def test_many_batches_become_few_row_groups(embeddings_file, model_dir, images, tmp_path, monkeypatch):
    assert parquet.ParquetFile(embeddings_file).num_row_groups == 1
    monkeypatch.setattr(embedding, "ROWS_OF_A_GROUP", 10)
    path = tmp_path / "parts.parquet"
    assert embed(model_dir, path, images=images, per_device_eval_batch_size=4) == 0
    file = parquet.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [12, 12, 1]
    assert file.read().equals(parquet.read_table(embeddings_file))


def test_images_in_no_class_folders_have_no_label(model_dir, images, tmp_path):
    assert embed(model_dir, tmp_path / "maize.parquet", images=images / "Maize") == 0
    assert parquet.read_schema(tmp_path / "maize.parquet").names == ["file", "embedding"]
    assert "label" not in find_nearest(tmp_path / "maize.parquet", np.ones(64), 1)[0]


def test_an_image_beside_the_class_folders_has_an_empty_label(model_dir, images, tmp_path):
    (tmp_path / "images").mkdir()
    for source in (images / "Maize", sorted(images.glob("Maize/*"))[0]):
        (tmp_path / "images" / source.name).symlink_to(source)
    assert embed(model_dir, tmp_path / "some.parquet", images=tmp_path / "images") == 0
    rows = parquet.read_table(tmp_path / "some.parquet").to_pylist()
    assert [row["label"] for row in rows if "/Maize/" in row["file"]] == [0] * 7
    assert [row["label"] for row in rows if "/Maize/" not in row["file"]] == [None]
    nearest = find_nearest(tmp_path / "some.parquet", np.ones(64), 8)
    assert {row["label"] for row in nearest} == {"Maize", None}


def test_folders_with_folders_inside_are_not_classes(tmp_path):
    (tmp_path / "train" / "Maize").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    assert find_class_names([str(tmp_path)]) == []
    assert find_class_names([str(tmp_path / "train")]) == ["Maize"]
    assert find_class_names([str(tmp_path / "train")] * 2) == []


@pytest.fixture
def with_a_broken_one(images, tmp_path) -> Path:
    folder = tmp_path / "broken"
    folder.mkdir()
    for i, file in enumerate(sorted(images.glob("Maize/*"))):
        (folder / file.name).write_bytes(file.read_bytes()[: 500 if i == 5 else None])
    return folder


def test_a_broken_image_is_named_and_the_old_file_stays(
    with_a_broken_one, embeddings_file, model_dir, tmp_path, capsys
):
    target = tmp_path / "out" / "features.parquet"
    target.parent.mkdir()
    target.write_bytes(embeddings_file.read_bytes())
    assert embed(model_dir, target, images=with_a_broken_one, per_device_eval_batch_size=2) == 2
    assert str(sorted(with_a_broken_one.iterdir())[5]) in capsys.readouterr().err
    assert target.read_bytes() == embeddings_file.read_bytes()
    assert list(target.parent.iterdir()) == [target]


def test_broken_images_may_be_skipped_and_are_listed(with_a_broken_one, model_dir, tmp_path, capsys):
    words = {"per_device_eval_batch_size": 1, "skip_bad_images": True}
    assert embed(model_dir, tmp_path / "some.parquet", images=with_a_broken_one, **words) == 0
    shown = capsys.readouterr()
    files = [str(file) for file in sorted(with_a_broken_one.iterdir())]
    assert "embeddings of 6 images are in" in shown.out
    assert f"{files[5]}: " in shown.err
    assert parquet.read_table(tmp_path / "some.parquet")["file"].to_pylist() == files[:5] + files[6:]


def test_a_file_of_another_model_is_not_searched(embeddings_file, sample_dir, images, tmp_path, capsys):
    write_model(tmp_path / "other", sample_dir, images=5)
    assert embed(tmp_path / "other", embeddings_file, query=sorted(images.glob("*/*"))[0]) == 2
    assert "found it written with other weights; write it again" in capsys.readouterr().err


def test_the_hash_of_a_model_is_that_of_its_weights(model_dir, embeddings_file):
    first, second = (load_classifier(str(model_dir), merge=False)[0] for _ in range(2))
    assert hash_weights(first) == hash_weights(second)
    about = json.loads(parquet.read_schema(embeddings_file).metadata[b"seedling_hf"])
    assert about["weights_sha256"] == hash_weights(first)
    with torch.no_grad():
        second.classifier.bias[0] += 1e-3
    assert hash_weights(first) != hash_weights(second)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"images": "./nothing"}, "expected an image or a folder at nothing, found nothing there"),
        ({"images": "."}, "expected images in ., found none; name another folder"),
        ({}, "expected --images to embed or --query to search for, found neither"),
        ({"query": "nothing.jpg"}, "expected an image as --query, found none at nothing.jpg"),
        ({"query": __file__}, "expected embeddings at features.parquet, found nothing there"),
        ({"images": ".", "top_k": 0}, "expected --top_k at least 1, found 0"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_sentence_and_leaves_nothing(
    words, message, model_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert embed(model_dir, Path("features.parquet"), **words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_query_that_is_not_an_image_is_refused(embeddings_file, model_dir, capsys):
    assert embed(model_dir, embeddings_file, query=__file__) == 2
    assert "expected an image that can be decoded, found" in capsys.readouterr().err


def test_another_parquet_file_is_refused(tmp_path, model_dir, images, capsys):
    import pyarrow

    parquet.write_table(pyarrow.table({"file": ["a"]}), tmp_path / "other.parquet")
    assert embed(model_dir, tmp_path / "other.parquet", query=sorted(images.glob("*/*"))[0]) == 2
    assert "found another Parquet file" in capsys.readouterr().err


def test_a_terminal_shows_similarity_file_and_class_in_columns():
    rows = [{"similarity": 1.0, "file": "a.jpg", "label": "Maize"}, {"similarity": 0.5, "file": "long.jpg"}]
    assert format_nearest(rows) == "1.0000  a.jpg     Maize\n0.5000  long.jpg"


def test_columns_are_aligned_under_names_of_any_width():
    rows = [{"similarity": 1.0, "file": "小麦.jpg", "label": "小\n麦"}, {"similarity": 1.0, "file": "a", "label": "e"}]
    assert format_nearest(rows) == "1.0000  小麦.jpg  小\\n麦\n1.0000  a         e"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(model_dir, images, tmp_path):
    """Peak memory of a process that embeds 2,000 links and of one that embeds 8,000."""
    sources = sorted(images.glob("*/*"))
    peaks = []
    for count in (2_000, 8_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            (folder / f"{i:06}.jpg").symlink_to(sources[i % len(sources)])
        code = (
            "import resource, sys\nfrom seedling_hf.commands.embed import main\n"
            f"main(['--model_name_or_path', {str(model_dir)!r}, '--embeddings_file', {str(folder) + '.parquet'!r}, "
            f"'--images', {str(folder)!r}])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(answer.stdout.split()[-1]) / 1e3)
        assert parquet.read_metadata(f"{folder}.parquet").num_rows == count
    # MB; the 6,000 images more would take 295 MB as they enter the model. 25 MB is the allocator's variation.
    assert peaks[1] - peaks[0] < 25, peaks
