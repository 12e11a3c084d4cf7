from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from counterscan.errors import InputError
from counterscan.medxgan import Code, PersuadeConfig, RefineConfig, latent_optimisation, persuade, refine
from counterscan.metrics.validity import psnr
from tests.medxgan.grids import images, networks
from tests.medxgan.ladders import Mean


def classifier(x: Tensor) -> Tensor:
    return Mean()(x)[:, :1]


def test_refinement_brings_the_image_nearer() -> None:
    net, x = networks(), images()
    start = net.encode(x)
    refined = refine(x, start, net.generate, classifier, RefineConfig(steps=60, rate=0.05, prior=0.0))
    with torch.no_grad():
        before, after = psnr(x, net.generate(start)), psnr(x, net.generate(refined))
    assert (after > before + 1).all()
    assert not refined.z1.requires_grad


def test_no_steps_keep_the_code() -> None:
    net, x = networks(), images()
    code = net.encode(x)
    kept = refine(x, code, net.generate, classifier, RefineConfig(steps=0))
    assert torch.equal(kept.z1, code.z1)
    assert torch.equal(kept.z2, code.z2)


def test_images_are_refined_each_by_itself() -> None:
    net, x = networks(), images()
    config = RefineConfig(steps=5)
    together = refine(x, net.encode(x), net.generate, classifier, config)
    alone = refine(x[1:2], net.encode(x[1:2]), net.generate, classifier, config)
    torch.testing.assert_close(together.z1[1:2], alone.z1, atol=1e-4, rtol=1e-3)


def test_matching_the_classifier_closes_the_gap() -> None:
    net, x = networks(), images()
    gaps = []
    for match, every in ((0.0, 1), (5.0, 1), (5.0, 3)):
        config = RefineConfig(steps=60, rate=0.03, match=match, match_every=every)
        code = refine(x, net.encode(x), net.generate, classifier, config)
        gaps.append((classifier(net.generate(code)) - classifier(x)).abs().mean().item())
    assert gaps[1] < 0.5 * gaps[0]
    assert gaps[2] < 0.8 * gaps[0]


def test_the_classifier_is_asked_in_every_few_steps_only() -> None:
    net, x, asked = networks(), images(), []

    def counted(images: Tensor) -> Tensor:
        asked.append(len(images))
        return classifier(images)

    refine(x, net.encode(x), net.generate, counted, RefineConfig(steps=7, match_every=3))
    assert asked == [len(x)] * 3  # for the images themselves, then in steps 3 and 6
    with pytest.raises(InputError, match="match_every"):
        RefineConfig(match_every=0)


def test_latent_optimisation_finds_a_code_without_an_encoder() -> None:
    basis = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) / 8

    def generate(codes: list[Tensor]) -> Tensor:
        return (codes[0] @ basis).view(-1, 1, 8, 8)

    truth = torch.tensor([[1.0, -0.5, 0.3, 0.0]])
    x = generate([truth])
    (found,) = latent_optimisation(x, lambda: [torch.zeros(1, 4)], generate, classifier, column=0, steps=800)
    torch.testing.assert_close(found, truth, atol=0.05, rtol=0)


def test_psnr_by_hand() -> None:
    x = torch.zeros(2, 1, 4, 4)
    again = x.clone()
    again[1] += 0.2  # squared error .04 of a range of 2: 10 log10(4 / .04) = 20 dB
    assert psnr(x, again)[1].item() == pytest.approx(20.0)
    assert psnr(x, again)[0] > 100


def persuaded(x: Tensor, wanted: float = -100.0, **changes: float) -> tuple[Code, Code]:
    """Ends of images before and after; the margin is the mean of the image, by default never small enough."""
    net = networks()
    end = net.encode(x).scaled(0.0, 0).detach()
    config = PersuadeConfig(**{"rate": 0.03, "stay": 0.0, **changes})  # type: ignore[arg-type]
    return end, persuade(
        end, net.generate, lambda image, _: image, [lambda image: classifier(image)[:, 0]], config, wanted
    )


def test_persuasion_lowers_the_margin_by_the_anatomy_alone() -> None:
    x, net = images(), networks()
    end, moved = persuaded(x)
    with torch.no_grad():
        before, after = (classifier(net.generate(code))[:, 0] for code in (end, moved))
    assert (after < before - 0.1).all()
    assert torch.equal(moved.z2, end.z2)
    assert not moved.z1.requires_grad


def test_persuasion_stays_near_when_asked_to() -> None:
    x, net = images(), networks()
    end, free = persuaded(x)
    _, held = persuaded(x, stay=100.0)
    with torch.no_grad():
        start = net.generate(end)
        far, near = ((net.generate(code) - start).abs().mean() for code in (free, held))
    assert near < 0.5 * far


