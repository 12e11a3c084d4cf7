from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterscan.classify import (
    AdaptedClassifier,
    AdapterConfig,
    check_classifier,
    load_classifier,
    load_external,
    save_pretrained,
)
from counterscan.errors import InputError
from counterscan.files import sha256_file
from counterscan.nets.cnn import Classifier
from counterscan.peers.integrated_gradients import IntegratedGradients
from tests.classify.planted import TINY

TWO = ("Edema", "Lung Lesion")


class Net(nn.Module):
    """Any size; batch norm and dropout, which must be off."""

    def __init__(self, channels: int = 1, outputs: int = 2) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, outputs)
        self.norm.running_mean.copy_(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return 5 * self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


class Flat(nn.Module):
    """One size only."""

    def __init__(self, channels: int = 1, side: int = 16, outputs: int = 2) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.channels, self.head = channels, nn.Linear(channels * side * side, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, from which nothing stays imported."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        if name.startswith("mine"):
            del sys.modules[name]


def exported(path: Path, net: nn.Module, example: Tensor, **options: Any) -> str:
    torch.export.save(torch.export.export(net.eval(), (example,), **options), path)
    return str(path)


def explains(adapted: nn.Module, images: Tensor, expected: Tensor) -> None:
    """Margins are as expected, nothing but the images is differentiable, and attributions are complete."""
    torch.testing.assert_close(adapted(images), expected, rtol=1e-4, atol=1e-5)
    assert not adapted.training
    assert not any(p.requires_grad for p in adapted.parameters())
    check_classifier(adapted, images)
    pytest.importorskip("captum")
    attributions = IntegratedGradients(adapted, n_steps=100).attribute(images, 1)
    change = (adapted(images) - adapted(torch.full_like(images, -1.0)))[:, 1]
    torch.testing.assert_close(attributions.sum((1, 2, 3)), change, rtol=0.02, atol=0.02)


# --- what can be loaded ---


def test_a_run_folder_gives_the_projects_own_classifier(tmp_path: Path, images: Tensor) -> None:
    save_pretrained(Classifier(TINY, TWO).eval(), tmp_path)
    loaded = load_external(str(tmp_path))
    assert isinstance(loaded, Classifier)
    assert torch.equal(loaded(images), load_classifier(tmp_path)(images))
    assert load_external(str(tmp_path), ["edema", "lung lesion"]).findings == TWO
    one = load_external(str(tmp_path), ["lung lesion"])
    assert one.findings == TWO[1:]
    assert torch.equal(one(images)[:, 0], loaded(images)[:, 1])
    with pytest.raises(InputError, match="It knows Edema, Lung Lesion"):
        load_external(str(tmp_path), ["Fracture"])
    with pytest.raises(InputError, match="needs no adapter") as caught:
        load_external(str(tmp_path), TWO, AdapterConfig(channels=3))
    assert caught.value.field == "channels"
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(InputError, match="counterscan classify train"):
        load_external(str(tmp_path))


@pytest.mark.parametrize("name", ["net.pt", "net.ts", "net.bin"])
@pytest.mark.parametrize("frozen", [False, True])
def test_torchscript(tmp_path: Path, images: Tensor, name: str, frozen: bool) -> None:
    net = Net(channels=3).eval()
    script = torch.jit.script(net)
    (torch.jit.freeze(script) if frozen else script.train()).save(str(tmp_path / name))
    adapted = load_external(str(tmp_path / name), TWO, AdapterConfig(channels=3, pixel_range=(0, 255)))
    with torch.no_grad():
        expected = net((images + 1).repeat(1, 3, 1, 1) * 127.5)
    torch.testing.assert_close(adapted(images), expected, rtol=1e-4, atol=1e-3)
    adapted = load_external(str(tmp_path / name), TWO, AdapterConfig(channels=3))
    with torch.no_grad():
        expected = net(images.repeat(1, 3, 1, 1))
    explains(adapted, images, expected)
    assert adapted.cam_layers == []
    assert len(adapted.digest) == 64
    assert (adapted.digest == sha256_file(tmp_path / name)) is frozen


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_an_exported_program_of_one_batch_and_size(tmp_path: Path, images: Tensor, batch: int) -> None:
    net = Flat(side=8)
    spec = exported(tmp_path / "net.pt2", net, torch.zeros(batch, 1, 8, 8))
    adapted = load_external(spec, TWO)
    assert adapted.config.size == (8, 8)
    assert adapted.config.batch == (batch, batch)
    small = nn.functional.interpolate(images, size=8, mode="bilinear", antialias=True)
    explains(adapted, images, net(small).detach())
    assert adapted.cam_layers == []
    assert len(adapted.digest) == 64


@pytest.mark.parametrize(
    ("dim", "batch"),
    [
        (torch.export.Dim("n"), None),
        (torch.export.Dim("n", min=2, max=3), (2, 3)),
        (torch.export.Dim("n", max=4), (1, 4)),
        (torch.export.Dim("n", min=7), (7, 256)),
    ],
)
def test_an_exported_program_of_many_batches_and_sizes(tmp_path: Path, images: Tensor, dim: Any, batch: Any) -> None:
    net = Net()
    side = {2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    count = 2 if dim.max < 8 else 8
    spec = exported(tmp_path / "net.pt2", net, torch.zeros(count, 1, 16, 16), dynamic_shapes=({0: dim, **side},))
    adapted = load_external(spec, TWO)
    assert adapted.config.size is None
    assert adapted.config.batch == batch
    with torch.no_grad():
        explains(adapted, images, net(images))


def test_an_exported_program_is_known_by_its_content_and_its_weights_type(tmp_path: Path, images: Tensor) -> None:
    net = Flat().double()
    exported(tmp_path / "net.pt2", net, torch.zeros(5, 1, 16, 16, dtype=torch.float64))
    (tmp_path / "net.pt2").rename(tmp_path / "net.pt")
    adapted = load_external(str(tmp_path / "net.pt"), TWO)
    torch.testing.assert_close(adapted(images), net(images.double()).detach().float())


@pytest.mark.parametrize(
    ("config", "field"), [(AdapterConfig(channels=3), "channels"), (AdapterConfig(size=224), "size")]
)
def test_settings_that_contradict_the_exported_program(tmp_path: Path, config: AdapterConfig, field: str) -> None:
    spec = exported(tmp_path / "net.pt2", Flat(), torch.zeros(1, 1, 16, 16))
    with pytest.raises(InputError) as caught:
        load_external(spec, TWO, config)
    assert caught.value.field == field


def test_an_exported_program_of_other_inputs_is_refused(tmp_path: Path) -> None:
    spec = exported(tmp_path / "net.pt2", nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(InputError, match=r"takes \(1, 3\), not images"):
        load_external(spec, TWO)


MODULE = """
import torch
from torch import nn
from tests.classify.test_external import Flat, Net
from counterscan.classify import AdaptedClassifier, AdapterConfig
from counterscan.nets.cnn import Classifier
from tests.classify.planted import TINY

net = Net()
number = 3
class Holder:
    build = staticmethod(lambda: net)

def build(): return Net().train()
def function(): return lambda x: net.eval()(x)
def program(): return torch.export.export(Net().eval(), (torch.zeros(4, 1, 16, 16),))
def adapted(): return AdaptedClassifier(Net(), ["Edema", "Lung Lesion"], AdapterConfig())
def own(): return Classifier(TINY, ("Edema", "Lung Lesion"))
def weights(): return {"weight": 1}
def predict(images): return images
def broken(): raise ValueError("no weights here")
def leaves(): raise SystemExit(1)
"""


@pytest.mark.parametrize("name", ["build", "net", "Net", "function", "program", "adapted", "Holder.build"])
def test_a_function_of_a_module_in_the_current_folder(here: Path, images: Tensor, name: str) -> None:
    (here / "mine.py").write_text(MODULE)
    adapted = load_external(f"mine:{name}", TWO)
    assert isinstance(adapted, AdaptedClassifier)
    with torch.no_grad():
        explains(adapted, images, Net().eval()(images))
    if name in ("build", "adapted"):
        assert len(adapted.cam_layers) == 1


def test_a_function_that_returns_a_classifier_of_the_project(here: Path) -> None:
    (here / "mine.py").write_text(MODULE)
    assert isinstance(load_external("mine:own"), Classifier)
    with pytest.raises(InputError, match="needs no adapter"):
        load_external("mine:adapted", TWO, AdapterConfig(size=8))


# --- what cannot ---


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine:missing", "has no 'missing'. It has Holder, build, function, program"),
        ("mine:number", "'number' is a int, not a function"),
        ("mine:weights", "returns a dict, which cannot be called"),
        ("mine:broken", "raises ValueError: no weights here"),
        ("mine:leaves", "raises SystemExit"),
        ("mine:predict", "called without arguments and must return the classifier"),
        ("mine_missing:build", "no such module. Run from the folder"),
        ("mine_bad:build", "raises SyntaxError"),
        ("mine_needy:build", "raises ModuleNotFoundError: No module named 'mine_missing'"),
        ("mine", "no such file or folder. Name a run folder"),
        ("gone.pt", "no such file"),
        ("gone/net.pt2", "no such file"),
    ],
)
def test_bad_specs_are_explained(here: Path, spec: str, message: str) -> None:
    (here / "mine.py").write_text(MODULE)
    (here / "mine_bad.py").write_text("def build(:")
    (here / "mine_needy.py").write_text("import mine_missing")
    with pytest.raises(InputError) as caught:
        load_external(spec, TWO)
    assert message in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["net.pt", "net.pth"])
@pytest.mark.parametrize("whole", [False, True])
def test_pickles_are_refused_unopened(here: Path, legacy: bool, name: str, whole: bool) -> None:
    class Bomb(Net):
        def __reduce__(self) -> Any:
            return Path.touch, (here / "exploded",)

    content = Bomb() if whole else Net().state_dict()
    torch.save(content, here / name, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"pickled.*torch\.jit\.script.*module:function"):
        load_external(name, TWO)
    assert not (here / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"weights"])
