import os
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from xray_pneumonia.evaluation import gradcam
from xray_pneumonia.evaluation.assessment import assess, decide
from xray_pneumonia.evaluation.metrics import METRICS
from xray_pneumonia.evaluation.report import assessment_figures, text
from xray_pneumonia.evaluation.report.build import Context, Report, render
from xray_pneumonia.evaluation.report.model_card import fill_checklist
from xray_pneumonia.evaluation.settings import EvaluationSettings

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


MAPS = {"border": 0.6, "measured": 3, "likeness": np.nan, "bound": 0.5}  # of films without evidence


def settings(**changes):
    given = {
        "operating_point": "youden", "calibration": "temperature", "max_error": 0.05, "out_of_fold": [],
        "replicates": 100,
        "prevalences": [0.05, 0.5], "subgroups": ["subtype"], "maps": 0, "robustness_images": 0, "report": True,
        "seed": 0,
    }  # fmt: skip
    return EvaluationSettings(**given | changes)


@pytest.fixture(scope="module")
def assessment():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 160)
    logit = rng.normal(3 * label - 1.5, 1.5)
    table = pd.DataFrame(
        {
            "id": [f"{i}" for i in range(160)],
            "patient": [f"p{i // 2}" for i in range(160)],
            "subtype": np.where(label == 0, "normal", rng.choice(["bacteria", "virus"], 160)),
            "label": label,
            "logit": logit,
            "probability": 1 / (1 + np.exp(-logit)),
        }
    )
    return assess(table, decide(table, settings()), settings(), validation=table)


@pytest.fixture(scope="module")
def page(assessment):
    context = Context(
        model="<b>net</b>", split="test", run_ids=["0" * 32], config={}, tags={}, chosen_after={"0" * 32: 2}, leaks=3
    )
    maps = gradcam.Explanation({"none": "no map"} | MAPS)
    report = Report(context=context, assessment=assessment, maps=maps)
    report.gate = [("films", 9, 0.01)]
    pictures = {
        "roc": assessment_figures.roc_with_band(assessment, seed=0, replicates=20),
        "reliability": assessment_figures.reliability_diagram(assessment),
        "coverage": assessment_figures.coverage_and_accuracy(assessment),
    }
    return render(
        "evaluation.html",
        figures=pictures,
        report=report,
        context=context,
        assessment=assessment,
        summary=text.summary(assessment, split="test"),
        seed_figure=text.small_sample(right=15, images=16),
        facts={"Net": "CNN"},
        checklist=fill_checklist({"title": "x"}),
        words=text,
        metrics=METRICS,
        case_kinds=gradcam.CASES,
        uniform_border=0.44,
        limitations=["one", "two"],
    )


def test_the_page_says_what_it_rests_on(page):
    assert "160 images of 80 patients" in page
    assert "15 of 16 right is 93.8 %, anywhere from 71.7 % to 98.9 %" in page
    assert "trained <strong>after</strong> a test had been opened twice" in page
    assert "3 are, byte for byte, images the model was trained on. The figures flatter." in page
    assert "3, by their bytes" in page
    assert page.count('class="open"') == len(fill_checklist({})) - 1
    assert "mean of 3 maps" in page
    assert "rank correlation" not in page  # it could not be computed


def test_the_page_escapes_names_and_asks_no_network(page):
    assert "<b>net</b>" not in page
    assert "&lt;b&gt;net&lt;/b&gt;" in page
    assert len(page.encode()) < 5 * 2**20
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert "@import" not in page
    assert "<script" not in page
    assert not re.findall(r"url\((?!data:)", page)


def test_figures_stand_with_what_they_rest_on(page, assessment):
    at = assessment.at_point
    assert f"{at['sensitivity'].images} images of {at['sensitivity'].patients} patients" in page
    assert f'<td class="n">{at["ppv"].count}</td>' in page
    assert f'<td class="n">{assessment.calibration.floor:.3f}</td>' in page
    assert "chance alone gives (floor)" in page
    assert at["auroc"] == assessment.delong  # one interval of AUROC
    assert all(np.isfinite([one.ppv.low, one.npv.high]).all() for one in assessment.predictive_values)
    assert {"calibration_floor", "calibration_excess", "calibration_slope"} <= set(assessment.metrics())


