from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from counterscan.errors import InputError
from counterscan.metrics.classification import roc_auc
from counterscan.nets.text_image import TinyClipConfig
from counterscan.text.clip import TrainableClip, load_clip
from counterscan.text.clip_config import ClipConfig
from counterscan.text.clip_training import ContrastiveTask, Pairs, embed_all, fit, patients_digest
from counterscan.text.statements import Statements
from counterscan.text.zeroshot import judge
from counterscan.training import Interrupted, Task
from tests.text.clip_toys import FINDINGS, QUICK, SHORT, films, labels_of, said


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainableClip]:
    folder = tmp_path_factory.mktemp("run")
    store, texts = films()
    held, held_texts = films(64, seed=1)
    pairs = Pairs.from_store(store, texts)
    return folder, fit(pairs, folder, QUICK, label_sentence=said, validation=Pairs.from_store(held, held_texts))


def test_learns_findings_and_sides_it_was_never_given_as_labels(trained: tuple[Path, TrainableClip]) -> None:
    store, texts = films(200, seed=5)
    model = trained[1]
    found = judge(model, store, labels_of(store), FINDINGS)
    assert min(found.auc.values()) > 0.9
    found.require_known("Edema")
    left, right = model.embed_texts(["mild left edema", "mild right edema"])
    rows = [k for k, text in enumerate(texts) if "left edema" in text or "right edema" in text]
    truth = torch.tensor([float("left edema" in texts[k]) for k in rows])
    assert float(roc_auc(embed_all(model, store)[rows] @ (left - right), truth)) > 0.8


def test_run_folder_holds_settings_model_and_who_it_was_trained_on(trained: tuple[Path, TrainableClip]) -> None:
    folder, model = trained
    system = yaml.safe_load((folder / "config.yaml").read_text())["system"]
    assert system["loss"] == "soft"
    assert system["view"] == "report"
    assert "validation/loss" in (folder / "metrics.jsonl").read_text()
    store, _ = films()
    assert model.trained_on["patients_digest"] == patients_digest(store.patients.tolist())
    assert model.trained_on["patients"] == 256
    assert "p0-0001" not in (folder / "model" / "clip.json").read_text()
    again = load_clip(folder)
    assert torch.equal(again.embed_texts(["no edema"]), model.embed_texts(["no edema"]))


def test_resumed_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, texts = films(64)
    config = replace(SHORT, steps=6)
    whole = fit(Pairs.from_store(store, texts), tmp_path / "a", config, label_sentence=said)
    step = ContrastiveTask.step

    def stops(self: ContrastiveTask, ctx, batch):  # type: ignore[no-untyped-def]
        if ctx.step == 3:
            raise Interrupted(15, ctx.step, tmp_path)
        return step(self, ctx, batch)

    monkeypatch.setattr(ContrastiveTask, "step", stops)
    with pytest.raises(Interrupted):
        fit(Pairs.from_store(store, texts), tmp_path / "b", config, label_sentence=said)
    monkeypatch.undo()
    resumed = fit(Pairs.from_store(store, texts), tmp_path / "b", config, label_sentence=said)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loss", ["info-nce", "soft", "sigmoid", "sigmoid-soft"])
def test_every_loss_runs_on_tensors_and_moves_both_towers(loss: str, tmp_path: Path) -> None:
    store, texts = films(32)
    labels = None if loss in ("info-nce", "sigmoid") else labels_of(store)
    config = replace(SHORT, loss=loss, whole=0.5)
    model = fit(Pairs(store.images(), texts, labels), tmp_path, config)
    untrained = fit(Pairs(store.images(), texts, labels), tmp_path / "b", replace(config, steps=1, rate_image=1e-12))
    assert not torch.allclose(model.embed_texts(["no edema"]), untrained.embed_texts(["no edema"]))
    assert "patients" not in model.trained_on


def started(config: ClipConfig) -> tuple[ContrastiveTask, TrainableClip]:
    from counterscan.text.clip import TinyTextImage
    from counterscan.text.tokenizer import ReportTokenizer

    store, texts = films(32)
    model = TinyTextImage(ReportTokenizer.fit(texts), config.model)
    return ContrastiveTask(model, Pairs.from_store(store, texts), Statements.of(texts, said), config), model


