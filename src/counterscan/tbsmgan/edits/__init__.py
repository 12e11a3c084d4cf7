"""Ways of steering a generator, one file each, behind one interface: ``Editor.edit(latents, prompt, strength)``."""

from counterscan.tbsmgan.edits.base import Edited, Editor, Move, Origin, WSpace
from counterscan.tbsmgan.edits.label_swap import LabelSwap
from counterscan.tbsmgan.edits.learned_direction import LearnedConfig, LearnedDirection
from counterscan.tbsmgan.edits.per_image import PerImage, PerImageConfig
from counterscan.tbsmgan.edits.prompt import Mention, Prompt, TextDirections, TextImage, parse
from counterscan.tbsmgan.edits.random_direction import RandomDirection
from counterscan.tbsmgan.edits.style_directions import Channels, StyleConfig, StyleDirections, cached, measure

__all__ = [
    "Channels",
    "Edited",
    "Editor",
    "LabelSwap",
    "LearnedConfig",
    "LearnedDirection",
    "Mention",
    "Move",
    "Origin",
    "PerImage",
    "PerImageConfig",
    "Prompt",
    "RandomDirection",
    "StyleConfig",
    "StyleDirections",
    "TextDirections",
    "TextImage",
    "WSpace",
    "cached",
    "measure",
    "parse",
]
