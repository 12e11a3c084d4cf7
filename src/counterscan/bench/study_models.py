"""The models of a study, each fitted on training patients alone: verifiers, generators, text-image models.

A generator or text-image model that was made elsewhere is only taken if it can be shown that no validation or test
patient was among those it learned from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from counterscan.bench.study_config import CONTROLS, StudyConfig, check_store
from counterscan.classify import ClassifyConfig, load_classifier, train_classifier
from counterscan.data.augment import AugmentConfig
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.taggan import TagGAN, TagGANConfig
from counterscan.taggan import fit as fit_taggan
from counterscan.taggan.filling import Filler, FillerConfig, Regions, fit_filler, locate
from counterscan.tbsmgan import GANConfig, StyleGAN
from counterscan.tbsmgan import fit as fit_gan
from counterscan.tbsmgan import preset as gan_preset
from counterscan.tbsmgan.bodies import Inverted, Sampled, Supply
from counterscan.tbsmgan.encoder_training import EncoderConfig, train_encoder
from counterscan.tbsmgan.gate import Gate, GateConfig
from counterscan.tbsmgan.inverter import SETTINGS, Inverter
from counterscan.tbsmgan.steering import Steering
from counterscan.text.clip import TinyTextImage, TrainableClip, load_clip
from counterscan.text.clip_config import ClipConfig
from counterscan.text.clip_training import Pairs, patients_digest
from counterscan.text.clip_training import fit as fit_clip
from counterscan.text.stated import SentenceReader
from counterscan.text.tokenizer import ReportTokenizer
from counterscan.text.views import corpus_view
from counterscan.text.zeroshot import ZeroShot, judge
from counterscan.training import TrainConfig

_ZERO_SHOT, _GENERATOR = "zeroshot.json", "model/stylegan.json"
# Not the arms'.
_VERIFIER_SEED, _CLIP_SEED, _GAN_SEED, _ENCODER_SEED, _TAGGER_SEED, _FILLER_SEED = range(5_000, 11_000, 1_000)
_VERIFIER_WIDTHS = (16, 32, 64, 96)


@dataclass(frozen=True)
class Study:
    """What every part of a study needs; travels to worker processes.

    Attributes:
        store: images with labels, splits and, for text, the column "report".
        config: the protocol.
        out: the study's folder.
        gan: replaces the generators' settings, for networks that no preset has; steps and batch are the protocol's.
        generator, clip: folders of models made elsewhere, for the first generator and the first view.
        given: synthetic images made elsewhere, for the content "given".
    """

    store: PreparedStore
    config: StudyConfig
    out: Path
    gan: GANConfig | None = None
    generator: Path | None = None
    clip: Path | None = None
    clip_settings: Mapping[str, Any] = field(default_factory=dict)
    given: PreparedStore | None = None

    @cached_property
    def findings(self) -> tuple[str, ...]:
        return check_store(self.store, self.config)

    def part(self, split: str) -> PreparedStore:
        """The rows of a split."""
        return self.store.subset(self.store.split == split)

    def targets(self, split: str) -> np.ndarray:
        """(N, C) of 0, 1 and NaN for what is not known."""
        columns = [self.store.findings.index(name) for name in self.findings]
        return np.ascontiguousarray(self.part(split).table.targets("ignore", self.config.blank)[:, columns])

    def held_patients(self) -> list[str]:
        """Of validation and test images."""
        return self.store.patients[self.store.split != "train"].tolist()


def fit_verifier(study: Study, number: int) -> Classifier:
    """One of the classifiers that judge edits. The first also watches the generator's training and gives the encoder's
    features, so its opinion of edits is a friendly one; no arm and no text-image model has seen any."""
    folder = study.out / "verifiers" / str(number)
    config = ClassifyConfig(
        ClassifierConfig(widths=_VERIFIER_WIDTHS),
        AugmentConfig(flip=study.config.flip),
        findings=study.findings,
        policy="ignore",
        blank=study.config.blank,
        steps=study.config.verifier_steps,
        seed=_VERIFIER_SEED + study.config.seed + number,
        tensorboard=False,
    )
    return load_classifier(folder) if _done(folder) else train_classifier(study.store, folder, config)


def _done(folder: Path) -> bool:
    return (folder / "calibration.json").is_file()


def load_gate(study: Study) -> Gate:
    """The acceptance gate; calibrated on training and validation images the first time."""
    verifiers = [load_classifier(study.out / "verifiers" / str(k)) for k in range(study.config.verifiers)]
    folder = study.out / "gate"
    if (folder / "gate.json").is_file():
        return Gate.load(folder, verifiers)
    gate = Gate.calibrate(verifiers, study.store, GateConfig(sure=study.config.sure, off=study.config.off))
    gate.save(folder)
    return gate


def fit_generator(study: Study, number: int) -> StyleGAN:
    """One of the generators, watched by the first verifier."""
    if (number == 0 and study.generator is not None) or (_generator_folder(study, number) / _GENERATOR).is_file():
        return load_generator(study, number)
    config, base = study.config, study.gan or gan_preset(study.config.preset)
    loop = replace(
        _loop(base.training, config.gan_steps or base.training.steps, 6, _GAN_SEED + config.seed + number),
        batch_size=config.gan_batch,
    )
    watching = load_classifier(study.out / "verifiers" / "0")
    settings = replace(base, training=loop, findings=study.findings, blank=config.blank)
    fit_gan(study.store, _generator_folder(study, number), settings, classifier=watching)
    return load_generator(study, number)


def load_generator(study: Study, number: int) -> StyleGAN:
    """A generator that has seen no validation or test patient.

    Raises:
        InputError: it has, or nothing is known of whom it has seen; or it makes images of another size or knows other
            findings.
    """
    given = study.generator if number == 0 else None
    gan = StyleGAN.from_pretrained(given or _generator_folder(study, number))
    gan.refuse_patients(study.held_patients())
    missing = [name for name in study.findings if name not in gan.findings]
    if gan.size != study.store.size or missing:
        problem = f"it does not know {missing[0]!r}" if missing else f"it makes {gan.size} px, not {study.store.size}"
        raise InputError(problem, path=given, field="generator", remedy="Train one on this store: leave it out")
    return gan


def _loop(base: TrainConfig, steps: int, looks: int, seed: int) -> TrainConfig:
    """The loop's settings within a study: one thread, and some looks at validation images."""
    every = max(1, steps // looks)
    return replace(
        base,
        steps=steps,
        validate_every=every,
        checkpoint_every=every,
        sample_every=0,
        seed=seed,
        threads=1,
        tensorboard=False,
    )


def fit_encoder(study: Study, number: int, gan: StyleGAN | None = None) -> Inverter:
    """What finds a generator's latents of real images; trained like the generator on the split train."""
    folder, gan = study.out / "encoders" / str(number), gan or load_generator(study, number)
    watching = load_classifier(study.out / "verifiers" / "0")
    if (folder / "encoder" / SETTINGS).is_file():
        return Inverter.from_pretrained(folder, gan, watching)
    config, base = study.config, EncoderConfig()
    loop = _loop(base.training, config.encoder_steps, 4, _ENCODER_SEED + config.seed + number)
    return train_encoder(gan, study.store, folder, replace(base, training=loop), classifier=watching)


def fit_tagger(study: Study) -> TagGAN:
    """The TagGAN whose lesions are put into other images, with a classifier of its own; it never sees the verifiers."""
    folder, config = study.out / "tagger", TagGANConfig()
    if (folder / "model").is_dir():
        return TagGAN.from_pretrained(folder)
    seed = _TAGGER_SEED + study.config.seed
    loop = replace(config.training, steps=study.config.tagger_steps, seed=seed, threads=1, tensorboard=False)
    classifier = ClassifyConfig(seed=seed, tensorboard=False)
    return fit_taggan(
        study.store.with_findings(study.findings), folder, replace(config, training=loop, classifier=classifier)
    )


def fit_lesions(study: Study) -> tuple[TagGAN, Regions, Filler]:
    """The tagger, where it sees findings in training images, and what says how these places look without them."""
    tagger, train, labels = fit_tagger(study), study.part("train"), study.targets("train")
    regions = locate(tagger, train, labels)
    loop = replace(FillerConfig().training, seed=_FILLER_SEED + study.config.seed, threads=1, tensorboard=False)
    filler = fit_filler(
        train,
        labels,
        study.part("val"),
        study.targets("val"),
        regions,
        study.out / "filler",
        FillerConfig(replace(loop, steps=study.config.filler_steps)),
    )
    return tagger, regions, filler


def load_bodies(study: Study, gan: StyleGAN, number: int, seed: int) -> Supply:
    """What is edited."""
    if study.config.bodies == "new":
        return Sampled(gan, study.config.psi, seed)
    encode = fit_encoder(study, number, gan).encode
    return Inverted.of(gan, encode, study.part("train"), study.targets("train"), study.findings, seed)


def _generator_folder(study: Study, number: int) -> Path:
    return study.out / "generators" / str(number)


def fit_text_model(study: Study, view: str) -> TrainableClip:
    """The text-image model of a view, with its zero-shot figures on validation images beside it."""
    folder = _clip_folder(study, view)
    if (folder / _ZERO_SHOT).is_file():
        return load_text_model(study, view)[0]
    if study.clip is not None and view == study.config.views[0]:
        model = load_clip(study.clip)
        _refuse_leak(study, model, view)
    elif view == "none":
        texts = ReportTokenizer.fit(_pairs(study, "rules-v2").told().texts)
        torch.manual_seed(_CLIP_SEED + study.config.seed)
        model = TinyTextImage(texts, _clip_config(study, "rules-v2").model, "tiny CLIP, not trained")
        model.requires_grad_(False).eval().save(folder / "model")
    else:
        pairs = _pairs(study, view)
        # Labels would mend texts that are wrong on purpose.
        stated = None if view in CONTROLS else SentenceReader(study.findings, by_name=True)
        model = fit_clip(pairs, folder, _clip_config(study, view), label_sentence=stated)
    val = study.part("val")
    judge(model, val, torch.from_numpy(study.targets("val")), study.findings).save(folder / _ZERO_SHOT)
    return model


def load_text_model(study: Study, view: str) -> tuple[TrainableClip, ZeroShot]:
    """A text-image model that has seen no validation or test patient, and what it tells apart.

    Raises:
        InputError: it was trained on other patients than this study's.
    """
    folder = _clip_folder(study, view)
    given = study.clip is not None and view == study.config.views[0]
    model = load_clip(study.clip if study.clip is not None and given else folder)
    if view != "none":
        _refuse_leak(study, model, view)
    return model, ZeroShot.load(folder / _ZERO_SHOT)


def _clip_folder(study: Study, view: str) -> Path:
    return study.out / "clip" / view


def _clip_config(study: Study, view: str) -> ClipConfig:
    config = study.config
    settings: dict[str, Any] = {
        "view": view,
        "loss": "info-nce" if view in CONTROLS else "soft",
        "steps": config.clip_steps,
        "batch_size": config.clip_batch,
        "seed": _CLIP_SEED + config.seed,
        "tensorboard": False,
    }
    return ClipConfig(**{**settings, **study.clip_settings})


def _pairs(study: Study, view: str) -> Pairs:
    """Training images with the view of their reports."""
    train = study.part("train")
    if "report" not in train.table.frame:
        raise InputError(
            "the table has no reports, and text is to steer",
            field="column 'report'",
            remedy="Add the column; or leave out the arms that are made by text",
        )
    reports = train.table.frame["report"].fillna("").astype(str).tolist()
    texts = corpus_view(view, reports, seed=study.config.seed)
    return Pairs(train, texts, torch.from_numpy(study.targets("train")))


def _refuse_leak(study: Study, model: TrainableClip, view: str) -> None:
    """Only digests of training patients are kept with a model, so they must be just those of this study."""
    known = model.trained_on.get("patients_digest")
    views = {view, str(model.trained_on.get("view", view))} - {"report"}
    allowed = {patients_digest(study.part("train").patients.tolist())}
    if known not in allowed and "report" in study.store.table.frame:
        allowed |= {patients_digest(list(_pairs(study, name).told().patients or ())) for name in views}
    if known not in allowed:
        raise InputError(
            "it was trained on other patients than this study's training patients"
            if known
            else "nothing is known of the patients it learned from",
            path=study.clip,
            field="text-image model",
            remedy="It may have seen test patients. Train one on this store's split train: leave it out",
        )


def load_steering(study: Study, view: str, number: int) -> Steering:
    """Generator and text-image model together; style channels are measured once and kept."""
    model, known = load_text_model(study, view)
    steering = Steering(load_generator(study, number), model, zero_shot=known, cache=study.out / "steering")
    if study.config.method != "learned":
        steering.editor("style")
    return steering
