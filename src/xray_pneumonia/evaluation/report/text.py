"""Words numbers as sentences, for readers who see patients and not distributions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xray_pneumonia.evaluation.abstention import Promise, is_certified
from xray_pneumonia.evaluation.assessment import Assessment
from xray_pneumonia.evaluation.calibration import translate
from xray_pneumonia.evaluation.comparison import FEWEST as FEWEST_TESTED
from xray_pneumonia.evaluation.comparison import FEWEST_DIFFERING, Difference
from xray_pneumonia.evaluation.intervals import FEWEST, FEWEST_RESAMPLED, Estimate, wilson
from xray_pneumonia.evaluation.subgroups import FEW
from xray_pneumonia.types import CLASSES, Classes, spoken

__all__ = ["FEW", "FEWEST", "FEWEST_DIFFERING", "FEWEST_RESAMPLED", "FEWEST_TESTED"]  # for the template
SPLITS = {"val": "validation", "shift": "shifted", "test": "test", "external": "external test"}
ELSEWHERE = 0.05  # the prevalence for which a probability is worded too
LIKE_CHANCE = 0.02  # a share of attention so close to that of chance tells nothing
VERDICTS = ((0.8, "poor"), (0.9, "fair"), (0.97, "good"), (2.0, "very good"))  # on an AUROC below the bound


def percent(value: float) -> str:
    """Write 0.953 as 95.3 %."""
    return "undefined" if np.isnan(value) else f"{100 * value:.1f} %"


def number(value: float) -> str:
    """Write three digits."""
    return "undefined" if np.isnan(value) else f"{value:.3f}"


def untold(estimate: Estimate) -> str:
    """Word why a value is not shown; empty where it is."""
    if np.isnan(estimate.value):
        return "undefined"
    return f"not shown: {estimate.patients} patient" if 0 < estimate.patients < FEWEST else ""


def official_test(evidence: Mapping[str, float]) -> str:
    """Word how a shipped model did on its data's published test split; empty for a model whose card names no such test.

    Intervals are Wilson's by image, since the patients of that split are unknown.
    """
    if "test/ill" not in evidence:
        return ""
    rates = []
    for right, of in (("found", "ill"), ("cleared", "well")):
        count, images = evidence[f"test/{right}"], evidence[f"test/{of}"]
        low, high = wilson(count, images)
        rates.append(f"{count:.0f} of {images:.0f} ({100 * low:.1f} to {100 * high:.1f} %)")
    return (
        f"On the published test split, opened once by those who made the model, it found {rates[0]} of the ill and "
        f"cleared {rates[1]} of the well (AUROC {evidence['test/auroc']:.3f})."
    )


def p(value: float) -> str:
    """Write a p-value with three digits."""
    return "-" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def tested(differences: Sequence[Difference]) -> str:
    """Word how many p-values there are, and what was done about their number."""
    count = sum(not np.isnan(one.p_value) for one in differences)
    return f"{count} metrics are tested; the p-values after Holm are corrected for that."


def times(count: int) -> str:
    """Write once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def spread(estimate: Estimate) -> str:
    """Write an interval as `93.4 to 96.9 %`."""
    return "no interval" if np.isnan(estimate.low) else f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"


def summary(assessment: Assessment, *, split: str, classes: Classes = CLASSES) -> list[str]:
    """Word what the model does on this split, for a clinician."""
    negative, positive = map(spoken, classes)
    at = assessment.at_point
    found, cleared = at["sensitivity"], at["specificity"]
    sentences = [
        _rate(found, f"chest films with {positive}", positive, "misses", "found"),
        _rate(cleared, f"{negative} films", negative, "alarms for", "cleared"),
        *_ordering(at["auroc"], positive),
        *_predictive_values(assessment, positive),
        _answers(assessment),
    ]
    if split == "val":
        sentences.append(
            "These patients were never trained on, but calibration and operating point, and often the epoch, were "
            "chosen on them, so every figure here is slightly flattered. Only a test split of other patients, and "
            "then another hospital, can confirm it."
        )
    return sentences


def meaning(probability: float, *, prevalence: float | None, threshold: float, finding: str = "pneumonia") -> str:
    """Word what a probability says of a film, for a radiologist; an older model cannot say for whom it holds."""
    if prevalence is None:
        return (
            f"This model was stored by an older version: its probability holds where as many films show {finding} as "
            f"in its validation split, and it calls a film {finding} from {percent(threshold)} on."
        )
    share, among = of_hundred(probability), _bound_of_hundred(prevalence)
    rare = of_hundred(float(translate(probability, prevalence=prevalence, to=ELSEWHERE)))
    there = f" Where {100 * ELSEWHERE:.0f} in 100 are ill the same film means {rare} %."
    return (
        f"{share[0].upper()}{share[1:]} %: among patients of whom {among} in 100 have {finding}, {share} of 100 films "
        "like this one show it. "
        f"From {_bound_of_hundred(threshold)} % on it is called {finding}." + ("" if prevalence == ELSEWHERE else there)
    )


def of_hundred(share: float) -> str:
    """Write how many of 100, and never none or all: no film is certain."""
    rounded = f"{100 * share:.0f}"
    return {"0": "less than 1", "100": "more than 99"}.get(rounded, rounded)


