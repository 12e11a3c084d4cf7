from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.training import (
    Context,
    NonFiniteError,
    Task,
    TrainConfig,
    lazy,
    lazy_adam,
    read_metrics,
    seed_everything,
    train,
)
from counterscan.training.checkpoint import Checkpoints, read_checkpoint
from counterscan.training.guards import sole_owner
from counterscan.training.loop import due
from tests.training.toy import Source, ToyGAN, toy_config, toy_run


class Bright:
    """Images whose label is whether they are bright."""

    def __len__(self) -> int:
        return 64

    def batch(self, indices: np.ndarray) -> dict[str, Any]:
        noise = np.stack([np.random.default_rng(i).normal(0, 0.3, (1, 8, 8)) for i in indices])
        label = (indices % 2).astype(np.float32)
        return {"image": (noise + label[:, None, None, None] - 0.5).astype(np.float32), "label": label}


class Classifier(Task):
    """As plain as a task gets."""

    def __init__(self, rate: float = 0.05) -> None:
        seed_everything(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1))
        self.modules = {"net": net}
        self.optimizers = {"net": torch.optim.Adam(net.parameters(), lr=rate)}
        self.rates: list[float] = []

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with ctx.autocast():
            logits = ctx.compile(self.modules["net"])(batch["image"])[:, 0]
        self.rates.append(self.optimizers["net"].param_groups[0]["lr"])
        ctx.update("net", F.binary_cross_entropy_with_logits(logits.float(), batch["label"]))
        return {"accuracy": ((logits > 0) == (batch["label"] > 0)).float().mean()}

    def card(self, result: Any) -> str:
        return f"# A classifier\n\nTrained for {result.step} steps.\n"


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 30, "batch_size": 8, "tensorboard": False, "log_every": 10, **changes})


@pytest.mark.parametrize("how", [{}, {"precision": "bf16", "channels_last": True, "prefetch": False}])
def test_plain_classifier_learns(tmp_path: Path, how: dict[str, Any]) -> None:
    result = train(Classifier(), Bright(), config(**how), tmp_path)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines if "accuracy" in line] == [10, 20, 30]
    assert lines[-1]["accuracy"] > 0.95
    assert lines[-1]["net/loss"] < lines[0]["net/loss"]
    assert (tmp_path / "README.md").read_text() == "# A classifier\n\nTrained for 30 steps.\n"
    assert (result.best_step, result.best_value, result.metrics) == (None, None, {})


def test_schedule_multiplies_every_rate(tmp_path: Path) -> None:
    task = Classifier(rate=0.1)
    train(task, Bright(), config(steps=12, warmup=4, schedule="cosine", final_factor=0.1), tmp_path)
    expected = [0.02, 0.04, 0.06, 0.08] + [0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2) for k in range(8)]
    assert task.rates == pytest.approx(expected)
    linear = TrainConfig(steps=10, schedule="linear")
    assert [linear.rate_factor(step) for step in (0, 5, 9)] == pytest.approx([1, 0.5, 0.1])


def test_line_holds_the_mean_over_its_steps(tmp_path: Path) -> None:
    class Counting(Classifier):
        def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Any]:
            super().step(ctx, batch)
            return {"number": ctx.step, "third": 1.0} if ctx.step % 3 else {"number": ctx.step}

    train(Counting(), Bright(), config(), tmp_path)
    assert [line["number"] for line in read_metrics(tmp_path)] == [4.5, 14.5, 24.5]
    assert [line["third"] for line in read_metrics(tmp_path)] == [1, 1, 1]


def test_update_touches_its_own_network_alone(tmp_path: Path) -> None:
    class Watching(ToyGAN):
        def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Any]:
            frozen = {k: v.clone() for k, v in self.modules["critic"].state_dict().items()}
            for parameter in self.modules["critic"].parameters():
                parameter.grad = None
            fake = self.modules["generator"](batch["image"])
            ctx.update("generator", F.softplus(-self.modules["critic"](fake)).mean())
            assert all(parameter.grad is None for parameter in self.modules["critic"].parameters())
            assert all(torch.equal(frozen[k], v) for k, v in self.modules["critic"].state_dict().items())
            return {}

    train(Watching(), Source(), toy_config(steps=2), tmp_path)


