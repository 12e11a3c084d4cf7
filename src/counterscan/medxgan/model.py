"""medXGAN's networks (Dravid et al., CVPRW 2022, arXiv 2204.05376), laid out so that a code keeps its place.

    (z1, z2) = E(x)       anatomy and pathology, as the explained classifier sees it
    G(z1, z2) ~ x         the image again
    G(z1, 0)              the same body, and nothing that the classifier calls the finding
    G(z1, a z2)           the way between, 0 <= a <= 1

The paper's z1 and z2 are vectors of 1,000 and 100 numbers that one linear layer mixes. Here they are grids: at 64 px z1
holds 16 x 16 places of 8 numbers and z2, for each finding, 16 x 16 places of 2, so that a lesion's code lies where the
lesion lies and one pass of E inverts an image. There is one block of z2 per finding; setting a block to zero takes that
finding away and leaves the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from counterscan.errors import InputError
from counterscan.nets.latent import GridEncoder, GridGenerator


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the networks.

    Attributes:
        base: channels of E and G at full resolution.
        halvings: how often the sides are halved from image to code grid.
        anatomy: numbers of z1 at each place.
        pathology: numbers of z2 at each place, for each finding.
        critic_base, critic_stages: of the critic.
    """

    base: int = 16
    halvings: int = 2
    anatomy: int = 8
    pathology: int = 2
    critic_base: int = 16
    critic_stages: int = 4


@dataclass(frozen=True)
class Code:
    """An image's code.

    Attributes:
        z1: (N, anatomy, h, w).
        z2: (N, C, pathology, h, w), one block per finding.
    """

    z1: Tensor
    z2: Tensor

    def __len__(self) -> int:
        return len(self.z1)

    def scaled(self, strength: Tensor | float, column: int | Tensor) -> Code:
        """The code with the block of one finding multiplied by ``strength``: 0 takes the finding away.

        Args:
            strength: a number, or (N,).
            column: the finding's, or (N,) one per image.
        """
        count = self.z2.shape[1]
        columns = torch.as_tensor(column, device=self.z2.device).expand(len(self))
        chosen = nn.functional.one_hot(columns, count).to(self.z2.dtype)  # (N, C)
        strengths = torch.as_tensor(strength, device=self.z2.device, dtype=self.z2.dtype).expand(len(self))
        factor = 1 - chosen + chosen * strengths[:, None]
        return Code(self.z1, self.z2 * factor[:, :, None, None, None])

    def with_block(self, block: Tensor, column: int | Tensor) -> Code:
        """The code with the block (N, pathology, h, w) of another image in place of its own."""
        columns = torch.as_tensor(column, device=self.z2.device).expand(len(self))
        z2 = self.z2.clone()
        z2[torch.arange(len(self), device=z2.device), columns] = block.to(z2.dtype)
        return Code(self.z1, z2)

    def select(self, rows: Tensor) -> Code:
        """Codes of some rows: indices or (N,) bool."""
        return Code(self.z1[rows], self.z2[rows])

    def detach(self) -> Code:
        """Without gradient history."""
        return Code(self.z1.detach(), self.z2.detach())


class MedXGANNetworks(nn.Module):
    """E and G.

    Args:
        config: sizes.
        findings: how many blocks z2 has.
    """

    def __init__(self, config: NetworkConfig, findings: int) -> None:
        super().__init__()
        self.config, self.findings = config, findings
        self.multiple = 2 ** (config.halvings + 1)
        codes = config.anatomy + findings * config.pathology
        self.encoder = GridEncoder(codes, config.base, config.halvings)
        self.generator = GridGenerator(codes, config.base, config.halvings)

    def encode(self, x: Tensor) -> Code:
        """(N, 1, H, W) in [-1, 1] to its code.

        Raises:
            InputError: H or W is no multiple of 2^(halvings + 1).
        """
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise InputError(
                f"images of {x.shape[-2]} x {x.shape[-1]} do not halve {self.multiple.bit_length() - 1} times",
                field="size",
                remedy=f"Prepare images whose sides are multiples of {self.multiple}",
            )
        codes = self.encoder(x)
        z1, z2 = codes.split([self.config.anatomy, codes.shape[1] - self.config.anatomy], dim=1)
        return Code(z1, z2.reshape(len(x), self.findings, self.config.pathology, *z2.shape[-2:]))

    def generate(self, code: Code) -> Tensor:
        """A code to its image (N, 1, H, W), about in [-1, 1]."""
        return self.generator(torch.cat([code.z1, code.z2.flatten(1, 2)], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """G(E(x))."""
        return self.generate(self.encode(x))
