"""Classifiers from elsewhere: loaded from what a command line names, and tried before they are used."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from counterscan.care import evaluating
from counterscan.classify.adapter import AdaptedClassifier, AdapterConfig
from counterscan.classify.train import load_classifier
from counterscan.data.findings import canonical_name
from counterscan.errors import InputError, line_of
from counterscan.files import sha256_file
from counterscan.inputs import check_device
from counterscan.nets.cnn import Classifier

_FILES = (".pt", ".ts", ".pt2", ".pth", ".pkl", ".bin", ".ckpt", ".safetensors", ".onnx", ".h5", ".keras")
_FORMS = (
    "Name a run folder of 'counterscan classify train', a TorchScript file (.pt, .ts), a torch.export program (.pt2),"
    " or module:function, which returns a classifier"
)
_SAVE = (
    "Save it with torch.jit.script(model).save('model.ts') or torch.export.save(program, 'model.pt2'), or write a"
    " function that builds the model and loads the weights, and name it as module:function"
)
# Where a program sets the fewest images of a call but not the most.
_MOST = 256
_BATCH_NORM = "Batch norm is training: save it in evaluation mode"
_USUAL_SIDES = (224, 256, 299, 320, 384, 448, 512, 128, 96, 64, 48, 32, 28)


def load_external(
    spec: str, findings: Sequence[str] = (), config: AdapterConfig | None = None, device: str = "cpu"
) -> nn.Module:
    """A classifier that meets the contract of ``counterscan.peers.base``, frozen and in evaluation mode.

    Args:
        spec: one of

            * a run folder of ``counterscan classify train``;
            * a TorchScript file;
            * a ``torch.export`` program. It says itself which size and how many images it takes, so ``size`` and
              ``batch`` may be left out; a fixed batch is met by splitting and filling up;
            * ``module:function``, found on the Python path or in the current folder. The function is called without
              arguments and returns a module, a function from images to scores, an exported program, or an
              ``AdaptedClassifier``.
        findings: a name for each output, or for each of ``config.columns``. A run folder and an ``AdaptedClassifier``
            have their own; where some of those are named, the others are left out.
        config: how to adapt it; not for a run folder or an ``AdaptedClassifier``.
        device: where it goes.

    Returns:
        An ``AdaptedClassifier``; the project's own ``Classifier`` from a run folder if all its findings are wanted.
        ``check_classifier`` tries it.

    Raises:
        InputError: nothing is there, it cannot be loaded, or it is no classifier; pickles (state dictionaries, whole
            modules) are refused unopened.
    """
    config = config or AdapterConfig()
    check_device(device)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _as_it_is(load_classifier(path, device), findings, config)
    loaded: Any
    if path.is_file() or path.suffix.lower() in _FILES:
        loaded = _read(path, device)
    elif ":" in spec:
        loaded = _called(spec)
    else:
        raise InputError("no such file or folder", path=spec, remedy=_FORMS)
    if isinstance(loaded, Classifier | AdaptedClassifier):
        return _as_it_is(loaded.to(device), findings, config)
    if isinstance(loaded, torch.export.ExportedProgram):
        loaded, config = _program(loaded, config, spec, device)
    if not findings:
        raise InputError("name the findings of the classifier's outputs, in order", field="findings")
    adapted = AdaptedClassifier(loaded, findings, config).to(device)
    if path.is_file() and not adapted.digest:  # frozen TorchScript keeps its weights among its constants
        adapted.digest = sha256_file(path)
    return adapted


def _as_it_is(classifier: Classifier | AdaptedClassifier, findings: Sequence[str], config: AdapterConfig) -> nn.Module:
    """A classifier that knows its findings; of these only the named ones, where some are."""
    known, names = classifier.findings, tuple(map(canonical_name, findings))
    for name in names:
        if name not in known:
            raise InputError(
                f"the classifier does not know {name!r}", field="findings", remedy=f"It knows {', '.join(known)}"
            )
    changed = [f.name for f in fields(config) if getattr(config, f.name) != getattr(AdapterConfig(), f.name)]
    if changed:
        raise InputError("this classifier needs no adapter", field=changed[0], remedy="Leave the setting out")
    classifier.eval().requires_grad_(False)
    if not names or names == known:
        return classifier
    if isinstance(classifier, Classifier):
        config = AdapterConfig(size=classifier.trained_on.get("size"), columns=tuple(map(known.index, names)))
        return AdaptedClassifier(classifier, names, config)
    columns = classifier.config.columns or range(len(known))
    config = replace(classifier.config, columns=tuple(columns[known.index(name)] for name in names))
    return AdaptedClassifier(classifier.classifier, names, config)


def _read(path: Path, device: str) -> Any:
    """The program in a file, told by its content."""
    if not path.is_file():
        raise InputError("no such file", path=path, remedy=_FORMS)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        names = []
    script = any(name.endswith("/constants.pkl") for name in names)
    program = any("/models/" in name or name.endswith("serialized_exported_program.json") for name in names)
    try:
        if script:
            return torch.jit.load(str(path), map_location=device)
        if program:
            with open(path, "rb") as handle:
                return torch.export.load(handle)
    except Exception as error:
        raise InputError(
            f"cannot be loaded ({line_of(error)})",
            path=path,
            remedy=f"Save it again with the installed PyTorch {torch.__version__}, on the CPU",
        ) from error
    with open(path, "rb") as handle:
        start = handle.read(2)
    if any(name.endswith("data.pkl") for name in names) or start[:1] == b"\x80":
        raise InputError(
            "holds pickled weights or a pickled model; the one lacks the network, and the other may run any code when"
            " opened",
            path=path,
            remedy=_SAVE,
        )
    if start == b"PK" and not names:
        raise InputError("is cut short or damaged", path=path, remedy="Copy it again from where it came")
    raise InputError("is neither TorchScript nor a torch.export program", path=path, remedy=_SAVE)


def _program(
    program: torch.export.ExportedProgram, config: AdapterConfig, spec: str, device: str
) -> tuple[nn.Module, AdapterConfig]:
    """Its module, and the settings completed by what the program says of its input."""
    names = program.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in names and "val" in node.meta]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        takes = ", ".join(str(tuple(shape)) for shape in shapes)
        raise InputError(f"the program takes {takes or names}, not images (N, C, H, W)", path=spec, remedy=_SAVE)
    count, channels, *sides = shapes[0]
    if isinstance(channels, int) and channels != config.channels:
        raise InputError(
            f"the program takes {channels} channels", path=spec, field="channels", remedy=f"Set channels={channels}"
        )
    if all(isinstance(side, int) for side in sides):
        if config.size not in (None, tuple(sides)):
            raise InputError(
                f"the program takes {sides[0]} x {sides[1]} px", path=spec, field="size", remedy="Leave size out"
            )
        config = replace(config, size=tuple(sides))
    if config.batch is None:
        config = replace(config, batch=_batch(program, count))
    return move_to_device_pass(program, device).module(), config


def _batch(program: torch.export.ExportedProgram, count: Any) -> tuple[int, int] | None:
    """Fewest and most images of a call; None when any number will do."""
    if isinstance(count, int):
        return count, count
    limits = program.range_constraints.get(count.node.expr)
    if limits is None:
        return None
    bounds = [int(x) if str(x).isdigit() else None for x in (limits.lower, limits.upper)]  # infinity is no digit
    fewest, most = max(bounds[0] or 1, 1), bounds[1]
    return None if fewest == 1 and most is None else (fewest, max(fewest, most or _MOST))


def _called(spec: str) -> Any:
    """What ``module:function`` returns."""
    module_name, _, name = spec.partition(":")
    with _current_folder_importable():
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
            raise InputError(
                "no such module" if missing else f"importing the module raises {_said(error)}",
                field=spec,
                remedy="Run from the folder that holds it, or install it" if missing else "Mend the module",
            ) from error
        try:
            found = attrgetter(name)(module)
        except AttributeError:
            raise InputError(f"the module has no {name!r}", field=spec, remedy=f"It has {_callables(module)}") from None
        if isinstance(found, nn.Module | torch.export.ExportedProgram):
            return found
        if not callable(found):
            raise InputError(f"{name!r} is a {type(found).__name__}, not a function", field=spec, remedy=_FORMS)
        try:
            result = found()
        except (Exception, SystemExit) as error:
            raise InputError(
                f"the function raises {_said(error)}",
                field=spec,
                remedy="It is called without arguments and must return the classifier",
            ) from error
    if not callable(result):
        raise InputError(
            f"the function returns a {type(result).__name__}, which cannot be called",
            field=spec,
            remedy="Return an nn.Module, or a function from images (N, C, H, W) to scores (N, K)",
        )
    return result


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _callables(module: Any) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return ", ".join(own) or "no function"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {line_of(error)}"


def check_classifier(adapted: AdaptedClassifier, images: Tensor) -> None:
    """Try an adapted classifier on a few images before hours are spent on it.

    Args:
        adapted: to be tried, with some five passes of at most eight images and one backward.
        images: (N, 1, H, W) in [-1, 1] such as it will see; the first four are used.

    Raises:
        InputError: it fails, returns anything but finite scores of every finding for every image, contradicts its
            ``AdapterConfig``, answers at random or the same for every image, or lets no gradient reach the image. Says
            which setting to change.
    """
    if images.device != adapted.threshold.device:
        raise InputError(
            f"images are on {images.device}, the classifier on {adapted.threshold.device}",
            field="device",
            remedy="Move the classifier with .to(device)",
        )
    if images.ndim != 4 or images.shape[1] != 1 or not len(images) or not bool((images.abs() <= 1).all()):
        raise InputError("expected one or more images (N, 1, H, W) in [-1, 1]", field="images")
    images = images[:4].detach().float()
    probe = torch.cat([images, -images])  # clearly different, whatever the images are
    with torch.inference_mode(False), torch.no_grad(), evaluating(adapted):
        try:
            scores, again, margins = _judged(adapted, probe), _judged(adapted, probe), adapted(probe)
        except InputError:
            raise
        except Exception as error:
            raise _diagnosis(adapted, images[:1], error) from error
        try:
            alone = _judged(adapted, probe[:1])
        except Exception as error:
            _fail(f"takes {len(probe)} images but not one ({line_of(error)})", f"{_BATCH_NORM}, or set batch")
    if not bool(margins.isfinite().all()):
        _fail("returns NaN or infinite values", "Compare pixel_range, mean, std and its weights with its training")
    gradient = _gradient(adapted, images)
    _check_declared(adapted, scores, probe)
    near = 0.01 * float(scores.abs().max())
    if not torch.allclose(scores, again, rtol=0.01, atol=near):
        _fail("answers the same images differently each time", "Dropout is at work: save it in evaluation mode")
    if not torch.allclose(scores[:1], alone, rtol=0.01, atol=near):
        _fail("judges an image by the others of its batch", _BATCH_NORM)
    same = (margins - margins[:1]).abs().amax(0) <= 1e-6 * (1 + margins.abs().amax(0))
    if bool(same.all()):
        _fail(
            "returns the same for every image",
            "Compare pixel_range, mean and std with its training; where probabilities are 0 or 1, take its logits",
        )
    if not bool(gradient.isfinite().all()):
        _fail("has NaN or infinite gradients", "Look for a root, a logarithm or a division at zero inside")
    if not bool(gradient.any()):
        _fail("has a gradient of zero everywhere", "Look for rounding or a threshold inside, or take its logits")
    if bool(same.any()):
        names = ", ".join(name for name, still in zip(adapted.findings, same.tolist(), strict=True) if still)
        warnings.warn(f"the classifier returns the same for every image for {names}", stacklevel=2)


def _fail(problem: str, remedy: str) -> NoReturn:
    raise InputError(f"the classifier {problem}", field="classifier", remedy=remedy)


def _judged(adapted: AdaptedClassifier, images: Tensor) -> Tensor:
    """The outputs that matter: all under a softmax, else those of the findings."""
    scores = adapted.scores(images)
    count = scores.shape[1]
    return scores if adapted.softmax(count) else scores[:, adapted.columns(count)]


def _gradient(adapted: AdaptedClassifier, images: Tensor) -> Tensor:
    """Of a sum of the margins, in unequal shares because those of a softmax may cancel out."""
    remedy = "Look for detach, no_grad, inference_mode, argmax or NumPy inside"
    with torch.inference_mode(False), torch.enable_grad(), evaluating(adapted):
        x = images.clone().requires_grad_()
        try:
            margins = adapted(x)
            total = (margins * torch.linspace(1, 2, margins.shape[1], device=x.device)).sum()
            (gradient,) = torch.autograd.grad(total, x, allow_unused=True) if total.requires_grad else (None,)
        except RuntimeError as error:
            _fail(f"cannot be differentiated ({line_of(error)})", remedy)
    if gradient is None:
        _fail("lets no gradient reach the image", remedy)
    return gradient


def _check_declared(adapted: AdaptedClassifier, scores: Tensor, probe: Tensor) -> None:
    """Probabilities must be such, and logits must not look like them."""
    shared = adapted.softmax(scores.shape[1])
    within, ones = _like_probabilities(scores)
    field = "outputs"
    if adapted.config.outputs == "logits":
        if within and (ones or not shared):
            # Logits may be small by chance, but hardly stay so on images with a hundred times the contrast.
            with contextlib.suppress(Exception), torch.no_grad(), evaluating(adapted):
                within, ones = _like_probabilities(_judged(adapted, 100 * probe))
        if not within or (shared and not ones):
            return
        problem, remedy = "the output looks like probabilities, it stays in [0, 1]", "Set outputs=probabilities"
    elif not within:
        problem = f"probabilities run from {float(scores.min()):.3g} to {float(scores.max()):.3g}"
        remedy = "Set outputs=logits"
    elif shared and not ones:
        field, problem = "task", "the probabilities of an image do not add to 1"
        remedy = "Set task=multilabel"
    else:
        return
    raise InputError(problem, field=field, remedy=remedy)


def _like_probabilities(scores: Tensor) -> tuple[bool, bool]:
    """Whether all are in [0, 1], and whether each row adds to 1."""
    within = (scores >= -1e-4) & (scores <= 1 + 1e-4)
    return bool(within.all()), bool(((scores.sum(1) - 1).abs() < 1e-2).all())


def _diagnosis(adapted: AdaptedClassifier, images: Tensor, error: Exception) -> InputError:
    """Why the classifier fails on an image: found by trying other channels and the usual sizes."""
    config, inputs = adapted.config, adapted.prepare(images)
    count, side = (config.batch or (1, 1))[0], tuple(inputs.shape[-2:])
    problem = f"the classifier fails on images {(count, *inputs.shape[1:])}: {line_of(error)}"
    other = 4 - config.channels
    for channels, size in [(other, side), *((c, (s, s)) for s in _USUAL_SIDES for c in (config.channels, other))]:
        settings = {}
        if channels != config.channels:
            settings["channels"] = channels
        if size != side:
            settings["size"] = size[0]
        if settings and _runs(adapted.classifier, inputs.new_zeros(count, channels, *size)):
            remedy = "It runs with " + " and ".join(f"{name}={value}" for name, value in settings.items())
            return InputError(problem, field=next(iter(settings)), remedy=remedy)
    return InputError(problem, field="classifier", remedy="Compare channels, size and batch with what it takes")


def _runs(classifier: Callable[[Tensor], Any], inputs: Tensor) -> bool:
    try:
        classifier(inputs)
    except Exception:
        return False
    return True
