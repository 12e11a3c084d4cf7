"""The names of findings: CheXpert's where they exist, and the aliases under which other sets publish them.

Decisions, where the sets disagree:

* NIH "Nodule" and "Mass" are both CheXpert's "Lung Lesion", whose labeller lists nodule, mass and tumour as its
  mentions. A table with both columns keeps the stronger of the two labels (`1` over `-1` over `0` over blank).
* NIH "Pleural_Thickening" stays "Pleural Thickening": CheXpert's "Pleural Other" also holds fibrothorax and plaques, so
  the two are not the same statement.
* NIH "Infiltration" stays itself. It is a vague word for "Lung Opacity", and mapping it would mix two labellers' noise.
* TBX11K "Obsolete Pulmonary Tuberculosis" is the paper's latent tuberculosis; its third category, tuberculosis whose
  activity nobody could tell, is plain "Tuberculosis", which is set for the other two as well.
* "No Finding" is a statement about the others, not a finding: it never becomes a label column (`NO_FINDING`).
* "Abnormal" is the overall image label of sets that publish only sick against healthy.

Source: Irvin et al. 2019 (CheXpert), Wang et al. 2017 (ChestX-ray14), Liu et al. 2020 (TBX11K), Tahir et al. 2021
(COVID-QU-Ex), Al-Dhabyani et al. 2020 (BUSI), Buda et al. 2019 (LGG).
"""

from __future__ import annotations

import re
from types import MappingProxyType

NO_FINDING = "No Finding"

CHEXPERT: tuple[str, ...] = (
    NO_FINDING,
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

CANONICAL: tuple[str, ...] = (
    *CHEXPERT,
    "Infiltration",
    "Emphysema",
    "Fibrosis",
    "Pleural Thickening",
    "Hernia",
    "Tuberculosis",
    "Active Tuberculosis",
    "Latent Tuberculosis",
    "COVID-19",
    "Viral Pneumonia",
    "Brain Tumor",
    "Breast Lesion",
    "Benign Breast Lesion",
    "Malignant Breast Lesion",
    "Abnormal",
)


def _key(name: str) -> str:
    """Letters and digits only, lower case: "Pleural_Thickening", "pleural thickening" and "PleuralThickening" agree."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


# Spellings that the key alone does not bring together.
ALIASES = MappingProxyType(
    {
        **{_key(name): name for name in CANONICAL},
        "normal": NO_FINDING,
        "nofindings": NO_FINDING,
        "healthy": NO_FINDING,
        "effusion": "Pleural Effusion",
        "pleuraleffusions": "Pleural Effusion",
        "nodule": "Lung Lesion",
        "mass": "Lung Lesion",
        "nodulemass": "Lung Lesion",
        "airspaceopacity": "Lung Opacity",
        "lungopacities": "Lung Opacity",
        "oedema": "Edema",
        "pulmonaryedema": "Edema",
        "pulmonaryoedema": "Edema",
        "enlargedcardiacsilhouette": "Cardiomegaly",
        "cardiomegalia": "Cardiomegaly",
        "infiltrate": "Infiltration",
        "pleuralthicken": "Pleural Thickening",
        "hiatalhernia": "Hernia",
        "pulmonaryfibrosis": "Fibrosis",
        "tb": "Tuberculosis",
        "pulmonarytuberculosis": "Tuberculosis",
        "activetb": "Active Tuberculosis",
        "activepulmonarytuberculosis": "Active Tuberculosis",
        "latenttb": "Latent Tuberculosis",
        "obsoletetuberculosis": "Latent Tuberculosis",
        "obsoletepulmonarytuberculosis": "Latent Tuberculosis",
        "covid": "COVID-19",
        "sarscov2": "COVID-19",
        "braintumour": "Brain Tumor",
        "glioma": "Brain Tumor",
        "benign": "Benign Breast Lesion",
        "malignant": "Malignant Breast Lesion",
        "abnormality": "Abnormal",
        "abnormalities": "Abnormal",
    }
)


def canonical_name(name: str) -> str:
    """The project's name for a finding.

    Args:
        name: a finding as any set spells it; case, spaces, underscores and hyphens do not matter.

    Returns:
        The canonical name, or ``name`` without surrounding blanks when no set we know has it.
    """
    return ALIASES.get(_key(name), name.strip())


def is_known(name: str) -> bool:
    """Whether a column of this name is a finding without being told so ("No Finding" is not one)."""
    return ALIASES.get(_key(name), NO_FINDING) != NO_FINDING