def test_later_passes_of_a_step_see_updated_weights(tmp_path: Path) -> None:
    """Under autocast, which keeps weights that it has converted."""

    class Twice(Classifier):
        def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            net = self.modules["net"]
            with ctx.autocast():
                before = net(batch["image"])
                ctx.update("net", before.float().mean())
                within = net(batch["image"])
            with ctx.autocast():
                assert torch.equal(within, net(batch["image"]))
            assert not torch.equal(within, before)
            return {}

    train(Twice(), Bright(), config(steps=1, precision="bf16"), tmp_path)


def test_parts_of_a_loss_add_up_and_gradients_are_clipped(tmp_path: Path) -> None:
    class Parts(Classifier):
        def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            net = self.modules["net"]
            whole = torch.autograd.grad(net(batch["image"]).mean(), tuple(net.parameters()))
            ctx.update("net", (net(part).mean() / 4 for part in batch["image"].split(2)))
            norm = torch.stack([g.square().sum() for g in whole]).sum().sqrt()
            scale = 0.01 / norm
            for gradient, parameter in zip(whole, net.parameters(), strict=True):
                torch.testing.assert_close(parameter.grad, gradient * scale, atol=1e-6, rtol=1e-4)
            return {"norm": norm}

    train(Parts(), Bright(), config(steps=1, grad_clip=0.01, log_every=1), tmp_path)
    line = read_metrics(tmp_path)[0]
    assert line["net/grad_norm"] == pytest.approx(line["norm"], rel=1e-5)


def test_lazy_regulariser_keeps_its_average() -> None:
    assert [lazy(count, 4) for count in range(9)] == [4, 0, 0, 0, 4, 0, 0, 0, 4]
    assert sum(lazy(count, 16) for count in range(160)) == 160
    corrected = lazy_adam(1e-3, (0.0, 0.99), 16)
    assert corrected["lr"] == pytest.approx(1e-3 * 16 / 17)
    assert corrected["betas"] == (0.0, 0.99 ** (16 / 17))


def test_step_sees_fresh_batches_and_groups(tmp_path: Path) -> None:
    seen: dict[tuple[int, int], list[int]] = {}

    class Looking(ToyGAN):
        def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Any]:
            draws = [batch] + [ctx.next_batch() for _ in range(3 if ctx.step < 3 else 1)]
            for number, draw in enumerate(draws):
                seen[ctx.step, number] = draw["index"].tolist()
                assert torch.equal(draw["image"], torch.from_numpy(Source().images[seen[ctx.step, number]]))
                assert draw["group"].tolist() == [0] * 6
            return {}

    settings = toy_config(steps=6, validate_every=0)
    train(Looking(), Source(), settings, tmp_path / "ahead")
    first = dict(seen)
    assert len({tuple(rows) for rows in first.values()}) == 3 * 4 + 3 * 2
    train(Looking(), Source(), toy_config(steps=6, validate_every=0, prefetch=False), tmp_path / "plain")
    assert seen == first


def test_nonfinite_loss_stops_with_a_diagnosis(tmp_path: Path) -> None:
    class Broken(Bright):
        def batch(self, indices: np.ndarray) -> dict[str, Any]:
            batch = super().batch(indices)
            batch["image"][indices == 5, :, 0, 0] = np.nan
            return batch

    with pytest.raises(NonFiniteError) as caught:
        train(Classifier(), Broken(), config(checkpoint_every=1, keep=1), tmp_path)
    told = str(caught.value)
    steps = Checkpoints(tmp_path / "checkpoints", 1).steps()
    assert f"step {steps[-1] + 1}: loss 'net' is nan" in told
    assert "net.0.weight" in told
    assert "image (8, 1, 8, 8): min -" in told
    assert "1 NaN, 0 infinite" in told
    assert "label (8,): min 0, max 1, 0 NaN" in told
    assert f"step-{steps[-1]:08d}.safetensors" in told
    assert all(
        torch.isfinite(t).all()
        for t in read_checkpoint(tmp_path / f"checkpoints/step-{steps[-1]:08d}.safetensors")[0].values()
    )


