"""What people write into a card stays, generated sections are renewed, and bad cards are refused before the push."""

import pytest
import yaml

from seedling_hf.escaping import Markdown
from seedling_hf.hub.cards import address_card, check_card, describe_split, merge_cards

OURS = """---
license: apache-2.0
tags:
- replknet
model-index:
- name: nano
  results: []
---

# nano

<!-- begin results -->
Accuracy 91%.
<!-- end results -->

<!-- begin limits -->
Twelve species.
<!-- end limits -->
"""


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_marked_section_is_renewed_and_the_text_around_it_stays():
    theirs = OURS.replace("91%", "85%").replace("# nano", "# My seedlings") + "\nGrown in Flakkebjerg.\n"
    expected = OURS.replace("# nano", "# My seedlings") + "\nGrown in Flakkebjerg.\n"
    assert merge_cards(theirs, OURS) == expected


def test_a_removed_section_stays_removed():
    theirs = OURS[: OURS.index("<!-- begin limits -->")]
    assert "Twelve species" not in merge_cards(theirs, OURS)


def test_a_section_that_is_now_empty_is_emptied():
    emptied = OURS.replace("Accuracy 91%.\n", "")
    assert merge_cards(OURS, emptied) == emptied


def test_a_card_without_our_sections_comes_before_ours():
    merged = merge_cards("---\nlicense: mit\n---\n\n# About\n\nSeedlings.\n", OURS)
    assert merged.index("# About") < merged.index("# nano")
    assert "Accuracy 91%." in merged


def test_an_equal_card_is_unchanged():
    assert merge_cards(OURS, OURS) == OURS


def test_the_metadata_of_both_cards_are_kept():
    theirs = OURS.replace("- replknet", "- replknet\n- weeds").replace("license: apache-2.0", "license: mit\nco2: 3")
    merged = metadata(merge_cards(theirs, OURS))
    assert merged["tags"] == ["replknet", "weeds"]
    assert (merged["license"], merged["co2"]) == ("mit", 3)


def test_results_of_other_weights_are_removed():
    without = OURS.replace("model-index:\n- name: nano\n  results: []\n", "")
    assert "model-index" not in metadata(merge_cards(OURS, without))


def test_broken_metadata_are_replaced_by_ours_and_the_text_stays():
    merged = merge_cards("---\na: [\n---\n\nSeedlings.\n", OURS)
    assert metadata(merged) == metadata(OURS)
    assert "Seedlings.\n" in merged


def test_the_loading_example_names_the_repository():
    card = '<!-- begin usage -->\npipeline(model="folder", trust)\n<!-- end usage -->\n\nI use model="mine".\n'
    addressed = card.replace('model="folder"', 'model="a/b", revision="v1"')
    assert address_card(card, "a/b", "v1") == addressed
    assert address_card(addressed, "a/b", None) == card.replace('model="folder"', 'model="a/b"')


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("# nano\n", "begins with metadata"),
        ("---\na: [\n---\n", "YAML"),
        ("---\n- a\n---\n", "dict"),
        ("---\nmodel-index:\n- name: nano\n  results:\n  - task: {}\n---\n", "model_index"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_refused(card, reason):
    with pytest.raises(ValueError, match=reason):
        check_card(card)


def test_a_result_that_is_not_a_number_is_refused():
    card = (
        "---\nmodel-index:\n- name: nano\n  results:\n  - task: {type: image-classification}\n"
        "    dataset: {name: seedlings, type: imagefolder}\n    metrics: [{type: accuracy, value: .nan}]\n---\n"
    )
    with pytest.raises(ValueError, match="expected a number for accuracy in the card, found nan"):
        check_card(card)
    check_card(card.replace(".nan", "0.9"))


def test_a_name_stays_in_its_cell_and_in_its_section():
    assert Markdown.of("a|b\n<!-- end results -->") == "a\\|b &lt;!-- end results -->"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({}, "The split was drawn at random from each class, 30% of its images for validation, seed 42."),
        ({"split_strategy": "random"}, "drawn at random from the sorted files, 30% for validation, random state 42."),
        ({"split_strategy": "grouped"}, "30% of its images for validation, seed 42, near-duplicates on one side."),
        ({"split_strategy": "mle_bench"}, "The split was that of MLE-bench, 14% of the sorted files for validation"),
        ({"fold": "2/5"}, "drawn at random from each class, fold 2/5 for validation, seed 42."),
        ({"fold": "2/5", "split_strategy": "grouped"}, "fold 2/5 for validation, seed 42, near-duplicates on one"),
        ({"split_file": "split.csv"}, "that of an earlier run"),
        ({"validation_dir": "val"}, "in a folder of their own"),
        (
            {"dataset_name": "a/b", "train_dir": None},
            "that of the dataset [a/b](https://huggingface.co/datasets/a/b)",
        ),
        (
            {"label_file": "labels.csv"},
            "Labels of training images were corrected, or images left out, by a file; valid",
        ),
        ({"max_train_samples": 1000}, "seed 42. At most 1,000 for training were used."),
    ],
)
def test_the_card_says_how_the_split_was_made(flags, sentence):
    drawn = {"train_dir": "images", "split_strategy": "stratified", "train_val_split": 0.3, "split_seed": 42}
    assert sentence in describe_split(drawn | flags)


def test_a_split_in_folders_is_described_as_given(tmp_path):
    (tmp_path / "train").mkdir()
    assert "The split was given" in describe_split(
        {"train_dir": str(tmp_path), "train_val_split": 0.3, "split_seed": 1}
    )