def test_freezing_keeps_the_first_parts_of_both_towers() -> None:
    task, model = started(replace(SHORT, freeze=0.5))
    image, text = model.blocks()["image"], model.blocks()["text"]
    assert not any(p.requires_grad for block in image[:2] for p in block.parameters())
    assert all(p.requires_grad for block in image[2:] for p in block.parameters())
    assert not next(text[0].parameters()).requires_grad
    assert next(text[-1].parameters()).requires_grad
    trained = {id(p) for group in task.optimizers["clip"].param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


def test_projections_go_first_and_groups_have_their_rates() -> None:
    config = replace(SHORT, steps=10, projection_first=0.2, rate_image=1.0, rate_text=2.0, rate_projection=3.0)
    task, _ = started(config)
    groups = task.optimizers["clip"].param_groups
    assert {g["part"]: g["lr"] for g in groups} == {"image": 1.0, "text": 2.0, "projection": 3.0, "scale": 3.0}
    assert all(g["weight_decay"] == 0 for g in groups if all(p.ndim <= 1 for p in g["params"]))
    task._lead(1)
    assert {g["part"]: g["lr"] for g in groups} == {"image": 0.0, "text": 0.0, "projection": 3.0, "scale": 3.0}
    for group in groups:
        group["lr"] = 1.0
    task._lead(2)
    assert all(g["lr"] == 1.0 for g in groups)


def test_targets_are_what_each_sentence_is_true_of() -> None:
    task, _ = started(SHORT)
    rows = torch.arange(32)
    place = task.statements.sentences.index("No edema.")
    drawn = torch.full((32,), place)
    targets = task._targets(task.labels, task.statements, rows, drawn)
    assert targets is not None
    assert task.labels is not None
    expected = (task.labels[:, :1] == 0).float().expand(32, 32).clone().fill_diagonal_(1.0)
    torch.testing.assert_close(targets, expected)
    plain, _ = started(replace(SHORT, loss="info-nce"))
    assert plain._targets(plain.labels, plain.statements, rows, drawn) is None


def test_recipes_for_pretrained_models() -> None:
    config = ClipConfig.fine_tuning(1000, epochs=4, batch_size=64)
    assert (config.steps, config.freeze, config.rate_image, config.rate_text) == (64, 0.5, 1e-5, 2e-5)
    assert config.projection_first == pytest.approx(0.2)
    old = ClipConfig.chexzero(1600)
    assert (old.optimizer, old.batch_size, old.steps, old.whole, old.loss) == ("sgd", 16, 400, 1.0, "info-nce")
    assert isinstance(started(replace(old, batch_size=8, model=SHORT.model))[0], Task)


def test_empty_texts_are_left_out(tmp_path: Path) -> None:
    store, texts = films(32)
    model = fit(Pairs(store, ["", *texts[1:]], labels_of(store)), tmp_path, SHORT)
    assert model.trained_on["images"] == 31
    with pytest.raises(InputError, match="every text is empty"):
        fit(Pairs(store, [" "] * 32, labels_of(store)), tmp_path / "b", SHORT)


def test_bad_input(tmp_path: Path) -> None:
    store, texts = films(32)
    with pytest.raises(InputError, match="texts: 31 for 32"):
        Pairs(store, texts[1:])
    with pytest.raises(InputError, match="no reports"):
        Pairs.from_store(store)
    with pytest.raises(InputError, match="needs labels"):
        fit(Pairs(store, texts), tmp_path, SHORT)
    with pytest.raises(InputError, match="fewer than a batch"):
        fit(Pairs.from_store(store, texts), tmp_path, replace(SHORT, batch_size=64))
    with pytest.raises(InputError, match="32 patients are among"):
        fit(Pairs.from_store(store, texts), tmp_path, SHORT, validation=Pairs.from_store(store, texts))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss", "triplet"),
        ("own", 1.5),
        ("freeze", 1.0),
        ("rate_image", 0.0),
        ("rarity", -1.0),
        ("view", "Rules V2"),
        ("optimizer", "lion"),
        ("batch_size", 1),
    ],
)
def test_bad_settings_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        ClipConfig(model=TinyClipConfig(), **{field: value})  # type: ignore[arg-type]
