"""A GAN small enough for tests: two critic updates a step, R1 every second, batch norm, an averaged generator."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.training import Context, Task, TrainConfig, seed_everything, train

SIZE = 8


class Source:
    def __init__(self, rows: int = 37) -> None:
        generator = np.random.default_rng(0)
        self.images = generator.uniform(-1, 1, (rows, 1, SIZE, SIZE)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> dict[str, Any]:
        return {"image": self.images[indices]}


def r1(scores: Tensor, images: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


class ToyGAN(Task):
    def __init__(self, *, noise: bool = True, pause: float = 0.0) -> None:
        generator = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1)
        )
        critic = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 16, 1))
        self.modules = {"generator": generator, "critic": critic}
        self.optimizers = {
            "generator": torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9)),
            "critic": torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.9)),
        }
        self.ema = ("generator",)
        self.noise, self.pause, self.seen = noise, pause, 0

    def critic_loss(self, real: Tensor, fake: Tensor, penalty: float) -> Tensor:
        critic = self.modules["critic"]
        real = real.detach().requires_grad_(penalty > 0)
        on_real = critic(real)
        loss = F.softplus(critic(fake.detach())).mean() + F.softplus(-on_real).mean()
        return loss + penalty * r1(on_real, real) if penalty else loss

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Tensor | float]:
        generator, critic = self.modules["generator"], self.modules["critic"]
        for update in range(2):
            real = batch["image"] if update == 0 else ctx.next_batch()["image"]
            source = real + 0.1 * torch.randn_like(real) if self.noise else real
            penalty = ctx.lazy(2, count=2 * ctx.step + update)
            ctx.update("critic", self.critic_loss(real, generator(source), 0.5 * penalty))
        ctx.update("generator", F.softplus(-critic(generator(batch["image"]))).mean())
        self.seen += len(batch["image"])
        time.sleep(self.pause)
        return {"spread": batch["image"].std()}

    def validate(self, ctx: Context) -> dict[str, float]:
        return {"level": float(ctx.averaged("generator")(torch.ones(2, 1, SIZE, SIZE, device=ctx.device)).mean())}

    def images(self, ctx: Context) -> dict[str, Tensor]:
        return {"fakes": ctx.averaged("generator")(torch.randn(5, 1, SIZE, SIZE, device=ctx.device))}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "mark": torch.tensor([self.seen])}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]
        assert int(state["mark"]) == self.seen


def toy_config(**changes: Any) -> TrainConfig:
    plain = {
        "steps": 40,
        "batch_size": 6,
        "log_every": 4,
        "checkpoint_every": 7,
        "sample_every": 0,
        "validate_every": 10,
    }
    rest = {"schedule": "cosine", "warmup": 3, "ema_half_life": 5, "best_metric": "level", "tensorboard": False}
    return TrainConfig(**{**plain, **rest, **changes})


def toy_run(folder: str, pause: float = 0.0, **changes: Any) -> Any:
    seed_everything(0)
    return train(ToyGAN(pause=pause), Source(), toy_config(**changes), folder, settings={"pause": 0})


if __name__ == "__main__":
    toy_run(sys.argv[1], pause=float(sys.argv[2]))
