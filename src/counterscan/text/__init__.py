"""Radiology reports: findings by rules that are data, an entity graph, and the texts a text-image model learns from."""

from counterscan.text.extract import Extraction, Extractor
from counterscan.text.mentions import Finding

__all__ = ["Extraction", "Extractor", "Finding"]
