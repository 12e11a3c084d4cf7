from __future__ import annotations

import pytest
import torch

from counterscan.errors import InputError
from counterscan.medxgan import Code
from tests.medxgan.grids import SIZE, images, networks


def test_codes_have_a_block_per_finding_and_decode_to_the_image_size() -> None:
    net, x = networks(findings=2), images()
    code = net.encode(x)
    assert code.z1.shape == (3, 3, SIZE // 2, SIZE // 2)
    assert code.z2.shape == (3, 2, 2, SIZE // 2, SIZE // 2)
    assert net.generate(code).shape == x.shape
    torch.testing.assert_close(net(x), net.generate(code))


def test_scaling_touches_one_finding_only() -> None:
    code = networks(findings=2).encode(images())
    scaled = code.scaled(0.5, 1)
    torch.testing.assert_close(scaled.z2[:, 1], 0.5 * code.z2[:, 1])
    assert torch.equal(scaled.z2[:, 0], code.z2[:, 0])
    assert torch.equal(scaled.z1, code.z1)


def test_strengths_and_findings_may_differ_between_images() -> None:
    code = networks(findings=2).encode(images())
    scaled = code.scaled(torch.tensor([0.0, 0.5, 2.0]), torch.tensor([0, 1, 0]))
    assert torch.equal(scaled.z2[0, 0], torch.zeros_like(scaled.z2[0, 0]))
    assert torch.equal(scaled.z2[0, 1], code.z2[0, 1])
    torch.testing.assert_close(scaled.z2[1, 1], 0.5 * code.z2[1, 1])
    torch.testing.assert_close(scaled.z2[2, 0], 2 * code.z2[2, 0])


def test_a_lent_block_replaces_one_and_leaves_the_code_it_came_from_alone() -> None:
    code = networks(findings=2).encode(images())
    before = code.z2.clone()
    lent = code.with_block(code.z2[[1, 2, 0], 0], 0)
    torch.testing.assert_close(lent.z2[0, 0], code.z2[1, 0])
    assert torch.equal(lent.z2[:, 1], code.z2[:, 1])
    assert torch.equal(code.z2, before)


def test_rows_are_selected_and_history_is_dropped() -> None:
    code = networks().encode(images())
    assert len(code.select(torch.tensor([True, False, True]))) == 2
    assert code.z1.requires_grad
    assert not code.detach().z1.requires_grad
    assert isinstance(code.detach(), Code)


def test_sides_that_do_not_halve_are_refused() -> None:
    with pytest.raises(InputError, match="do not halve 2 times"):
        networks().encode(torch.zeros(1, 1, 18, 16))
