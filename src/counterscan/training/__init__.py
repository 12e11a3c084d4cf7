"""Training: one loop for every system, which brings its networks and its step."""

from counterscan.training.checkpoint import DamagedCheckpoint, find_checkpoint, load_weights
from counterscan.training.config import TrainConfig
from counterscan.training.context import Context, lazy, lazy_adam
from counterscan.training.ema import EMA
from counterscan.training.feed import DataSource
from counterscan.training.guards import Interrupted, NonFiniteError
from counterscan.training.logging import image_grid, read_metrics
from counterscan.training.loop import train
from counterscan.training.sampler import BalancedSampler, Sampler, finding_groups, strata_groups, uniform_sampler
from counterscan.training.seeding import seed_everything
from counterscan.training.task import Task, TrainResult

__all__ = [
    "EMA",
    "BalancedSampler",
    "Context",
    "DamagedCheckpoint",
    "DataSource",
    "Interrupted",
    "NonFiniteError",
    "Sampler",
    "Task",
    "TrainConfig",
    "TrainResult",
    "find_checkpoint",
    "finding_groups",
    "image_grid",
    "lazy",
    "lazy_adam",
    "load_weights",
    "read_metrics",
    "seed_everything",
    "strata_groups",
    "train",
    "uniform_sampler",
]