def test_persuasion_is_repeatable_and_each_image_is_moved_by_itself() -> None:
    x = images()
    _, together = persuaded(x)
    _, again = persuaded(x)
    _, alone = persuaded(x[1:2])
    assert torch.equal(together.z1, again.z1)
    torch.testing.assert_close(together.z1[1:2], alone.z1, atol=1e-4, rtol=1e-3)


def test_persuasion_ends_where_enough_is_reached_and_the_others_go_on_as_alone() -> None:
    x, net = images(), networks()
    end, far = persuaded(x)
    with torch.no_grad():
        first, last = (classifier(net.generate(code))[:, 0] for code in (end, far))
    wanted = float((first + last).mean() / 2)  # half way
    _, early = persuaded(x, wanted, noise=0.0, move=0.0)
    _, alone = persuaded(x[1:2], wanted, noise=0.0, move=0.0)
    with torch.no_grad():
        reached = classifier(net.generate(early))[:, 0]
        change = (net.generate(early) - net.generate(end)).abs().mean()
        whole = (net.generate(far) - net.generate(end)).abs().mean()
    assert (reached <= wanted).all()
    assert change < 0.9 * whole
    torch.testing.assert_close(early.z1[1:2], alone.z1, atol=1e-4, rtol=1e-3)


def test_no_steps_of_persuasion_keep_the_code() -> None:
    end, kept = persuaded(images(), steps=0)
    assert torch.equal(kept.z1, end.z1)


def test_persuasion_goes_by_the_judge_who_objects_most_to_each_image() -> None:
    x, net, asked = images(), networks(), [0, 0, 0]

    def judge(k: int, offset: Tensor) -> Callable[[Tensor], Tensor]:
        def margin(shown: Tensor) -> Tensor:
            asked[k] += len(shown) if torch.is_grad_enabled() else 0
            return classifier(shown)[:, 0] * (1 if k else -1) + offset

        return margin

    end = net.encode(x).scaled(0.0, 0).detach()
    judges = [judge(0, torch.tensor(-50.0)), judge(1, torch.tensor(50.0)), judge(2, torch.tensor(0.0))]
    config = PersuadeConfig(steps=7, rate=0.03, stay=0.0, ask_all_every=3)
    moved = persuade(end, net.generate, lambda image, _: image, judges, config, -100.0)
    alone = persuade(end, net.generate, lambda image, _: image, judges[1:2], config, -100.0)
    assert asked == [0, 2 * 7 * len(x), 0]  # of the others no gradient is asked
    torch.testing.assert_close(moved.z1, alone.z1)


def test_persuasion_ends_only_when_every_judge_is_convinced() -> None:
    x, net = images(), networks()
    end = net.encode(x).scaled(0.0, 0).detach()
    with torch.no_grad():
        level = classifier(net.generate(end))[:, 0].max() + 10

    def pleased(shown: Tensor) -> Tensor:
        return classifier(shown)[:, 0] - level

    def never(shown: Tensor) -> Tensor:
        return classifier(shown)[:, 0] + level

    config = PersuadeConfig(steps=4, rate=0.03, stay=0.0, ask_all_every=2)
    early, late = (
        persuade(end, net.generate, lambda image, _: image, judges, config, 0.0)
        for judges in ([pleased, pleased], [pleased, never])
    )
    assert (early.z1 - end.z1).abs().max() < 1.5 * config.rate  # one step
    assert (late.z1 - end.z1).abs().max() > 1.5 * config.rate


@pytest.mark.parametrize("patience", [2, 4])
def test_persuasion_gives_up_where_nothing_moves_the_judge(patience: int) -> None:
    net, asked = networks(), list[int]()
    end = net.encode(images()).scaled(0.0, 0).detach()

    def moved(shown: Tensor) -> Tensor:
        """The first image's judge is moved, the others' stays."""
        asked.append(len(shown))
        can = torch.zeros(len(shown))
        can[0] = 100.0
        return can * shown.mean(dim=(1, 2, 3)) + 1

    config = PersuadeConfig(steps=12, rate=0.05, stay=0.0, noise=0.0, move=0.0, patience=patience)
    persuade(end, net.generate, lambda image, _: image, [moved], config, -100.0)
    # The first step has nothing to be compared with.
    assert asked == [3] * (patience + 1) + [1] * (12 - patience - 1)


@pytest.mark.parametrize("field", ["ask_all_every", "patience"])
def test_counts_of_persuasion_are_at_least_one(field: str) -> None:
    with pytest.raises(InputError, match=field):
        PersuadeConfig(**{field: 0})