def test_nothing_is_said_of_a_single_patient(assessment):
    table = assessment.table.head(8).assign(patient="p", label=[0, 1] * 4)
    alone = assess(table, assessment.decision, settings(), validation=None)
    estimates = [*alone.at_point.values(), *alone.at_half.values(), *alone.uncalibrated.values(), alone.delong]
    estimates += [one for values in alone.predictive_values for one in (values.ppv, values.npv)]
    estimates += [one for part in alone.subgroups for one in part.metrics.values()]
    assert all(np.isnan([one.low, one.high]).all() for one in [*estimates, alone.calibration.slope])
    said = " ".join(text.summary(alone, split="test"))
    assert "Too few patients (1) to say what it does with normal films; 10 are needed." in said
    assert "Of 100" not in said
    assert text.untold(alone.at_point["accuracy"]) == "not shown: 1 patient"
    figure = assessment_figures.roc_with_band(alone, seed=0, replicates=5)
    assert not figure.axes[0].collections  # no band


def test_words_are_those_of_the_numbers(assessment):
    sentences = text.summary(assessment, split="val")
    for sentence, name, right in ((sentences[0], "sensitivity", "found"), (sentences[1], "specificity", "cleared")):
        rate = assessment.at_point[name]
        assert f"calls about {100 * rate.value:.0f} {'pneumonia' if right == 'found' else 'normal'} and" in sentence
        assert sentence.endswith(
            f"the rate that it has in the long run lies between {100 * rate.low:.0f} and {100 * rate.high:.0f} of 100 "
            f"{right}, and the next 100 films vary more."
        )
    assert "slightly flattered" in sentences[-1]
    assert "flattered" not in " ".join(text.summary(assessment, split="test"))
    assert (text.number(np.nan), text.number(0.12345)) == ("undefined", "0.123")


def test_a_probability_and_a_promise_are_worded_for_a_radiologist():
    assert text.meaning(0.54, prevalence=0.4, threshold=0.5) == (
        "54 %: among patients of whom 40 in 100 have pneumonia, 54 of 100 films like this one show it. From 50 % on it "
        "is called pneumonia. Where 5 in 100 are ill the same film means 8 %."
    )
    assert "means" not in text.meaning(0.54, prevalence=0.05, threshold=0.07)
    sure = text.meaning(0.9999, prevalence=0.001, threshold=0.002)
    assert sure.startswith(
        "More than 99 %: among patients of whom 0.1 in 100 have pneumonia, more than 99 of 100 films"
    )
    assert "From 0.2 % on" in sure
    assert "older version" in text.meaning(0.79, prevalence=None, threshold=0.81)
    known = {
        "margin": 2.0,
        "max_error": 0.02,
        "bound": 0.017,
        "answered": 0.92,
        "images": 781,
        "patients": 412,
        "folds": 0,
    }
    assert "at most 2.0 % are wrong, with 95 % confidence" in text.promise(known)
    assert text.promise(known | {"bound": 0.031}).startswith("Not certified: 781 films of 412 patients")
    assert "3.1 %" in text.promise(known | {"bound": 0.031})


@pytest.mark.parametrize(
    ("share", "says"),
    [(0.438, "about as chance"), (0.5, "more than chance"), (0.3, "less than chance"), (np.nan, "none of")],
)
def test_attention_on_the_border_is_weighed_against_chance(share, says):
    sentence = text.attention({"border": share, "measured": 37}, uniform=0.4375)
    assert says in sentence
    assert np.isnan(share) or "mean of 37 maps" in sentence


def test_curves_are_drawn_whole_however_low_they_fall():
    facts = {"kind": ["as it is", "noise"], "strength": [0, 1], "high": [1.0, np.nan], "low": [0.8, np.nan]}
    high, low = (pd.DataFrame({**facts, "auroc": [0.9, last], "balanced_accuracy": 0.8}) for last in (0.7, 0.2))
    assert assessment_figures.robustness_curves(high).axes[0].get_ylim()[0] == pytest.approx(0.4)
    assert assessment_figures.robustness_curves(low).axes[0].get_ylim()[0] == pytest.approx(0.18)


def test_without_answers_the_axes_are_those_of_shares(assessment):
    nothing = replace(assessment, trade_off=assessment.trade_off.head(0))
    curve = assessment_figures.coverage_and_accuracy(nothing).axes[0]
    assert (curve.get_xlim(), curve.get_ylim()) == ((0, 1), (0, 1))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_it_and_asks_no_host(page, tmp_path, width):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    log, picture = tmp_path / "net.json", tmp_path / "page.png"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--log-net-log={log}", f"--window-size={width},4000", f"--screenshot={picture}"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)})
    assert picture.stat().st_size > 20_000
    asked = {url for url in re.findall(r'"url":"(https?://[^"]+)"', log.read_text(errors="replace"))}
    ours = {url for url in asked if not re.search(r"(google|gvt1|chromium|gstatic)", url)}  # the browser's own
    assert not ours