def _bound_of_hundred(share: float) -> str:
    """Write a share that is set, not estimated, so that a rare one stays what it is."""
    return f"{100 * share:.0f}" if 0.01 <= share <= 0.99 else f"{100 * share:.3g}"


def promise(known: Promise | None) -> str:
    """Word what the margin of "look closer" promises, and for whom."""
    if known is None:
        return "No error of the answers is promised: the band is that of an older version, or the point was moved."
    nets = f"out of fold: {known['folds']} nets, each on films it never saw" if known["folds"] else ""
    basis = f"{known['images']} films of {known['patients']} patients, {nets or 'the validation split'}"
    kept = f'answers {percent(known["answered"])} of them and says "look closer" to the rest'
    if is_certified(known):
        return (
            f"Of its answers at most {percent(known['max_error'])} are wrong, with 95 % confidence, on films like "
            f"those it was tested on ({basis}; it {kept}); it does not hold at another hospital."
        )
    hard = f"Not certified: {basis}, are too few or too hard to promise at most {percent(known['max_error'])} wrong"
    if not known["answered"]:
        return f"{hard} answers; {percent(known['bound'])} could be. It answers none of them."
    return f"{hard} answers; what holds, with 95 % confidence, is {percent(known['bound'])}. It {kept}."


def _rate(rate: Estimate, films: str, called: str, wrong: str, right: str) -> str:
    """Word a rate with what it rests on; the interval is that of the rate, the next 100 films vary more."""
    if rate.patients < FEWEST_TESTED:
        return f"Too few patients ({rate.patients}) to say what it does with {films}; {FEWEST_TESTED} are needed."
    return (
        f"Of 100 {films} it calls about {_rounded(rate.value)} {called} and {wrong} {_rounded(1 - rate.value)} "
        f"({rate.images} films of {rate.patients} patients); the rate that it has in the long run lies between "
        f"{_range(rate)} of 100 {right}, and the next 100 films vary more."
    )


def small_sample(*, right: int, images: int) -> str:
    """Word the interval of a proportion of few images."""
    low, high = wilson(right, images)
    return f"{right} of {images} right is {percent(right / images)}, anywhere from {percent(low)} to {percent(high)}"


def attention(maps: dict[str, Any], *, uniform: float, positive: str = CLASSES[1]) -> str:
    """Word how much of the attention lies on the border, and whether that is more than chance.

    Args:
        maps: `border`, a share, and `measured`, the number of maps with any attention.
        uniform: the share of the border in a map that is the same everywhere.
        positive: the name of the positive class.
    """
    share, count = maps["border"], maps["measured"]
    if np.isnan(share):
        return (
            f"In none of the films does anything speak for {positive} to this model, so it has no attention to measure."
        )
    verdict = (
        "more than" if share > uniform + LIKE_CHANCE else "less than" if share < uniform - LIKE_CHANCE else "about as"
    )
    return (
        f"{percent(share)} of the attention (mean of {count} maps) lies within an eighth of the side from the edge, "
        f"where there is no lung: {verdict} chance, as a map that is the same everywhere has {percent(uniform)} there."
    )


def _ordering(area: Estimate, positive: str) -> list[str]:
    if np.isnan(area.low):
        return []
    word = next(word for bound, word in VERDICTS if area.value < bound)
    return [
        f"Shown one film with {positive} and one without, it ranks them rightly in {percent(area.value)} of such pairs "
        f"({word} on these films; 50 % is chance)."
    ]


def _predictive_values(assessment: Assessment, positive: str) -> list[str]:
    rare = min(assessment.predictive_values, key=lambda values: values.prevalence, default=None)
    if rare is None or np.isnan(rare.ppv.low) or min(assessment.fewest, rare.ppv.patients) < FEWEST_TESTED:
        return []
    here = float(assessment.table["label"].mean())
    return [
        f"Here {percent(here)} of the films show {positive}. Where only {percent(rare.prevalence)} of patients are "
        f"ill, {percent(rare.ppv.value)} ({spread(rare.ppv)}) of its alarms would be true, and "
        f"{percent(rare.npv.value)} ({spread(rare.npv)}) of its all-clears."
    ]


def corrected(found: str, table: pd.DataFrame, published: Mapping[str, float]) -> str:
    """Word what corrections changed (`found`), and the figures by the labels as published."""
    differing = int(table["published"].ne(table["label"]).sum())
    figures = ", ".join(f"{name} {number(published[name])}" for name in ("sensitivity", "specificity", "auroc"))
    return (
        f"Of the whole data, {found}. On this split {differing} of {len(table)} labels differ from those published; by "
        f"the labels as published: {figures.replace('auroc', 'AUROC')}."
    )


def _answers(assessment: Assessment) -> str:
    (normal, unsure, alarmed), (cleared, left, found) = assessment.answers.to_numpy(int)
    wrong, answered = alarmed + cleared, normal + alarmed + cleared + found
    films = answered + unsure + left
    return (
        f'Allowed to say "look closer", it does so for {percent((unsure + left) / max(1, films))} of the {films} '
        f"films; of the {answered} it answers, "
        f"{wrong} {'is' if wrong == 1 else 'are'} wrong. {promise(assessment.decision.promise)}"
    )


def _rounded(share: float) -> str:
    return "an unknown number" if np.isnan(share) else f"{100 * share:.0f}"


def _range(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.0f} and {100 * estimate.high:.0f}"
