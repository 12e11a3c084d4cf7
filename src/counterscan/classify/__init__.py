"""The classifiers everyone shares: training, calibration, evaluation."""

from counterscan.classify.calibration import Calibration, calibrate
from counterscan.classify.config import ClassifyConfig
from counterscan.classify.evaluate import evaluate_classifier
from counterscan.classify.task import ClassifierTask, masked_bce, predict_logits
from counterscan.classify.train import from_pretrained, load_classifier, save_pretrained, train_classifier

__all__ = [
    "Calibration",
    "ClassifierTask",
    "ClassifyConfig",
    "calibrate",
    "evaluate_classifier",
    "from_pretrained",
    "load_classifier",
    "masked_bce",
    "predict_logits",
    "save_pretrained",
    "train_classifier",
]
