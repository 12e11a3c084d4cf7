"""TagGAN's networks (Nawaz et al. 2025, arXiv 2502.17836): fGAN finds what to take away, bGAN puts it back.

    M  = G_f(x, c)          disease map of finding c in image x
    y  = x - M              the same body without the finding
    x^ = y + G_b(y, M~, c)  and with it again; M~ is a blurred copy of M

The paper states the first two lines and that bGAN regenerates the abnormal image; it gives no networks. M is signed
and the sum is not squashed, because findings may be darker than tissue and because tanh(x - M) = x would need M != 0.
bGAN is handed M~ because y alone cannot tell where the lesion was: without it a low cycle loss can only be had by
leaving a residue or hiding a code in y (Xia et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from counterscan.care import smooth
from counterscan.errors import InputError
from counterscan.nets.critic import Critic
from counterscan.nets.unet import UNet


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the networks.

    Attributes:
        base: channels of G_f at full resolution.
        levels: resolutions of G_f; image sides must be multiples of 2^(levels - 1).
        back_base, back_levels: the same of G_b, which has the easier task.
        critic_base, critic_stages, critic_lipschitz: of both critics.
    """

    base: int = 16
    levels: int = 4
    back_base: int = 8
    back_levels: int = 3
    critic_base: int = 16
    critic_stages: int = 4
    critic_lipschitz: float = 1.0


def finding_labels(columns: Tensor, count: int) -> Tensor:
    """(N,) finding columns as (N, count) one-hot labels c."""
    return nn.functional.one_hot(columns, count).float()


class MapGenerator(nn.Module):
    """fGAN's generator: M = G_f(x, c), signed, in units of the image's [-1, 1].

    Args:
        config: sizes.
        findings: how many; one finding needs no label.
    """

    def __init__(self, config: NetworkConfig, findings: int) -> None:
        super().__init__()
        self.config, self.findings = config, findings
        self.multiple = 2 ** (config.levels - 1)
        self.net = UNet(1, config.base, config.levels, labels=findings if findings > 1 else 0)

    def forward(self, x: Tensor, columns: Tensor) -> Tensor:
        """(N, 1, H, W) and finding columns (N,) to M (N, 1, H, W).

        Raises:
            InputError: H or W is no multiple of 2^(levels - 1).
        """
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise InputError(
                f"images of {x.shape[-2]} x {x.shape[-1]} do not halve {self.multiple.bit_length() - 1} times",
                field="size",
                remedy=f"Prepare images whose sides are multiples of {self.multiple}",
            )
        label = finding_labels(columns, self.findings) if self.findings > 1 else None
        return self.net(x, label)


class AbnormalGenerator(nn.Module):
    """bGAN's generator: x^ = y + G_b(y, M~, c).

    Args:
        config: sizes.
        findings: how many.
        blur: sigma of the blur that makes M~, as a share of the width: where the lesion was, not how it looked.
    """

    def __init__(self, config: NetworkConfig, findings: int, blur: float = 0.04) -> None:
        super().__init__()
        self.findings, self.blur = findings, blur
        self.net = UNet(2, config.back_base, config.back_levels, labels=findings if findings > 1 else 0)

    def forward(self, y: Tensor, maps: Tensor, columns: Tensor) -> Tensor:
        """Healed images and their maps (N, 1, H, W) to images (N, 1, H, W) with the finding."""
        label = finding_labels(columns, self.findings) if self.findings > 1 else None
        return y + self.net(torch.cat([y, smooth(maps, self.blur)], dim=1), label)


class ConditionalCritic(nn.Module):
    """D(x | c, other labels): is this a real image without (D_N) or with (D_A) finding c?

    Its other findings are as labelled. Other labels that are uncertain or unmentioned count as half.
    """

    def __init__(self, config: NetworkConfig, findings: int) -> None:
        super().__init__()
        self.findings = findings
        condition = 2 * findings if findings > 1 else 0
        self.net = Critic(config.critic_base, config.critic_stages, condition, config.critic_lipschitz)

    def forward(self, x: Tensor, columns: Tensor, labels: Tensor) -> Tensor:
        """(N, 1, H, W), (N,), (N, C) to (N,)."""
        if self.findings == 1:
            return self.net(x)
        c = finding_labels(columns, self.findings)
        others = torch.where(labels.isfinite() & (labels >= 0), labels, 0.5) * (1 - c)
        return self.net(x, torch.cat([c, others], dim=1))
