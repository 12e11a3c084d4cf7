"""TB-SMGAN: can rare findings become learnable? A generator of labelled images, and what is built on it."""

from counterscan.tbsmgan.generator import LabelMix, StyleGAN, TrainingPatients
from counterscan.tbsmgan.monitors import MonitorConfig, Monitors
from counterscan.tbsmgan.objective import GANTask, ObjectiveConfig, default_gamma
from counterscan.tbsmgan.training import GANConfig, fit, from_run, preset, steps_in

__all__ = [
    "GANConfig",
    "GANTask",
    "LabelMix",
    "MonitorConfig",
    "Monitors",
    "ObjectiveConfig",
    "StyleGAN",
    "TrainingPatients",
    "default_gamma",
    "fit",
    "from_run",
    "preset",
    "steps_in",
]
