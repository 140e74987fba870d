"""Sentences with figures: with their counts, and none where there is nothing to tell."""

from xray_pneumonia.evaluation.report.text import official_test


def test_a_published_test_is_told_with_counts_and_intervals_where_the_card_holds_it():
    known = {"test/ill": 390.0, "test/found": 385.0, "test/well": 234.0, "test/cleared": 211.0, "test/auroc": 0.9908}
    told = official_test(known)
    assert "385 of 390 (97.0 to 99.5 %) of the ill" in told
    assert "211 of 234 (85.7 to 93.4 %) of the well (AUROC 0.991)" in told
    assert official_test({"val/auroc": 0.99}) == ""
