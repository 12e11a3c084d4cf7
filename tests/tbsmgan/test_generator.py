from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from counterscan.errors import InputError
from counterscan.nets.stylegan2 import Generator
from counterscan.tbsmgan import LabelMix, StyleGAN, TrainingPatients
from tests.tbsmgan.small import NETWORK

FINDINGS = ("Edema", "Cardiomegaly")


def gan() -> StyleGAN:
    torch.manual_seed(0)
    mix = LabelMix.of(torch.tensor([[0.0, 0], [0, 0], [1, 0], [1, 1]]))
    return StyleGAN(Generator(replace(NETWORK, labels=2)), FINDINGS, mix)


def test_the_mix_has_the_shares_of_the_images() -> None:
    mix = gan().mix
    assert mix is not None
    assert mix.labels.tolist() == [[0, 0], [1, 0], [1, 1]]
    assert mix.shares.tolist() == [0.5, 0.25, 0.25]
    drawn = gan().draw_labels(4000, seed=1)
    assert float(drawn[:, 0].mean()) == pytest.approx(0.5, abs=0.04)
    assert float(drawn[:, 1].mean()) == pytest.approx(0.25, abs=0.04)


def test_samples_depend_on_seed_labels_and_psi_alone() -> None:
    model = gan()
    first = model.sample(70, seed=4)  # more than one batch
    torch.randn(3)
    assert torch.equal(first, model.sample(70, seed=4))
    assert torch.equal(first, model.sample(labels=model.draw_labels(70, 4), seed=4))
    assert not torch.equal(first, model.sample(70, seed=5))
    assert float(first.abs().max()) <= 1
    middle = model.sample(labels=torch.zeros(3, 2), psi=0.0)
    assert torch.allclose(middle[0], middle[1], atol=1e-5)
    shown = torch.tensor([[0.0, 0], [1, 0]])
    changed = model.sample(labels=shown[[1, 0]])
    assert not torch.equal(model.sample(labels=shown)[0], changed[0])


def test_latents_lead_to_the_same_image_by_every_way() -> None:
    model, z, c = gan(), torch.randn(2, 8), torch.tensor([[1.0, 0], [0, 1]])
    ws = model.map(z, c, psi=0.5)
    image = model.synthesize(ws)
    assert torch.equal(model.synthesize(styles=model.styles(ws)), image)
    assert torch.equal(image, model.generator(z, c, psi=0.5))


def test_findings_are_named_by_any_name() -> None:
    assert gan().labels_for("oedema").tolist() == [1, 0]
    assert gan().labels_for().tolist() == [0, 0]
    with pytest.raises(InputError, match=r"not trained on 'Pneumothorax'.*Edema, Cardiomegaly"):
        gan().labels_for("Pneumothorax")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "n: give either"),
        ({"n": 2, "labels": torch.zeros(2, 2)}, "n: give either"),
        ({"n": 0}, "n: 0 must"),
        ({"labels": torch.zeros(2, 3)}, "labels: expected"),
        ({"labels": torch.full((2, 2), 1.5)}, "labels: must lie"),
        ({"labels": torch.full((2, 2), torch.nan)}, "labels: must lie"),
    ],
)
def test_bad_requests_are_named(arguments: dict, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        gan().sample(**arguments)


def test_patients_are_compared_by_hash() -> None:
    seen = TrainingPatients.of(["b", "a", "a"], "salt")
    assert len(seen.hashes) == 2
    assert seen.among(["c", "b", "b"]) == ["b"]
    assert TrainingPatients.of(["a"], "other").hashes != TrainingPatients.of(["a"], "salt").hashes


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no stylegan\.json"):
        StyleGAN.from_pretrained(tmp_path)
    gan().save_pretrained(tmp_path)
    assert StyleGAN.from_pretrained(tmp_path).mix is not None
    (tmp_path / "generator.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        StyleGAN.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="findings: 1 names for 2"):
        StyleGAN(Generator(replace(NETWORK, labels=2)), ("Edema",))
