"""The reporting checklist: what a run can say of itself, and what a human must still say.

Items and their numbers follow TRIPOD+AI (Collins et al., BMJ 2024); the third column names the part of
CLAIM (Tejani et al., Radiology: AI 2024) that asks for the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

OPEN = ""  # left to a human

# number, topic, part of CLAIM, key of the fact that answers it (none: a human's)
ITEMS = (
    ("1", "Title: kind of model, target population, outcome", "Title", "title"),
    ("3a", "Healthcare context and rationale", "Introduction", None),
    ("3b", "Intended users and place in the pathway", "Introduction", "use"),
    ("3c", "Known health inequalities", "Introduction", None),
    ("4", "Objectives: development or evaluation", "Introduction", "objective"),
    ("5a", "Sources of data, their representativeness", "Methods: data", "data"),
    ("5b", "Dates of data", "Methods: data", None),
    ("6a", "Setting and centres", "Methods: data", None),
    ("6b", "Eligibility", "Methods: data", None),
    ("7", "Preparation of data, the same across groups", "Methods: data", "preparation"),
    ("8a", "Outcome, how and by whom it was established", "Methods: reference standard", None),
    ("9", "Predictors", "Methods: data", "predictors"),
    ("10", "Sample size, its sufficiency", "Methods: partitions", "size"),
    ("11", "Missing data", "Methods: data", "missing"),
    ("12a", "Use of data, partitions", "Methods: partitions", "partitions"),
    ("12c", "Type of model, building, internal validation", "Methods: model and training", "model"),
    ("12e", "Measures of performance", "Methods: evaluation", "measures"),
    ("12f", "Updating, such as recalibration", "Methods: evaluation", "updating"),
    ("13", "Class imbalance", "Methods: training", "imbalance"),
    ("14", "Fairness", "Methods: evaluation", "fairness"),
    ("15", "Output and thresholds", "Methods: model", "output"),
    ("16", "Differences between training and evaluation", "Methods: partitions", "differences"),
    ("17", "Ethical approval", "Other information", None),
    ("18a", "Funding", "Other information", None),
    ("18c", "Protocol and registration", "Other information", None),
    ("18f", "Code", "Other information", "code"),
    ("19", "Patient and public involvement", "Other information", None),
    ("20", "Participants, their flow and characteristics", "Results: data", "participants"),
    ("22", "The model in full", "Methods: model", "specification"),
    ("23a", "Performance with intervals", "Results: performance", "performance"),
    ("23b", "Heterogeneity, subgroups", "Results: performance", "heterogeneity"),
    ("25", "Interpretation", "Discussion", None),
    ("26", "Limitations", "Discussion", "limits"),
    ("27", "Usability: bad input, users' skills, next steps", "Discussion", "usability"),
)


@dataclass(frozen=True)
class Item:
    """One item: its number in TRIPOD+AI, its topic, the part of CLAIM, and the answer ("" is open)."""

    number: str
    topic: str
    claim: str
    answer: str


def fill(facts: Mapping[str, str]) -> list[Item]:
    """Answer what the facts answer; the rest stays open for a human."""
    return [Item(number, topic, claim, facts.get(key, OPEN) if key else OPEN) for number, topic, claim, key in ITEMS]
