from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from counterscan.data import decode, rows
from counterscan.data import prepare as prepare_module
from counterscan.data.intensity import IntensityRecipe
from counterscan.data.load import load
from counterscan.data.store import PreparedStore, prepare
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import read_json
from tests.data import published
from tests.real import real_data

RANGE = IntensityRecipe("range")


def make_set(root: Path, count: int = 10, shape: tuple[int, int] = (48, 32)) -> StudyTable:
    """Pictures of 48 x 32; the first three have masks: one plain, one of a finding, one as a box."""
    frame = []
    for i in range(count):
        published.picture(root / f"images/{i}.png", i, shape)
        frame.append({"image": f"images/{i}.png", "patient": f"p{i}", "split": "train", "Edema": i % 2, "Mass": 0})
    table = pd.DataFrame(frame).assign(**{"mask": "", "mask:Edema": "", "boxes": "", "mask_kind": ""})
    published.mask(root / "masks/0.png", (0, 0, 24, 32), shape)
    published.mask(root / "masks/1.png", (24, 0, 48, 32), shape)
    table.loc[0, "mask"] = "masks/0.png"
    table.loc[1, "mask:Edema"] = "masks/1.png"
    table.loc[2, "boxes"] = json.dumps([{"finding": "Mass", "box": [0, 0, 16, 48]}])
    table.loc[3, "mask_kind"] = "none(empty)"
    return StudyTable.from_frame(table, root)