def test_files_that_are_no_program(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"neither TorchScript nor a torch\.export program"):
        load_external(str(tmp_path / "net.pt"), TWO)


@pytest.mark.parametrize("part", ["net/constants.pkl", "net/models/model.json"])
def test_damaged_programs(tmp_path: Path, part: str) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(part, b"nothing")
    with pytest.raises(InputError, match=r"cannot be loaded.*Save it again"):
        load_external(str(path), TWO)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="cut short or damaged"):
        load_external(str(path), TWO)


def test_findings_must_be_named_and_the_device_must_exist(here: Path) -> None:
    torch.jit.script(Net()).save("net.ts")
    with pytest.raises(InputError, match="name the findings"):
        load_external("net.ts")
    for device in ("warp", "cuda:99"):
        with pytest.raises(InputError, match="Use cpu") as caught:
            load_external("net.ts", TWO, device=device)
        assert caught.value.field == "device"


# --- trying one before it is used ---


def means(x: Tensor) -> Tensor:
    """Logits that tell images apart."""
    return torch.stack([9 * x.mean((1, 2, 3)), 30 * x[:, 0, :4].mean((1, 2)) - 1], 1)


def test_a_good_classifier_passes_and_is_left_as_it_was(images: Tensor) -> None:
    net = Net().train()
    adapted = AdaptedClassifier(net, TWO)
    net.train()
    with torch.inference_mode():
        check_classifier(adapted, images.clone())
    assert net.training
    check_classifier(adapted, images[:1])
    check_classifier(AdaptedClassifier(means, TWO), images)
    two = AdapterConfig("multiclass")  # the sum of these two margins is 0, and so is its gradient
    check_classifier(AdaptedClassifier(means, TWO, two), images)
    p = AdapterConfig("multiclass", "probabilities")
    check_classifier(AdaptedClassifier(lambda x: means(x).softmax(1), TWO, p), images)


