"""A procedural chest-radiograph phantom with findings, reports, lesion masks and true healthy twins.

A parametric thorax in three dimensions is projected by Beer-Lambert along closed-form chord lengths, so findings
superimpose on ribs, vessels and heart as they do on a film. No download, no licence; not a medical device.
"""

from counterscan.data.phantom.config import FINDINGS, PhantomConfig
from counterscan.data.phantom.dataset import PhantomSet, phantom_study_set, write_phantom
from counterscan.data.phantom.study import PhantomStudy, render, render_batch

__all__ = [
    "FINDINGS",
    "PhantomConfig",
    "PhantomSet",
    "PhantomStudy",
    "phantom_study_set",
    "render",
    "render_batch",
    "write_phantom",
]
