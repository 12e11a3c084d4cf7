from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from counterscan.errors import InputError
from counterscan.tbsmgan.edits import Origin, StyleConfig
from counterscan.tbsmgan.steering import METHODS, Steering, SteeringConfig
from tests.tbsmgan.linear import BANK, LinearText, blocks_of, linear_gan, zero_shot

CONFIG = SteeringConfig(style=StyleConfig(images=8, channels=1, usual=4.0))


def steering(**options: object) -> Steering:
    known = {"zero_shot": zero_shot(), "bank": BANK, "config": CONFIG} | options
    return Steering(linear_gan(), LinearText(), **known)  # type: ignore[arg-type]


def w(count: int = 4) -> torch.Tensor:
    return Origin.sample(linear_gan(), torch.zeros(count, 2)).w


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_through_one_interface(method: str) -> None:
    edited = steering().edit(w(), "severe edema", 2.0, method=method)  # type: ignore[arg-type]
    assert edited.after.shape == edited.before.shape == (4, 1, 8, 8)
    assert edited.strength == 2.0
    assert edited.prompt.finding == "Edema"
    assert edited.text_after is not None
    brighter = blocks_of(edited.after - edited.before)[:, 0]
    assert bool((brighter > 0.01).all()) == (method != "random")


def test_a_side_can_be_asked_for() -> None:
    editors, bodies = steering(), w()
    for side, untouched in (("left", slice(None, 3)), ("right", slice(5, None))):
        edited = editors.edit(bodies, f"{side} pleural effusion", method="learned")
        change = (edited.after - edited.before).abs()
        assert (change[..., untouched] == 0).all()
    whole = editors.edit(bodies, "pleural effusion", method="learned")
    assert bool((blocks_of(whole.after - whole.before)[:, 1] > 0.1).all())


def test_what_the_generator_has_not_learnt_is_refused_unless_forced() -> None:
    editors = steering(learned={"Edema": False})
    with pytest.raises(InputError, match="has not learnt it"):
        editors.prompt("edema")
    with pytest.raises(InputError, match="nobody measured whether the generator"):
        editors.prompt("left pleural effusion")
    assert editors.prompt("edema", force=True).finding == "Edema"
    assert len(editors.edit(w(), "edema", 1.0, force=True)) == 4


def test_what_the_text_image_model_does_not_know_is_refused_but_for_label_swap() -> None:
    editors = steering(zero_shot=zero_shot(edema=0.6))
    with pytest.raises(InputError, match=r"AUC is 0.60.*below 0.75"):
        editors.prompt("edema")
    assert editors.prompt("edema", method="label-swap").finding == "Edema"
    assert editors.prompt("edema", force=True).finding == "Edema"
    assert editors.prompt("effusion").finding == "Pleural Effusion"
    with pytest.raises(InputError, match=r"AUC is 0\.60"):
        editors.prompt("effusion and edema")
    with pytest.raises(InputError, match="nobody measured what the text-image model knows"):
        steering(zero_shot=None).prompt("edema")
    relaxed = SteeringConfig(style=CONFIG.style, least_auc=0.5)
    assert steering(zero_shot=zero_shot(edema=0.6), config=relaxed).prompt("edema").finding == "Edema"


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(InputError, match="must be one of style"):
        steering().editor("wish")  # type: ignore[arg-type]


def test_a_second_process_finds_the_channels_on_disk(tmp_path: Path) -> None:
    steering(cache=tmp_path).edit(w(), "edema", 1.0)
    fresh = steering(cache=tmp_path)
    start = time.perf_counter()
    edited = fresh.edit(w(), "right pleural effusion", 1.0)
    assert time.perf_counter() - start < 1.0
    assert fresh.model.images == 2 * len(edited)  # type: ignore[attr-defined]
