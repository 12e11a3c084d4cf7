"""Published data sets as study tables: one file per set, each with one ``import_<set>(root, ...) -> StudyTable``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from counterscan.data.importers.busi import import_busi
from counterscan.data.importers.chexpert import import_chexpert
from counterscan.data.importers.covid import import_covid_qu_ex, import_covid_radiography
from counterscan.data.importers.lgg_mri import import_lgg_mri
from counterscan.data.importers.manifest import import_manifest
from counterscan.data.importers.mimic_cxr import import_mimic_cxr
from counterscan.data.importers.nih_cxr14 import import_nih_cxr14
from counterscan.data.importers.tbx11k import import_tbx11k
from counterscan.data.table import StudyTable

IMPORTERS: Mapping[str, Callable[..., StudyTable]] = MappingProxyType(
    {
        "chexpert": import_chexpert,
        "mimic_cxr": import_mimic_cxr,
        "nih_cxr14": import_nih_cxr14,
        "tbx11k": import_tbx11k,
        "covid_qu_ex": import_covid_qu_ex,
        "covid_radiography": import_covid_radiography,
        "lgg_mri": import_lgg_mri,
        "busi": import_busi,
        "manifest": import_manifest,
    }
)