def test_outputs_that_are_no_finding_may_be_anything(images: Tensor) -> None:
    def half(x: Tensor) -> Tensor:
        return torch.cat([means(x)[:, :1], torch.full((len(x), 1), torch.nan)], 1)

    check_classifier(AdaptedClassifier(half, "Edema", AdapterConfig(columns=(0,))), images)


def test_small_logits_are_not_taken_for_probabilities(images: Tensor) -> None:
    check_classifier(AdaptedClassifier(lambda x: 0.5 + means(x) / 100, TWO), images)


def fails(x: Tensor) -> Tensor:
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("classifier", "config", "field", "remedy"),
    [
        (Net(channels=3), {}, "channels", "It runs with channels=3"),
        (Net(), {"channels": 3}, "channels", "It runs with channels=1"),
        (Flat(side=96), {}, "size", "It runs with size=96"),
        (Flat(channels=3, side=32), {}, "channels", "It runs with channels=3 and size=32"),
        (fails, {}, "classifier", "Compare channels, size and batch"),
        (lambda x: means(x)[:, :1], {}, "findings", "one finding per output"),
        (lambda x: means(x)[:, :, None, None].expand(-1, -1, 4, 4), {}, "output", "pool maps"),
        (lambda x: means(x)[:1], {}, "batch", "batch dimension"),
        (lambda x: means(x).mean(0), {}, "batch", "batch dimension"),
        (lambda x: {"logits": means(x)}, {}, "output", "'logits'"),
        (lambda x: means(x).tolist(), {}, "output", "one of 0, 1"),
        (lambda x: means(x).argmax(1), {}, "output", "argmax"),
        (lambda x: means(x).masked_fill(means(x) > 0, torch.nan), {}, "classifier", "pixel_range"),
        (lambda x: means(x).masked_fill(means(x) > 0, torch.inf), {}, "classifier", "pixel_range"),
        (means, {"outputs": "probabilities"}, "outputs", "Set outputs=logits"),
        (lambda x: means(x).sigmoid(), {}, "outputs", "Set outputs=probabilities"),
        (lambda x: means(x).softmax(1), {"task": "multiclass"}, "outputs", "Set outputs=probabilities"),
        (lambda x: means(x).sigmoid(), {"task": "multiclass", "outputs": "probabilities"}, "task", "task=multilabel"),
        (lambda x: means(x).detach(), {}, "classifier", "detach"),
        (torch.no_grad()(means), {}, "classifier", "no_grad"),
        (lambda x: torch.from_numpy(means(x).numpy()), {}, "classifier", "NumPy"),
        (lambda x: nn.functional.one_hot(means(x).argmax(1), 2).float(), {}, "classifier", "argmax"),
        (lambda x: means(x).round(), {}, "classifier", "rounding"),
        (lambda x: means(x) + (x * 0).abs().sqrt().mean((2, 3)), {}, "classifier", "root"),
        (lambda x: means(x) * 0 + 3, {}, "classifier", "pixel_range"),
        (lambda x: (means(x) * 0 - 90).sigmoid(), {"outputs": "probabilities"}, "classifier", "take its logits"),
        (lambda x: nn.functional.dropout(means(x), 0.5), {}, "classifier", "Dropout"),
        (lambda x: means(x) - means(x).mean(0), {}, "classifier", "Batch norm"),
        (lambda x: nn.functional.batch_norm(means(x), None, None, training=True), {}, "classifier", "Batch norm"),
    ],
)
def test_a_bad_classifier_is_refused_with_a_remedy(
    images: Tensor, classifier: Any, config: dict[str, Any], field: str, remedy: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_classifier(AdaptedClassifier(classifier, TWO, AdapterConfig(**config)), images)
    assert caught.value.field == field
    assert remedy in str(caught.value.remedy)


def test_one_finding_that_never_changes_is_warned_of(images: Tensor) -> None:
    with pytest.warns(UserWarning, match="for Lung Lesion"):
        check_classifier(AdaptedClassifier(lambda x: means(x) * torch.tensor([1.0, 0.0]), TWO), images)


def test_images_to_try_must_be_images(images: Tensor) -> None:
    for bad in (images[:0], images[0], images * 300, images.repeat(1, 3, 1, 1), images * torch.nan):
        with pytest.raises(InputError, match=r"\[-1, 1\]"):
            check_classifier(AdaptedClassifier(means, TWO), bad)
    with pytest.raises(InputError, match=r"\.to\(device\)"):
        check_classifier(AdaptedClassifier(means, TWO), images.to("meta"))
