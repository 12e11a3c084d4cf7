"""From the statements of a report to one label per CheXpert observation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from counterscan.data.findings import CHEXPERT, NO_FINDING
from counterscan.text.mentions import Finding
from counterscan.text.rules import OTHER

VALUE = {"present": 1.0, "absent": 0.0, "uncertain": -1.0}
_DEVICES = "Support Devices"
# CheXpert's hierarchy (Irvin et al. 2019, figure 1): a child that is present makes its parent present.
PARENTS = {
    "Edema": "Lung Opacity",
    "Consolidation": "Lung Opacity",
    "Pneumonia": "Lung Opacity",
    "Atelectasis": "Lung Opacity",
    "Lung Lesion": "Lung Opacity",
    "Cardiomegaly": "Enlarged Cardiomediastinum",
}


def decisive(findings: Sequence[Finding], name: str, *, impression_wins: bool = True) -> list[Finding]:
    """The statements that decide about one finding, those of the winning status only.

    A weak statement counts only where there is no other; the Impression wins over the Findings; then present over
    uncertain over absent (Irvin et al. 2019).
    """
    about = [f for f in findings if f.name == name]
    about = [f for f in about if not f.weak] or about
    if impression_wins:
        about = [f for f in about if f.section == "impression" and not f.weak] or about
    for status in ("present", "uncertain", "absent"):
        chosen = [f for f in about if f.status == status]
        if chosen:
            return chosen
    return []


def label(findings: Sequence[Finding], *, impression_wins: bool = True, closure: bool = False) -> dict[str, float]:
    """Labels of the 14 CheXpert observations.

    "No Finding" is 1 when something was read and nothing but Support Devices is present or uncertain, 0 when something
    else (also an "Other" finding, such as scoliosis) is present, -1 when something is uncertain; "stable heart" alone
    does not count against it.

    Args:
        findings: statements of one report.
        impression_wins: the Impression overrules the Findings.
        closure: a present child makes its parent present (``PARENTS``).

    Returns:
        observation -> 1 present, 0 absent, -1 uncertain, NaN unmentioned, in CheXpert's order.
    """
    values = {name: math.nan for name in CHEXPERT}
    seen: set[str] = set()
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:  # "Other" is many things, which do not overrule each other
        groups.setdefault((finding.name, finding.subtype if finding.name == OTHER else ""), []).append(finding)
    for (name, _), group in groups.items():
        chosen = decisive(group, name, impression_wins=impression_wins)
        if name in values:
            values[name] = VALUE[chosen[0].status]
        if name != _DEVICES and not all(f.weak for f in chosen):
            seen.add(chosen[0].status)
    if findings:
        values[NO_FINDING] = 0.0 if "present" in seen else -1.0 if "uncertain" in seen else 1.0
    if closure:
        for child, parent in PARENTS.items():
            if values[child] == 1:
                values[parent] = 1.0
    return values