def test_nonfinite_weights_are_not_saved(tmp_path: Path) -> None:
    class Exploding(Classifier):
        def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Any]:
            with torch.no_grad():
                self.modules["net"][3].bias.fill_(math.inf)
            return {}

    with pytest.raises(NonFiniteError, match=r"net\.3\.bias is not finite and was not saved"):
        train(Exploding(), Bright(), config(checkpoint_every=1), tmp_path)
    assert Checkpoints(tmp_path / "checkpoints", 1).steps() == [0]


def test_frozen_networks_are_used_but_not_saved(tmp_path: Path) -> None:
    task = Classifier()
    task.frozen = {"judge": nn.Sequential(nn.Dropout(), nn.Linear(2, 2))}
    train(task, Bright(), config(steps=1), tmp_path)
    judge = task.frozen["judge"]
    assert not judge.training
    assert not any(p.requires_grad for p in judge.parameters())
    assert not any("judge" in name for name in read_checkpoint(tmp_path / "checkpoints/step-00000001.safetensors")[0])


def test_best_is_chosen_by_metric_mode_or_criterion(tmp_path: Path) -> None:
    class Curve(Classifier):
        def validate(self, ctx: Context) -> dict[str, float]:
            assert not self.modules["net"].training
            return {"error": abs(ctx.step + 1 - 20) if ctx.step + 1 != 10 else math.nan}

        def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            assert self.modules["net"].training
            return super().step(ctx, batch)

    class Own(Curve):
        def criterion(self, metrics: Any) -> float:
            return metrics["error"]

    result = train(Curve(), Bright(), config(validate_every=5, best_metric="error", best_mode="min"), tmp_path / "a")
    assert (result.best_step, result.best_value, result.metrics) == (20, 0, {"error": 10})
    assert [line["step"] for line in read_metrics(tmp_path / "a") if "validation/error" in line] == [
        5,
        10,
        15,
        20,
        25,
        30,
    ]
    assert train(Own(), Bright(), config(validate_every=5), tmp_path / "b").best_step == 5
    with pytest.raises(InputError, match="best_metric: validation gives error"):
        train(Curve(), Bright(), config(best_metric="auc"), tmp_path / "c")


def test_samples_and_tensorboard(tmp_path: Path) -> None:
    toy_run(str(tmp_path), steps=8, sample_every=4, tensorboard=True)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step-00000004-fakes.png",
        "step-00000008-fakes.png",
    ]
    assert Image.open(tmp_path / "samples/step-00000004-fakes.png").size == (3 * 8 + 2 * 2, 2 * 8 + 2)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_one_process_per_folder(tmp_path: Path) -> None:
    with sole_owner(tmp_path), pytest.raises(InputError, match="another process is training here"):
        train(Classifier(), Bright(), config(), tmp_path)


def test_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        train(Classifier(), Bright(), config(), tmp_path / "file")


def test_unknown_optimizer_is_named(tmp_path: Path) -> None:
    class Wrong(Classifier):
        def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            ctx.update("critic", torch.zeros(()))
            return {}

    with pytest.raises(InputError, match="critic: no such optimizer; there are net"):
        train(Wrong(), Bright(), config(), tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("precision", "fp8"),
        ("final_factor", 2.0),
        ("grad_clip", 0.0),
        ("ema_half_life", 0),
        ("warmup", -1),
        ("device", "tpu"),
    ],
)
def test_bad_settings_are_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field):
        TrainConfig(**{field: value})


def test_due() -> None:
    assert [done for done in range(1, 11) if due(4, done, 10)] == [4, 8, 10]
    assert not any(due(0, done, 10) for done in range(1, 11))
