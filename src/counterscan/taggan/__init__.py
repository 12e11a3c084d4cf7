"""TagGAN: where is the disease? Maps, masks and healthy counterparts from image-level labels (arXiv 2502.17836)."""

from counterscan.taggan.masks import MaskRule, calibrate, hide_and_seek
from counterscan.taggan.model import AbnormalGenerator, ConditionalCritic, MapGenerator, NetworkConfig
from counterscan.taggan.objective import ObjectiveConfig, TagGANTask
from counterscan.taggan.selection import LabelOnlySelection
from counterscan.taggan.tagger import ONE_VIEW, VIEWS, TagGAN, strongest
from counterscan.taggan.training import TagGANConfig, fit, from_run

__all__ = [
    "ONE_VIEW",
    "VIEWS",
    "AbnormalGenerator",
    "ConditionalCritic",
    "LabelOnlySelection",
    "MapGenerator",
    "MaskRule",
    "NetworkConfig",
    "ObjectiveConfig",
    "TagGAN",
    "TagGANConfig",
    "TagGANTask",
    "calibrate",
    "fit",
    "from_run",
    "hide_and_seek",
    "strongest",
]
