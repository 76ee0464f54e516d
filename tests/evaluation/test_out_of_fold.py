"""Out-of-fold predictions are pooled from the runs of a cross-validation."""

import json

import numpy as np
import pytest

from seedling_hf.errors import InputError
from seedling_hf.evaluation.out_of_fold import pool_folds

CLASSES = ["Charlock", "Maize"]


def write_fold(folder, files, labels, probabilities, *, classes=CLASSES, seconds=2.0, **arrays):
    folder.mkdir(parents=True)
    np.savez(
        folder / "probabilities.npz", probabilities=np.array(probabilities), labels=np.array(labels),
        files=np.array(files), class_names=np.array(classes), **arrays,
    )  # fmt: skip
    (folder / "report.json").write_text(json.dumps({"provenance": {"seconds": seconds}}))
    return folder


@pytest.fixture
def folds(tmp_path):
    return [
        write_fold(
            tmp_path / "fold_1", ["c", "a"], [0, 1], [[0.9, 0.1], [0.8, 0.2]], distances=np.array([3.0, 1.0])
        ),
        write_fold(tmp_path / "fold_2", ["b"], [1], [[0.3, 0.7]], distances=np.array([2.0])),
    ]  # fmt: skip


def test_each_image_keeps_the_answer_of_its_fold(folds):
    pooled = pool_folds(folds)
    assert pooled.found.files == ["a", "b", "c"]
    np.testing.assert_array_equal(pooled.found.probabilities, [[0.8, 0.2], [0.3, 0.7], [0.9, 0.1]])
    np.testing.assert_array_equal(pooled.found.labels, [1, 1, 0])
    np.testing.assert_array_equal(pooled.arrays["fold"], [1, 2, 1])
    np.testing.assert_array_equal(pooled.arrays["distances"], [1.0, 2.0, 3.0])
    assert pooled.found.seconds == 4.0


def test_each_fold_has_its_figures(folds):
    first, second = pool_folds(folds).folds
    assert (first.fold, first.num_examples, first.accuracy) == (1, 2, 0.5)
    assert (second.fold, second.num_examples, second.accuracy) == (2, 1, 1.0)
    assert second.accuracy_interval[0] < 1.0 == second.accuracy_interval[1]


def test_distances_that_one_fold_lacks_are_left_out(folds, tmp_path):
    folds.append(write_fold(tmp_path / "fold_3", ["d"], [0], [[0.6, 0.4]]))
    assert pool_folds(folds).distances == {}


def test_the_limit_of_the_familiar_holds_for_images_as_they_are_and_stretched(folds):
    assert pool_folds(folds).familiarity_threshold == pytest.approx(np.quantile([1, 2, 3], 0.97))
    for folder, values in zip(folds, ([5.0, 9.0], [7.0]), strict=True):
        arrays = dict(np.load(folder / "probabilities.npz"))
        np.savez(folder / "probabilities.npz", **arrays, stretched_distances=np.array(values))
    pooled = pool_folds(folds)
    assert pooled.familiarity_threshold == pytest.approx(np.quantile([5, 7, 9], 0.97))
    np.testing.assert_array_equal(pooled.arrays["stretched_distances"], [9.0, 7.0, 5.0])


def test_an_image_in_two_folds_is_refused(folds, tmp_path):
    folds.append(write_fold(tmp_path / "fold_3", ["d", "b"], [0, 1], [[0.6, 0.4]] * 2))
    with pytest.raises(InputError, match=r"each image in one fold .* found 1 image in several: b"):
        pool_folds(folds)


def test_folds_of_other_classes_are_refused(folds, tmp_path):
    folds.append(write_fold(tmp_path / "fold_3", ["d"], [0], [[0.6, 0.4]], classes=["Charlock", "Fat Hen"]))
    with pytest.raises(InputError, match=r"classes of .*fold_1 in .*fold_3, found others: Fat Hen, Maize"):
        pool_folds(folds)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"no archive"])
def test_a_damaged_archive_is_named(folds, content):
    (folds[1] / "probabilities.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"fold_2/probabilities.npz, found: .*; train that fold again"):
        pool_folds(folds)
