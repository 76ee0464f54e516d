"""What reports say in whole sentences, the same in HTML, in Markdown and on a terminal."""

import math
from typing import Any

from seedling_hf.escaping import format_count
from seedling_hf.evaluation.calibration import Calibration, NotSure
from seedling_hf.evaluation.comparison import Comparison
from seedling_hf.evaluation.metrics import HardPair
from seedling_hf.evaluation.report import Augmentation, Confusion, Report
from seedling_hf.evaluation.trust import Answers, Trust

SIGNIFICANCE = 0.05


def percent(share: float) -> str:
    """A share with one decimal, never rounded to 0% or 100% unless it is exactly that."""
    if 0 < share < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.999 < share < 1 else f"{share:.1%}"


def headline(report: Report) -> list[tuple[str, str, str]]:
    """Name, value and explanation of the figures that come first."""
    low, high = report.accuracy_interval
    correct = sum(row[i] for i, row in enumerate(report.confusion_matrix))
    bootstrap = report.bootstrap
    return [
        (
            "accuracy",
            f"{report.accuracy:.1%}",
            f"{correct:,} of {format_count(report.num_examples, 'image')}; 95% interval {low:.1%} to {high:.1%}, "
            "bootstrap {:.1%} to {:.1%}".format(*bootstrap.accuracy),
        ),
        ("macro-F1", f"{report.macro_f1:.3f}", "95% interval, bootstrap {:.3f} to {:.3f}".format(*bootstrap.macro_f1)),
        ("calibration error", f"{report.expected_calibration_error:.3f}", "0 if the probabilities are right"),
        ("loss", f"{report.loss:.3f}", f"a uniform guess gives {math.log(len(report.class_names)):.3f}"),
        *((word, percent(answers.share), describe_answers(answers)) for word, answers in _trust_rows(report)),
    ]


def _trust_rows(report: Report) -> list[tuple[str, Answers]]:
    return report.trust.rows if report.trust else []


def describe_answers(answers: Answers) -> str:
    """How many answers of a certainty there are, and how many of them are right."""
    if not answers.count:
        return "no image"
    right = f"{answers.correct:,} of {format_count(answers.count, 'image')}"
    low, high = answers.interval
    return f"right on {right} ({percent(answers.accuracy)}; 95% interval {percent(low)} to {percent(high)})"


def describe_trust(trust: Trust) -> str:
    """When the model says that it is sure, and when that an image is unfamiliar."""
    parts = []
    if trust.threshold is not None:
        parts.append(f"sure from a probability of {trust.threshold:.3f} on, and not sure below")
    if trust.unfamiliar is not None:
        parts.append(
            "unfamiliar, whatever the probability, where the image does not look like those that it was trained on"
        )
    return f"An answer is {'; '.join(parts)}."


def describe_confusion(report: Report, confusion: Confusion) -> str:
    """How many images of a class were taken for another."""
    return f"{confusion.count:,} of {report.per_class[confusion.label]['support']:,} ({confusion.share:.0%})"


def describe_fit(calibration: Calibration) -> str:
    """On which images the temperature was fitted, and what that means for the figures."""
    start = (
        f"The temperature is {calibration.temperature:.2f} "
        f"({'overconfident' if calibration.temperature > 1 else 'underconfident'} before), fitted on "
        f"{format_count(calibration.num_fitted, 'image')}: {calibration.fitted_on}."
    )
    if calibration.cross_fitted:
        return (
            f"{start} They are also evaluated here, so the figures after scaling are cross-fitted: each random half of "
            "the images is scaled by the temperature of the other half, and no image affects its own temperature. The "
            "temperature of all of them, which the report keeps, is optimistic for these same images. If they also "
            "decided which weights were kept, as the validation images of a training run do, all figures here are a "
            "little optimistic."
        )
    return f"{start} None of them is evaluated here, unless a file is in both folders."


