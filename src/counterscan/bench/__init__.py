"""Systems compete: the same images, the same classifier, the same mask rule, one table."""

from counterscan.bench.entrants import calibrated, first_peers, mean_location, native_truth
from counterscan.bench.evaluation import Evaluation
from counterscan.bench.explain_peers import explain_peers
from counterscan.bench.explain_report import ExplainReport, evaluate_explainer
from counterscan.bench.explain_stability import randomisation_test, stability_of
from counterscan.bench.explain_tables import ExplainerEvaluation, Realism
from counterscan.bench.explaining import Probe, evaluate_explainers
from counterscan.bench.localise import evaluate_systems
from counterscan.bench.sensitivity import ClassSensitivity, class_sensitivity

__all__ = [
    "ClassSensitivity",
    "Evaluation",
    "ExplainReport",
    "ExplainerEvaluation",
    "Probe",
    "Realism",
    "calibrated",
    "class_sensitivity",
    "evaluate_explainer",
    "evaluate_explainers",
    "evaluate_systems",
    "explain_peers",
    "first_peers",
    "mean_location",
    "native_truth",
    "randomisation_test",
    "stability_of",
]
