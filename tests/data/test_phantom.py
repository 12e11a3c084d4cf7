"""The phantom: reproducible, consistent across sizes, with masks, twins and labels that belong together."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest

from counterscan.data.phantom import FINDINGS, PhantomConfig, phantom_study_set, render, render_batch, write_phantom
from counterscan.data.table import StudyTable
from counterscan.errors import InputError

MIXED = PhantomConfig(size=64, prevalence=0.3)


def digest(study) -> str:
    parts = [study.image, study.twin, *(study.masks[name] for name in sorted(study.masks))]
    text = study.report + repr(study.labels) + repr(study.cases)
    return hashlib.sha256(b"".join(p.tobytes() for p in parts) + text.encode()).hexdigest()


def only(finding: str, size: int = 96, **changes) -> PhantomConfig:
    return PhantomConfig(size=size, findings=(finding,), prevalence=1.0, **changes)


def test_an_index_does_not_depend_on_its_batch():
    alone = [digest(render(MIXED, 5, i)) for i in range(6)]
    assert [digest(s) for s in render_batch(MIXED, 5, [4, 2, 0])] == [alone[4], alone[2], alone[0]]
    assert len(set(alone)) == 6
    assert digest(render(MIXED, 6, 0)) != alone[0]


def test_image_is_8_bit_float_in_range():
    image = render(MIXED, 0, 0).image
    assert image.dtype == np.float32
    assert image.shape == (64, 64)
    assert image.min() >= -1
    assert image.max() <= 1
    np.testing.assert_allclose((image + 1) * 127.5, np.rint((image + 1) * 127.5), atol=1e-3)


@pytest.mark.parametrize("index", range(4))
def test_the_anatomy_is_the_same_at_every_size(index):
    large, small = (render(PhantomConfig(size=size, prevalence=0.3), 2, index) for size in (256, 64))
    assert [c.finding for c in large.cases] == [c.finding for c in small.cases]
    shrunk = large.image.reshape(64, 4, 64, 4).mean((1, 3))
    assert np.corrcoef(shrunk.ravel(), small.image.ravel())[0, 1] > 0.99
    assert np.abs(shrunk - small.image).mean() < 0.04
    for name, mask in small.masks.items():
        overlap = large.masks[name].reshape(64, 4, 64, 4).mean((1, 3)) > 0.5
        assert (overlap & mask).sum() / max((overlap | mask).sum(), 1) > 0.5


def test_healthy_image_is_its_own_twin():
    study = render(PhantomConfig(size=64, prevalence=0.0), 1, 0)
    np.testing.assert_array_equal(study.image, study.twin)
    assert not study.masks
    assert not study.mask.any()
    assert set(study.labels.values()) == {0}


@pytest.mark.parametrize("finding", FINDINGS)
def test_each_finding_changes_the_film_inside_its_mask(finding):
    for index in range(3):
        study = render(only(finding), 7, index)
        mask, change = study.masks[finding], np.abs(study.image - study.twin)
        assert study.labels == {finding: 1}
        assert 0 < mask.mean() < 0.4
        assert change[mask].mean() > 8 * change[~mask].mean()
        assert np.median(change[~mask]) <= 2 / 255 + 1e-6  # scatter alone reaches further


def test_findings_lie_on_the_side_they_are_said_to():
    for finding in ("Consolidation", "Lung Lesion", "Pneumothorax", "Pleural Effusion"):
        for index in range(6):
            study = render(only(finding), 3, index)
            case = study.cases[0]
            right = study.masks[finding][:, :48].sum()  # the patient's right is at the viewer's left
            share = right / study.masks[finding].sum()
            if case.side == "bilateral":
                assert 0.1 < share < 0.9
            else:
                assert (share > 0.8) == (case.side == "right")
                assert (share < 0.2) == (case.side == "left")


def test_zones_are_ordered():
    rows = {"upper": [], "mid": [], "lower": []}
    for index in range(30):
        study = render(only("Lung Lesion"), 8, index)
        rows[study.cases[0].zone].append(np.nonzero(study.mask)[0].mean())
    means = [np.mean(rows[zone]) for zone in ("upper", "mid", "lower")]
    assert means[0] < means[1] - 8 < means[2] - 16


def test_direction_of_the_change():
    for finding, sign in (("Consolidation", 1), ("Pleural Effusion", 1), ("Cardiomegaly", 1), ("Pneumothorax", -1)):
        study = render(only(finding), 4, 1)
        assert np.sign((study.image - study.twin)[study.mask].mean()) == sign


def test_cardiothoracic_ratio():
    for index in range(8):
        measures = render(only("Cardiomegaly"), 2, index).cases[0].measures
        assert 0.34 < measures["ctr_healthy"] < 0.53
        assert measures["ctr"] > max(0.52, measures["ctr_healthy"] + 0.03)


def test_severity_grows_the_lesion():
    for finding in ("Pleural Effusion", "Lung Lesion", "Pneumothorax", "Cardiomegaly"):
        area = [
            np.mean([render(only(finding, 64, severity=(s, s)), 1, i).mask.mean() for i in range(4)])
            for s in (0.15, 0.9)
        ]
        assert area[1] > 1.25 * area[0]


def test_leaving_one_finding_out():
    index = next(i for i in range(200) if len(render(MIXED, 0, i).cases) >= 2)
    study = render(MIXED, 0, index)
    first, names = study.cases[0].finding, {c.finding for c in study.cases}
    partial = render(MIXED, 0, index, without=[first])
    assert {c.finding for c in partial.cases} == names - {first}
    np.testing.assert_array_equal(partial.twin, study.twin)
    np.testing.assert_array_equal(render(MIXED, 0, index, without=names).image, study.twin)


def test_restricting_the_findings_keeps_the_others_as_they_were():
    few = PhantomConfig(size=64, prevalence=0.3, findings=("Consolidation", "Lung Lesion"))
    for index in range(12):
        expected = [c for c in render(MIXED, 1, index).cases if c.finding in few.findings]
        assert [c.seed for c in render(few, 1, index).cases] == [c.seed for c in expected]


def test_prevalence_and_cooccurrence():
    config = PhantomConfig(size=32, prevalence={**dict.fromkeys(FINDINGS, 0.2), "Lung Lesion": 0.5}, text=False)
    labels = phantom_study_set(500, config, seed=1).labels
    rates = dict(zip(FINDINGS, labels.mean(0), strict=True))
    assert rates["Lung Lesion"] == pytest.approx(0.5, abs=0.08)
    assert rates["Edema"] == pytest.approx(0.2, abs=0.06)
    edema, effusion = (labels[:, FINDINGS.index(name)] for name in ("Edema", "Pleural Effusion"))
    assert np.corrcoef(edema, effusion)[0, 1] > 0.05


def test_patients_keep_their_body():
    config = PhantomConfig(size=64, prevalence=0.0, images_per_patient=3)
    studies = render_batch(config, 0, range(6))
    assert [s.patient for s in studies] == [0, 0, 0, 1, 1, 1]
    assert studies[0].acquisition != studies[1].acquisition


def test_shortcut_rates_and_place():
    config = PhantomConfig(
        size=64, prevalence=0.4, shortcut="Edema", shortcut_rate=0.9, shortcut_leak=0.1, findings=("Edema",)
    )
    studies = phantom_study_set(250, config, seed=3)
    sick = studies.labels[:, 0] == 1
    assert studies.tagged[sick].mean() == pytest.approx(0.9, abs=0.08)
    assert studies.tagged[~sick].mean() == pytest.approx(0.1, abs=0.08)
    corner = studies.images[:, 2:4, 2:6].mean((1, 2)) > 220
    np.testing.assert_array_equal(corner, studies.tagged)
    np.testing.assert_array_equal(studies.images[:, 2:4, 2:6], studies.twins[:, 2:4, 2:6])


def test_exposure_swamps_what_findings_add_to_the_mean():
    config = PhantomConfig(size=48, findings=("Lung Lesion", "Consolidation"), prevalence=0.5, text=False)
    studies = phantom_study_set(240, config, seed=5)
    mean = studies.images.mean((1, 2))
    for name in range(2):
        sick = studies.labels[:, name] == 1
        auc = (mean[sick][:, None] > mean[~sick][None]).mean()
        assert 0.35 < auc < 0.68


def test_arrays_do_not_depend_on_workers():
    one, two = (phantom_study_set(6, MIXED, 9, workers=w) for w in (1, 2))
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.mask, two.mask)
    later = phantom_study_set(3, MIXED, 9, first=3)
    np.testing.assert_array_equal(later.twins, one.twins[3:])
    assert one.images.dtype == np.uint8
    assert len(one) == 6


def test_written_folder_is_a_valid_table(tmp_path):
    config = PhantomConfig(size=64, prevalence=0.3, images_per_patient=2)
    written = write_phantom(tmp_path / "set", 30, config, seed=2)
    table = StudyTable.read(tmp_path / "set" / "table.csv")
    table.validate(check_files=True)
    assert table.findings == FINDINGS
    np.testing.assert_array_equal(table.labels(), written.labels())
    assert set(table.frame["split"]) == {"train", "val", "test"}
    for row in range(len(table)):
        named = {name for name in table.mask_paths(row) if name}
        assert named == {name for name, y in zip(FINDINGS, table.labels()[row], strict=True) if y == 1}
        assert table.twin_path(row).is_file()
        assert table.frame["report"].iloc[row]


def test_speed():
    config = PhantomConfig(size=128)
    render(config, 0, 0)
    start = time.process_time()
    render_batch(config, 0, range(30))
    assert (time.process_time() - start) / 30 < 0.05  # about 0.01 on an idle core


@pytest.mark.parametrize(
    "bad",
    [
        {"findings": ("Gout",)},
        {"findings": ()},
        {"prevalence": 1.5},
        {"prevalence": {"Edema": 0.5}},
        {"severity": (0.8, 0.2)},
        {"size": 8},
        {"shortcut": "Gout"},
        {"images_per_patient": 0},
    ],
)
def test_bad_settings_are_named(bad):
    with pytest.raises(InputError) as error:
        PhantomConfig(**bad)
    assert next(iter(bad)) in str(error.value)