def describe_trained_on(report: Report) -> str:
    """How many of the images the model was trained on, and what that means for the figures."""
    known = report.trained_on
    how = "name and content" if known.by_content else "name only: split.csv has no hashes of their contents"
    total, count = report.num_examples, known.count
    images = format_count(total, "image")
    if not count:
        return f"None of these {images} is a training image of the model (compared by {how})."
    if known.excluded:
        return (
            f"{format_count(count, 'image')} that the model was trained on {_were(count)} left out (recognised by "
            f"{how}); the figures are those of the other {total:,}."
        )
    other = known.others
    if other is None:
        return f"The model was trained on all of these {images} (recognised by {how}); other images tell more."
    low, high = other.interval
    return (
        f"{count:,} of these {images} {_were(count)} trained on (recognised by {how}), which flatters the "
        f"figures. Of the other {other.count:,}, {other.correct:,} {_are(other.correct)} right: "
        f"{percent(other.accuracy)}, 95% interval {percent(low)} to {percent(high)}. --exclude_training reports on "
        "those alone."
    )


def describe_folds(report: Report) -> str:
    """Which network predicted which image."""
    return (
        f"The images were split into {len(report.folds)} folds, and a network was trained without each of them. Each "
        "image is predicted by the one network that was not trained on it."
    )


def describe_not_sure(not_sure: NotSure) -> str:
    """Which predictions to withhold, and how accurate the rest is."""
    target = f"{not_sure.target_accuracy:.0%}"
    if not_sure.threshold is None:
        return f"No threshold leaves predictions of which {target} are right."
    if not_sure.keeps_all:
        return (
            f"It need not: of all predictions together {percent(not_sure.accuracy)} are right, and {target} were "
            "requested."
        )
    text = (
        f"Where the probability of the prediction is below {not_sure.threshold:.3f}, the model should say that it is "
        f"not sure: of the {not_sure.coverage:.1%} that are kept, {not_sure.accuracy:.1%} are right ({target} were "
        "requested)."
    )
    other = not_sure.cross_fitted
    if other and other.accuracy is not None:
        text += (
            " The threshold was chosen on these same images, which is optimistic; one chosen on half of them keeps "
            f"{other.coverage:.1%} of the other half, of which {other.accuracy:.1%} are right."
        )
    return text


def describe_pair(pair: HardPair) -> str:
    """How often two classes are taken for each other."""
    first, second = pair.pair
    return (
        f"{first} is taken for {second} {format_count(pair.first_as_second, 'time')}, {second} for {first} "
        f"{format_count(pair.second_as_first, 'time')}: {pair.share:.1%} of the {pair.total:,} images of the two, and "
        f"{pair.share_of_mistakes:.0%} of all mistakes."
    )


def describe_training_of_models(comparison: Comparison) -> list[str]:
    """A sentence for each compared model that was trained on some of the images."""
    images = format_count(comparison.num_examples, "image")
    return [
        f"{model['name']} was trained on {model['trained_on']:,} of these {images}, which flatters it."
        for model in comparison.models
        if model["trained_on"]
    ]


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def describe_augmentation(augmented: Augmentation) -> str:
    """What the mean over eight symmetries gains and costs."""
    return (
        "The mean of the probabilities over four turns and their reflections fixes "
        f"{format_count(augmented.fixed, 'prediction')} and breaks {augmented.broken:,}: "
        f"{100 * augmented.accuracy_gain:+.1f} points of accuracy, "
        f"{augmented.macro_f1_gain:+.3f} of macro-F1, in {augmented.cost:.1f} times the time."
    )


def describe_pair_of_models(pair: dict[str, Any]) -> str:
    """Which of two models is better, and whether chance alone explains it."""
    better, worse = (pair["second"], pair["first"]) if pair["difference"] > 0 else (pair["first"], pair["second"])
    apart = pair["only_first"] + pair["only_second"]
    if not pair["difference"]:
        return (
            f"{pair['first']} and {pair['second']} are right equally often; on {format_count(apart, 'image')} only one "
            "of them is right."
        )
    p_value = pair["corrected_p_value"]
    verdict = "more than chance explains" if p_value < SIGNIFICANCE else "which may well be chance"
    return (
        f"{better} is right {100 * abs(pair['difference']):.1f} points more often than {worse}, {verdict} (p = "
        f"{p_value:.2g}): of the {format_count(apart, 'image')} that only one of the two gets right, it gets "
        f"{max(pair['only_first'], pair['only_second']):,}."
    )
