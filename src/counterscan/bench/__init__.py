"""Systems compete: the same images, the same classifier, the same mask rule, one table."""

from counterscan.bench.entrants import calibrated, first_peers, mean_location, native_truth
from counterscan.bench.evaluation import Evaluation
from counterscan.bench.localise import evaluate_systems
from counterscan.bench.sensitivity import ClassSensitivity, class_sensitivity

__all__ = [
    "ClassSensitivity",
    "Evaluation",
    "calibrated",
    "class_sensitivity",
    "evaluate_systems",
    "first_peers",
    "mean_location",
    "native_truth",
]
