"""medXGAN: why did my classifier say so? The way from an image to its counterpart (arXiv 2204.05376)."""

from counterscan.medxgan.attribution import (
    displacement_integrated_gradients,
    gradients_of,
    path_integrated_gradients,
    straight_path,
)
from counterscan.medxgan.explain_config import ExplainConfig
from counterscan.medxgan.explainer import Limits, MedXGAN
from counterscan.medxgan.inversion import PersuadeConfig, RefineConfig, latent_optimisation, persuade, refine
from counterscan.medxgan.model import Code, MedXGANNetworks, NetworkConfig
from counterscan.medxgan.objective import MedXGANTask, ObjectiveConfig
from counterscan.medxgan.training import MedXGANConfig, fit
from counterscan.medxgan.witness import WitnessConfig, train_witnesses

__all__ = [
    "Code",
    "ExplainConfig",
    "Limits",
    "MedXGAN",
    "MedXGANConfig",
    "MedXGANNetworks",
    "MedXGANTask",
    "NetworkConfig",
    "ObjectiveConfig",
    "PersuadeConfig",
    "RefineConfig",
    "WitnessConfig",
    "displacement_integrated_gradients",
    "fit",
    "gradients_of",
    "latent_optimisation",
    "path_integrated_gradients",
    "persuade",
    "refine",
    "straight_path",
    "train_witnesses",
]
