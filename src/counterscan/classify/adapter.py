"""Any PyTorch image classifier, made to meet the contract of ``counterscan.peers.base``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.data.findings import canonical_name
from counterscan.errors import InputError
from counterscan.training.checkpoint import weights_digest

# Probabilities are read as if they were at least this far from 0 and 1, so that margins stay within +-13.8.
CLAMP = 1e-6


@dataclass(frozen=True)
class AdapterConfig:
    """What a classifier takes and what it returns.

    Attributes:
        task: "multilabel", a sigmoid per output; "multiclass", a softmax over all outputs; "binary", one output with
            a sigmoid, or two with a softmax, the second of which is the finding unless ``columns`` says otherwise.
        outputs: "logits", before that sigmoid or softmax, or "probabilities", after it. Logits are better where both
            can be had: probabilities that float32 rounds to 0 or 1 carry no gradient.
        channels: 1, or 3 for grey repeated.
        pixel_range: what black and white, -1 and 1 here, are to the classifier; linear between. (255, 0) turns black
            and white round.
        mean, std: per channel, subtracted and divided by after that; one value, or one per channel.
        size: side, or height and width, in pixels that images are resampled to; None leaves them as they are.
        output: which element of a tuple or key of a dictionary is the prediction; None takes the tensor itself or the
            first tensor of a tuple.
        columns: which output is each finding; None when they are one for one and in order.
        batch: fewest and most images in one call, (8, 8) for a fixed batch of 8. Larger batches are split, smaller
            ones filled up with copies of the last image. None for any number.

    Raises:
        InputError: a value is out of range; names the field.
    """

    task: Literal["multilabel", "multiclass", "binary"] = "multilabel"
    outputs: Literal["logits", "probabilities"] = "logits"
    channels: Literal[1, 3] = 1
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | tuple[int, int] | None = None
    output: int | str | None = None
    columns: tuple[int, ...] | None = None
    batch: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("task", ("multilabel", "multiclass", "binary")),
            ("outputs", ("logits", "probabilities")),
            ("channels", (1, 3)),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"{getattr(self, name)!r} must be one of {', '.join(map(str, choices))}", field=name)
        for name in ("pixel_range", "mean", "std", "columns", "batch"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        black, white = self.pixel_range if len(self.pixel_range) == 2 else (0.0, 0.0)
        if not (math.isfinite(black) and math.isfinite(white)) or black == white:
            raise InputError("must be two different numbers", field="pixel_range", remedy="For example -1024 1024")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) not in (1, self.channels) or not all(map(math.isfinite, values)):
                raise InputError(f"must be one number, or one for each of {self.channels} channels", field=name)
            if name == "std" and min(values) <= 0:
                raise InputError("must be positive", field=name)
        if self.size is not None:
            sides = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
            if len(sides) != 2 or min(sides) < 1:
                raise InputError("must be one or two positive numbers of pixels", field="size")
            object.__setattr__(self, "size", sides)
        if self.columns is not None and (not self.columns or min(self.columns) < 0):
            raise InputError("must be numbers of outputs, counted from 0", field="columns")
        if self.batch is not None and (len(self.batch) != 2 or not 1 <= self.batch[0] <= self.batch[1]):
            raise InputError("must be the fewest and the most images of a call", field="batch")


class AdaptedClassifier(nn.Module):
    """A classifier that takes (N, 1, H, W) in [-1, 1] and returns margins (N, C): sigmoid(margin) is its probability.

    The classifier's parameters are frozen and it stays in evaluation mode, ``train()`` or not; gradients reach the
    images. A plain function that holds a network inside must see to both itself.

    Args:
        classifier: a module or function from (N, channels, h, w) to scores.
        findings: C names.
        config: what it takes and returns.
        cam_layers: its convolutional stages from high resolution to the last, each run once per pass. None finds them
            on first use, see ``find_cam_layers``, with one pass over a grey image of the size last seen (64 px before
            any). Always empty when ``config.batch`` splits batches into several passes.

    Attributes:
        classifier, config: as given.
        findings: C canonical names.
        threshold: (C,) probability from which a finding is called present, one half.
        digest: SHA-256 of the weights; "" when there are none.

    Raises:
        InputError: no finding, a name twice, or as many ``columns`` as there are not findings.
    """

    threshold: Tensor

    def __init__(
        self,
        classifier: Callable[[Tensor], Any],
        findings: Sequence[str],
        config: AdapterConfig | None = None,
        *,
        cam_layers: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config = config or AdapterConfig()
        self.findings = tuple(map(canonical_name, [findings] if isinstance(findings, str) else findings))
        columns = self.config.columns
        if not self.findings or len(set(self.findings)) < len(self.findings):
            raise InputError("name each finding once", field="findings")
        if columns is not None and len(columns) != len(self.findings):
            raise InputError(f"{len(columns)} for {len(self.findings)} findings", field="columns")
        if self.config.batch is not None and cam_layers:
            raise InputError("feature maps of a batch that is split cannot be kept", field="cam_layers")
        self.classifier = classifier
        for p in self.parameters():  # one by one: TorchScript has no requires_grad_()
            p.requires_grad = False
        module = classifier if isinstance(classifier, nn.Module) else None
        self.digest = weights_digest(module) if module is not None and module.state_dict() else ""
        self._cam_layers = [] if self.config.batch is not None else None if cam_layers is None else list(cam_layers)
        self._side: tuple[int, int] = (64, 64)
        place = next((x.device for x in self.parameters()), None)
        self.register_buffer("threshold", torch.full((len(self.findings),), 0.5, device=place), persistent=False)
        for name, default in (("mean", 0.0), ("std", 1.0)):
            values = torch.tensor(getattr(self.config, name) or (default,), dtype=torch.float32, device=place)
            self.register_buffer(f"_{name}", values.view(1, -1, 1, 1), persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> AdaptedClassifier:
        """Evaluation mode, whatever ``mode`` says."""
        self.training = False
        for part in self.children():
            try:
                part.eval()
            except NotImplementedError:  # an exported program has the mode in which it was exported
                for module in part.modules():
                    module.training = False
        return self

    @property
    def cam_layers(self) -> list[nn.Module]:
        """Convolutional stages from high resolution to the last; empty for TorchScript and exported programs.

        Raises:
            InputError: they have to be found and the classifier fails.
        """
        if self._cam_layers is None:
            grey = torch.zeros(1, 1, *self._side, device=self.threshold.device)
            try:
                self._cam_layers = find_cam_layers(self, grey)
            except InputError:
                raise
            except Exception as error:
                raise InputError(
                    f"cannot be found, the classifier fails on {tuple(self.prepare(grey).shape)}: {error}",
                    field="cam_layers",
                    remedy="Give them, or classify images of the right size first; check_classifier says what is wrong",
                ) from error
        return list(self._cam_layers)

    def prepare(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to what the classifier takes, (N, channels, h, w) of its weights' type."""
        size, (black, white) = self.config.size, self.config.pixel_range
        x = images.float()
        if size is not None and size != tuple(x.shape[-2:]):
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
        x = (x * ((white - black) / 2) + (white + black) / 2).repeat(1, self.config.channels, 1, 1)
        if self.config.mean is not None or self.config.std is not None:
            x = (x - self.get_buffer("_mean")) / self.get_buffer("_std")
        return x.to(next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32))

    def scores(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to all K outputs as the classifier gives them, (N, K) float32.

        Raises:
            InputError: the images are not (N, 1, H, W), or the outputs are not N rows of scores.
        """
        if images.ndim != 4 or images.shape[1] != 1:
            raise InputError(f"expected images (N, 1, H, W), got {tuple(images.shape)}")
        self._side = (images.shape[-2], images.shape[-1])
        inputs = self.prepare(images)
        fewest, most = self.config.batch or (1, len(images))
        rows = []
        for part in inputs.split(most):
            spare = part[-1:].detach().expand(max(fewest - len(part), 0), -1, -1, -1)
            full = torch.cat([part, spare]) if len(spare) else part
            # In the numbers it was made for: exported programs hold their own, and it is to be explained as it is.
            with torch.autocast(full.device.type, enabled=False):
                prediction = prediction_of(self.classifier(full), self.config.output)
            rows.append(_rows(prediction, len(full))[: len(part)])
        return torch.cat(rows)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to margins (N, C) float32.

        Raises:
            InputError: see ``scores``; or the number of outputs does not fit the task or the findings.
        """
        if not len(images):
            return torch.zeros(0, len(self.findings), device=images.device)
        return self.margins(self.scores(images))

    def margins(self, scores: Tensor) -> Tensor:
        """All outputs (N, K) to the margins of the findings (N, C)."""
        count = scores.shape[1]
        shared = self.softmax(count)
        if self.config.outputs == "probabilities":
            p = _clamped(scores)
            margins = softmax_margins(p.log()) if shared else p.logit()
        else:
            margins = softmax_margins(scores) if shared else scores
        return margins[:, self.columns(count)]

    def softmax(self, count: int) -> bool:
        """Whether ``count`` outputs share a softmax.

        Raises:
            InputError: the task has not so many outputs.
        """
        task = self.config.task
        if task == "binary" and count > 2:
            raise InputError(f"the classifier has {count} outputs", field="task", remedy="Use multilabel or multiclass")
        if task == "multiclass" and count == 1:
            raise InputError("the classifier has one output", field="task", remedy="Use binary")
        return task == "multiclass" or (task == "binary" and count == 2)

    def columns(self, count: int) -> list[int]:
        """Which of ``count`` outputs are the findings.

        Raises:
            InputError: there are not so many, or more and nothing says which.
        """
        columns, findings = self.config.columns, len(self.findings)
        if columns is None and (self.config.task, count, findings) == ("binary", 2, 1):
            columns = (1,)
        if columns is None and count != findings:
            raise InputError(
                f"the classifier has {count} outputs, and {findings} findings are named",
                field="findings",
                remedy="Name one finding per output, in order, or say with columns which outputs they are",
            )
        if columns is not None and max(columns) >= count:
            raise InputError(f"the classifier's outputs are 0 to {count - 1}", field="columns")
        return list(range(count) if columns is None else columns)

    def probabilities(self, margins: Tensor) -> Tensor:
        """P(finding) = sigmoid(margin), (N, C)."""
        return torch.sigmoid(margins)


def softmax_margins(logits: Tensor) -> Tensor:
    """log p - log(1 - p) of p = softmax(logits): each logit less the logsumexp of the others; (N, K), K > 1.

    Exact where p is 1 in float32, too.
    """
    top = F.one_hot(logits.argmax(1), logits.shape[1]).bool()
    below = logits.log_softmax(1).masked_fill(top, -math.inf).exp()
    others = torch.where(
        top, logits.masked_fill(top, -math.inf).logsumexp(1, True), logits.logsumexp(1, True) + (-below).log1p()
    )
    return logits - others


def _clamped(p: Tensor) -> Tensor:
    """Between CLAMP and 1 - CLAMP, with the gradient of the identity everywhere."""
    return p + (p.clamp(CLAMP, 1 - CLAMP) - p).detach()


def prediction_of(result: Any, output: int | str | None) -> Tensor:
    """The tensor that is the prediction; see ``AdapterConfig.output``.

    Raises:
        InputError: there is none.
    """
    several = isinstance(result, Mapping | tuple | list)
    if output is not None:
        if not several:
            raise InputError(
                f"the classifier returns one {type(result).__name__}", field="output", remedy="Leave output out"
            )
        try:
            result = result[output]
        except (LookupError, TypeError):
            raise InputError(f"the classifier returns no {output!r}", field="output", remedy=_choices(result)) from None
    elif isinstance(result, tuple | list):
        result = next((part for part in result if isinstance(part, Tensor)), result)
    if not isinstance(result, Tensor):
        remedy = _choices(result) if several else "It must return a torch tensor, which NumPy and numbers are not"
        raise InputError(f"the classifier's prediction is a {type(result).__name__}", field="output", remedy=remedy)
    if not result.is_floating_point():
        remedy = "Return logits or probabilities, without argmax, rounding or a threshold"
        raise InputError(f"the classifier returns {result.dtype}, not scores", field="output", remedy=remedy)
    return result


def _choices(result: Any) -> str:
    keys = list(result) if isinstance(result, Mapping) else list(range(len(result)))
    return f"Set output to one of {', '.join(map(repr, keys))}" if keys else "It is empty"


def _rows(prediction: Tensor, count: int) -> Tensor:
    """(N, K) float32 of predictions (N, K), (N,), (N, K, 1, 1), or of one image without its N."""
    shape = tuple(prediction.shape)
    if prediction.ndim == 0 or (prediction.ndim == 1 and count == 1):
        prediction = prediction.reshape(1, -1)
    if len(prediction) != count:
        raise InputError(
            f"the classifier answers {count} images with {shape}, not with {count} rows",
            field="batch",
            remedy="It must keep the batch dimension first; one that takes a fixed number of images needs batch, (1, 1)"
            " for one at a time",
        )
    if prediction.shape[2:].numel() != 1:
        raise InputError(
            f"the classifier returns {shape}, not (N, K) scores",
            field="output",
            remedy="Choose another output, or pool maps over space",
        )
    return prediction.reshape(count, -1).float()


def find_cam_layers(adapted: AdaptedClassifier, images: Tensor) -> list[nn.Module]:
    """Per spatial resolution at which a Conv2d works, the last module to finish there, in order.

    The last to finish is the whole of a stage, behind its norm and skip connection. Only modules that run once and
    that the prediction depends on count; 1 x 1 maps do not, and maps of the outputs themselves, which a convolution as
    head makes, only where there are no others. What runs without modules (TorchScript, exported programs,
    functions) has none.
    """
    finished: list[tuple[nn.Module, Tensor]] = []
    runs: Counter[nn.Module] = Counter()
    worked: set[tuple[int, ...]] = set()

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        runs[module] += 1
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2:].numel() > 1 and output.requires_grad:
            if isinstance(module, nn.Conv2d):
                worked.add(tuple(output.shape[-2:]))
            finished.append((module, output))

    inner = adapted.classifier
    modules = inner.modules() if isinstance(inner, nn.Module) else ()
    hooks = [m.register_forward_hook(keep) for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    with torch.inference_mode(False), torch.enable_grad():
        try:
            scores = adapted.scores(images.detach().clone().requires_grad_())
        finally:
            for hook in hooks:
                hook.remove()
        if not finished or not scores.requires_grad:
            return []
        reached = torch.autograd.grad(scores.sum(), [output for _, output in finished], allow_unused=True)
    stages: dict[tuple[int, ...], tuple[bool, int]] = {}
    for place, ((module, output), gradient) in enumerate(zip(finished, reached, strict=True)):
        side = tuple(output.shape[-2:])
        if gradient is not None and runs[module] == 1 and side in worked:
            features = output.shape[1] != scores.shape[1]
            stages[side] = max(stages.get(side, (False, -1)), (features, place))
    return [finished[place][0] for place in sorted(place for _, place in stages.values())]
