"""The classifiers everyone shares: training, calibration, evaluation."""

from counterscan.classify.adapter import AdaptedClassifier, AdapterConfig
from counterscan.classify.calibration import Calibration, calibrate
from counterscan.classify.config import ClassifyConfig
from counterscan.classify.evaluate import evaluate_classifier
from counterscan.classify.external import check_classifier, load_external
from counterscan.classify.task import ClassifierTask, masked_bce, predict_logits
from counterscan.classify.train import from_pretrained, load_classifier, save_pretrained, train_classifier

__all__ = [
    "AdaptedClassifier",
    "AdapterConfig",
    "Calibration",
    "ClassifierTask",
    "ClassifyConfig",
    "calibrate",
    "check_classifier",
    "evaluate_classifier",
    "from_pretrained",
    "load_classifier",
    "load_external",
    "masked_bce",
    "predict_logits",
    "save_pretrained",
    "train_classifier",
]