def test_a_store_gives_what_reading_the_files_gives(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set")
    report = prepare(table, tmp_path / "store", size=24, recipe=RANGE, workers=1)
    assert (report.rows, report.good, report.bad, report.decoded, report.reused, report.masks) == (10, 10, 0, 10, 0, 3)
    store = PreparedStore.open(tmp_path / "store")
    assert len(store) == 10
    assert store.recipe == RANGE
    assert store.findings == ("Edema", "Lung Lesion")
    for i in (0, 7):
        image, geometry, _ = load(table.image_path(i), RANGE, 24)
        assert store.geometry(i) == geometry
        torch.testing.assert_close(store.images([i])[0], image, atol=1 / 255 + 1e-6, rtol=0)
        assert torch.equal(store.valid([i])[0, 0], geometry.valid())
        assert store.images([i])[0, 0][~geometry.valid()].unique().tolist() == [-1.0]
    assert store.images().shape == (10, 1, 24, 24)
    assert store.images().dtype == torch.float32
    assert store.has_mask.tolist() == [True] * 3 + [False] * 7
    assert store.mask_known.tolist() == [True] * 4 + [False] * 6
    np.testing.assert_array_equal(store.labels, table.labels())
    assert store.patients.tolist() == [f"p{i}" for i in range(10)]
    assert set(store.split) == {"train"}
    assert store.table.image_path(4).samefile(table.image_path(4))


def test_a_walk_over_images_is_in_the_order_of_the_rows_whatever_the_parts(tmp_path: Path) -> None:
    prepare(make_set(tmp_path / "set"), tmp_path / "store", size=24, recipe=RANGE, workers=1)
    store, rows = PreparedStore.open(tmp_path / "store"), np.array([7, 0, 3, 9, 1])
    asked: list[int] = []

    def means(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return images.mean(dim=(1, 2, 3))

    assert torch.equal(store.over(rows, means, batch_size=2), store.images(rows).mean(dim=(1, 2, 3)))
    assert asked == [2, 2, 1]


def test_masks_by_finding(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set")
    prepare(table, tmp_path / "store", size=24, recipe=RANGE, workers=1)
    store = PreparedStore.open(tmp_path / "store")
    assert store.mask_findings == ("Edema", "Lung Lesion")
    every = store.masks([0, 1, 2, 3])[:, 0]
    top, bottom, left = (torch.zeros(24, 24, dtype=torch.bool) for _ in range(3))
    top[:12, 4:20], bottom[12:, 4:20], left[:, 4:12] = True, True, True
    assert torch.equal(every, torch.stack([top, bottom, left, torch.zeros_like(top)]))
    edema = store.masks([0, 1, 2], finding="Edema")[:, 0]
    assert torch.equal(edema, torch.stack([torch.zeros_like(top), bottom, torch.zeros_like(top)]))
    assert torch.equal(store.masks([2], finding="Lung Lesion")[0, 0], left)
    assert not store.masks(finding="Fracture").any()


def test_a_lesion_smaller_than_a_cell_is_not_lost_and_plain_masks_serve_every_finding(tmp_path: Path) -> None:
    published.picture(tmp_path / "a.png", 0, (64, 64))
    published.mask(tmp_path / "m.png", (33, 33, 34, 34), (64, 64))
    frame = pd.DataFrame({"image": ["a.png"], "patient": ["1"], "mask": ["m.png"], "Edema": [1]})
    prepare(StudyTable.from_frame(frame, tmp_path), tmp_path / "store", size=8, recipe=RANGE, workers=1)
    mask = PreparedStore.open(tmp_path / "store").masks([0], finding="Edema")[0, 0]
    assert mask.nonzero().tolist() == [[4, 4]]


def test_twins_and_subsets(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set", 4)
    table = StudyTable.from_frame(table.frame.assign(twin=["", "images/0.png", "images/0.png", ""]), tmp_path / "set")
    prepare(table, tmp_path / "store", size=16, recipe=RANGE, workers=1)
    store = PreparedStore.open(tmp_path / "store")
    assert store.has_twin.tolist() == [False, True, True, False]
    assert torch.equal(store.twins([1, 2]), store.images([0, 0]))
    with pytest.raises(InputError, match="2 of the rows have no twin"):
        store.twins()
    view = store.subset(store.has_twin).subset([1, 0])
    assert view.patients.tolist() == ["p2", "p1"]
    assert torch.equal(view.images(), store.images([2, 1]))
    assert torch.equal(view.masks(), store.masks([2, 1]))
    assert torch.equal(view.images(slice(1, 2)), store.images([1]))
    assert torch.equal(view.images(torch.tensor([-1])), store.images([1]))
    assert len(store.subset([])) == 0
    with pytest.raises(IndexError):
        view.images([2])


def test_uint16_keeps_fine_steps(tmp_path: Path) -> None:
    pixels = (np.arange(32 * 32, dtype=np.uint32) * 63).astype(np.uint16).reshape(32, 32)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    frame = pd.DataFrame({"image": ["a.png"], "patient": ["1"]})
    for dtype, steps in (("uint8", 256), ("uint16", 1024)):
        prepare(
            StudyTable.from_frame(frame, tmp_path),
            tmp_path / dtype,
            size=32,
            recipe=RANGE,
            workers=1,
            dtype=dtype,  # type: ignore[arg-type]
        )
        assert len(PreparedStore.open(tmp_path / dtype).images().unique()) > 0.9 * steps


def test_rerun_does_nothing_and_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set")
    out = tmp_path / "store"
    prepare(table, out, size=16, recipe=RANGE, workers=1)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    content = PreparedStore.open(out).content
    again = prepare(table, out, size=16, workers=1)
    assert (again.decoded, again.reused) == (0, 10)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    # Touched, but the same content: nothing to do either.
    os.utime(table.image_path(3), ns=(1, 1))
    assert prepare(table, out, size=16, workers=1).decoded == 0
    assert pd.read_parquet(out / "rows.parquet")["signature"][3].endswith(":1 ")
    published.picture(table.image_path(3), 99, (48, 32))
    old = PreparedStore.open(out).images()
    changed = prepare(table, out, size=16, workers=1)
    assert (changed.decoded, changed.reused) == (1, 9)
    store = PreparedStore.open(out)
    assert store.content != content
    differs = (store.images() != old).flatten(1).any(1)
    assert differs.nonzero().flatten().tolist() == [3]
    assert torch.equal(store.masks()[:3].flatten(1).any(1), torch.tensor([True] * 3))


def test_rows_come_and_go_and_labels_change(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set")
    out = tmp_path / "store"
    prepare(table, out, size=16, recipe=RANGE, workers=1)
    first = PreparedStore.open(out).images()
    picked = table.subset(rows=[7, 2, 1])
    report = prepare(picked, out, size=16, workers=1)
    assert (report.decoded, report.reused, report.masks) == (0, 3, 2)
    second = PreparedStore.open(out)
    assert second.patients.tolist() == ["p7", "p2", "p1"]
    assert torch.equal(second.images(), first[[7, 2, 1]])
    assert prepare(table, out, size=16, workers=1).decoded == 7
    relabelled = StudyTable(table.frame.assign(Edema=np.float32(1)), table.root, table.findings)
    assert prepare(relabelled, out, size=16, workers=1).decoded == 0
    assert PreparedStore.open(out).labels[:, 0].tolist() == [1] * 10
    assert prepare(table, out, size=20, workers=1).decoded == 10


def test_bad_images_are_listed_not_fatal(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set")
    table.image_path(2).write_bytes(b"\x89PNG\r\n\x1a\n torn off")
    table.image_path(5).unlink()
    published.mask(tmp_path / "set/masks/0.png", (0, 0, 3, 3), (5, 50))
    report = prepare(table, tmp_path / "store", size=16, recipe=RANGE, workers=1)
    assert (report.bad, report.good, report.masks) == (3, 7, 1)
    listed = pd.read_csv(tmp_path / "store/bad.csv")
    assert listed["row"].tolist() == [2, 4, 7]
    assert listed["image"].tolist() == ["images/0.png", "images/2.png", "images/5.png"]
    assert "mask" in listed["reason"][0]
    store = PreparedStore.open(tmp_path / "store")
    assert store.patients.tolist() == ["p1", "p3", "p4", "p6", "p7", "p8", "p9"]
    image, _, _ = load(table.image_path(9), RANGE, 16)
    torch.testing.assert_close(store.images([6])[0], image, atol=1 / 255 + 1e-6, rtol=0)
    assert prepare(table, tmp_path / "store", size=16, workers=1).decoded == 0
    published.picture(table.image_path(5), 5, (48, 32))
    assert prepare(table, tmp_path / "store", size=16, workers=1).decoded == 1
    again = prepare(table, tmp_path / "store", size=16, workers=1, retry_bad=True)
    assert (again.decoded, again.bad) == (2, 2)


def test_all_bad_is_an_error(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set", 4)
    for i in range(4):
        table.image_path(i).write_bytes(b"nothing")
    with pytest.raises(InputError, match="none of the 4 images"):
        prepare(table, tmp_path / "store", size=16, recipe=RANGE, workers=1)
    with pytest.raises(InputError, match="none of the images sampled"):
        prepare(table, tmp_path / "store", size=16, workers=1)
    assert not (tmp_path / "store").exists()


def test_pixels_that_are_no_image_are_not_valid(tmp_path: Path) -> None:
    pixels = np.full((32, 32), 200, np.uint8)
    pixels[:, :8] = 0
    Image.fromarray(pixels).save(tmp_path / "bars.png")
    published.picture(tmp_path / "full.png", 1)
    frame = pd.DataFrame({"image": ["full.png", "bars.png"], "patient": ["1", "2"]})
    table = StudyTable.from_frame(frame, tmp_path)
    prepare(table, tmp_path / "store", size=16, recipe=IntensityRecipe("range", valid="border"), workers=1)
    valid = PreparedStore.open(tmp_path / "store").valid()
    assert valid[0].all()
    assert not valid[1, 0, :, :4].any()
    assert valid[1, 0, :, 4:].all()
    # Rows that move keep their own valid pixels.
    prepare(table.subset(rows=[1, 0]), tmp_path / "store", size=16, workers=1)
    assert torch.equal(PreparedStore.open(tmp_path / "store").valid(), valid[[1, 0]])


def test_processes_give_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "CHUNK", 2)
    monkeypatch.setattr(prepare_module, "SPAWN_PAYS", 0)
    table = make_set(tmp_path / "set")
    table.image_path(6).write_bytes(b"bad")
    seen: list[int] = []
    one = prepare(table, tmp_path / "one", size=16, recipe=RANGE, workers=1)
    two = prepare(table, tmp_path / "two", size=16, recipe=RANGE, workers=2, progress=lambda done, _: seen.append(done))
    assert (one.bad, two.bad, seen[-1]) == (1, 1, 10)
    for name in ("images.npy", "masks.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert PreparedStore.open(tmp_path / "one").content == PreparedStore.open(tmp_path / "two").content


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set", 12)
    table.write(tmp_path / "set/table.csv")
    script = f"""
import os
from pathlib import Path
from counterscan.data import decode, prepare as p
from counterscan.data.intensity import IntensityRecipe
from counterscan.data.table import StudyTable
p.CHUNK = 4
table = StudyTable.read(Path({str(tmp_path)!r}) / "set/table.csv")
def progress(done, total):
    if done == 8:
        os.kill(os.getpid(), 9)
out = Path({str(tmp_path)!r}) / "store"
p.prepare(table, out, size=16, recipe=IntensityRecipe("range"), workers=1, progress=progress)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert not (tmp_path / "store").exists()
    with open(tmp_path / "store.partial/journal.jsonl", "ab") as journal:
        journal.write(b'{"slot": 9, "sh')  # and a line that was being written
    report = prepare(StudyTable.read(tmp_path / "set/table.csv"), tmp_path / "store", size=16, workers=1)
    assert (report.decoded, report.reused) == (4, 8)
    prepare(table, tmp_path / "fresh", size=16, recipe=RANGE, workers=1)
    assert (tmp_path / "store/images.npy").read_bytes() == (tmp_path / "fresh/images.npy").read_bytes()
    assert not (tmp_path / "store.partial").exists()


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_disk_full_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    table = make_set(tmp_path / "set")
    out = tmp_path / "store"
    prepare(table, out, size=16, recipe=RANGE, workers=1)
    before = PreparedStore.open(out).images()
    published.picture(table.image_path(0), 77, (48, 32))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(InputError, match=r"the disk is full.*what is done is kept"):
            prepare(table, out, size=16, workers=1)
    assert torch.equal(PreparedStore.open(out).images(), before)
    assert prepare(table, out, size=16, workers=1).decoded == 1


def test_a_crash_between_the_renames_is_mended(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set", 4)
    out = tmp_path / "store"
    prepare(table, out, size=16, recipe=RANGE, workers=1)
    out.rename(tmp_path / "store.before")
    assert prepare(table, out, size=16, workers=1).decoded == 0
    assert not (tmp_path / "store.before").exists()


def test_refusals(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set", 4)
    with pytest.raises(InputError, match="exists and is no store"):
        prepare(table, tmp_path / "set", size=16, recipe=RANGE, workers=1)
    with pytest.raises(InputError, match="uint8 or uint16"):
        prepare(table, tmp_path / "store", size=16, dtype="float32")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"is not a finished store.*data prepare"):
        PreparedStore.open(tmp_path / "store")
    with rows.locked(tmp_path / "store"), pytest.raises(InputError, match="another process"):
        prepare(table, tmp_path / "store", size=16, recipe=RANGE, workers=1)


def test_a_store_survives_a_trip_to_another_process(tmp_path: Path) -> None:
    prepare(make_set(tmp_path / "set"), tmp_path / "store", size=16, recipe=RANGE, workers=1)
    store = PreparedStore.open(tmp_path / "store")
    expected = store.images()
    packed = pickle.dumps(store)
    assert torch.equal(pickle.loads(packed).images(), expected)
    memory = PreparedStore.from_arrays(np.zeros((2, 8, 8), np.uint8))
    assert pickle.loads(pickle.dumps(memory)).images().shape == (2, 1, 8, 8)


def test_from_arrays() -> None:
    images = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
    masks = {"Edema": np.zeros((3, 8, 8), bool), "Fracture": np.zeros((3, 8, 8), bool)}
    masks["Edema"][0, :2], masks["Fracture"][0, 4:] = True, True
    store = PreparedStore.from_arrays(
        images,
        labels=np.array([[1, 1], [0, np.nan], [-1, 0]]),
        findings=["Edema", "Fracture"],
        patients=["a", "b", "b"],
        split=["train", "test", "test"],
        masks=masks,
        twins=images[::-1].copy(),
    )
    assert store.findings == ("Edema", "Fracture")
    np.testing.assert_array_equal(store.labels, np.array([[1, 1], [0, np.nan], [-1, 0]], np.float32))
    torch.testing.assert_close(store.images(), torch.from_numpy(images)[:, None] / 127.5 - 1)
    assert store.masks([0], finding="Edema").sum() == 16
    assert store.masks([0]).sum() == 48
    assert store.has_mask.tolist() == [True, False, False]
    assert store.mask_known.all()
    assert torch.equal(store.twins([0]), store.images([2]))
    assert store.geometry(0).native == (8, 8)
    assert store.references(0) == {}
    batch = store.subset(store.split == "test").batch()
    assert len(batch) == 2
    assert batch.valid is not None
    assert batch.valid.all()
    with pytest.raises(ValueError, match="uint8"):
        PreparedStore.from_arrays(images.astype(np.float32))
    with pytest.raises(ValueError, match="shape"):
        PreparedStore.from_arrays(images, masks=np.zeros((3, 4, 4), bool))


def test_fifty_thousand_rows_open_fast(tmp_path: Path) -> None:
    count = 50_000
    prepare(make_set(tmp_path / "set", 4), tmp_path / "store", size=8, recipe=RANGE, workers=1)
    out = tmp_path / "store"
    one = pd.read_parquet(out / "rows.parquet").iloc[[3]]
    one.iloc[np.zeros(count, int)].to_parquet(out / "rows.parquet")
    frame = pd.read_parquet(out / "table.parquet").iloc[[3]]
    frame = frame.iloc[np.zeros(count, int)].assign(image=[f"{i}.png" for i in range(count)])
    frame.assign(patient=[f"p{i}" for i in range(count)]).to_parquet(out / "table.parquet")
    with open(out / "images.npy", "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, {"descr": "|u1", "fortran_order": False, "shape": (count, 8, 8)})
        handle.truncate(handle.tell() + count * 64)
    began = time.perf_counter()
    store = PreparedStore.open(out)
    assert store.images([0, count - 1]).shape == (2, 1, 8, 8)
    assert time.perf_counter() - began < 3
    assert store.valid([count - 1]).shape == (1, 1, 8, 8)


def test_the_recipe_is_fitted_to_training_rows_and_kept(tmp_path: Path) -> None:
    table = make_set(tmp_path / "set")
    prepare(table, tmp_path / "store", size=16, workers=1)
    about = read_json(tmp_path / "store/store.json")
    assert about["recipe"]["kind"] == "range"
    assert PreparedStore.open(tmp_path / "store").recipe == IntensityRecipe.from_dict(about["recipe"])


def test_every_write_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the system cuts short is continued."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: real(handle, bytes(data)[:7], at))
    path = tmp_path / "file"
    path.write_bytes(bytes(40))
    with open(path, "r+b") as handle:
        decode._write(handle.fileno(), 4, np.arange(32, dtype=np.uint8))
    assert path.read_bytes() == bytes(4) + bytes(range(32)) + bytes(4)


@pytest.mark.parametrize("name", ["lgg_mri", "nih_cxr"])
def test_real_sets(tmp_path: Path, name: str) -> None:
    from counterscan.data.importers import import_manifest

    table = import_manifest(real_data(name))
    table = table.subset(rows=np.flatnonzero(table.frame["mask"] != "")[:20])
    report = prepare(table, tmp_path / "store", size=64, workers=1)
    assert (report.bad, report.masks) == (0, 20)
    store = PreparedStore.open(tmp_path / "store")
    share = store.masks().flatten(1).float().mean(1)
    kind = "pixel" if name == "lgg_mri" else "box"
    for i in range(20):
        with Image.open(str(table.mask_path(i))) as drawn:
            truth = float((np.asarray(drawn) > 0).mean())
        assert share[i] == pytest.approx(truth, abs=0.25 * truth + 2e-3), kind


def test_parts_are_checked_splits() -> None:
    images = np.zeros((6, 4, 4), np.uint8)
    settings = {"findings": ("Edema",), "labels": np.zeros((6, 1), np.float32)}
    split = ["train"] * 3 + ["val"] * 2 + ["test"]
    store = PreparedStore.from_arrays(images, patients=list("aabccd"), split=split, **settings)
    assert [len(part) for part in store.parts("train", "val")] == [3, 2]
    with pytest.raises(InputError, match="no row is in the split 'holdout'"):
        store.parts("train", "holdout")
    with pytest.raises(InputError, match="patient 'a' is in lists"):
        PreparedStore.from_arrays(images, patients=list("aabaab"), split=split, **settings).parts("train", "val")
