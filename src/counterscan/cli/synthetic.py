"""Synthetic images as command lines name them, brought to the grid of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from counterscan.errors import InputError

if TYPE_CHECKING:
    from counterscan.data.intensity import IntensityRecipe
    from counterscan.data.store import PreparedStore
    from counterscan.data.table import StudyTable

Intensity = Literal["auto", "real", "full"]


def prepared_synthetic(
    source: Path, real: PreparedStore, folder: Path, intensity: Intensity = "auto", workers: int = 2
) -> tuple[PreparedStore, int]:
    """Synthetic images on the real images' grid, and how many cannot be read.

    Args:
        source: a prepared store, a study table or a folder of images.
        real: the store whose size and intensities they are to have.
        folder: where they are prepared.
        intensity: how files become grey values: as the real ones ("real"), the full range of their numbers as black to
            white ("full"), or the latter where they are 8-bit pictures and real files are not ("auto").
        workers: decoding processes.

    Raises:
        InputError: see ``synthetic_table``.
    """
    from counterscan.cli.tables import show_bad_file
    from counterscan.data.prepare import prepare
    from counterscan.data.store import PreparedStore

    if (source / "store.json").is_file():
        store = PreparedStore.open(source)
        return store, count_bad(store)
    table = synthetic_table(source, real.findings)
    report = prepare(table, folder, size=real.size, recipe=_recipe(table, real, intensity), workers=workers)
    show_bad_file(folder / "bad.csv", report.bad, report.rows)
    return PreparedStore.open(folder), report.bad


def synthetic_table(source: Path, findings: tuple[str, ...] = ()) -> StudyTable:
    """A study table of synthetic images from a table or a folder.

    Args:
        source: CSV or Parquet with the column image, or a folder that is searched for images.
        findings: names of the real images' findings, which may be no known ones.

    Raises:
        InputError: nothing is there, no image is found, or the table cannot be read.
    """
    import pandas as pd

    from counterscan.cli.inputs import is_table
    from counterscan.data.readers import iter_images
    from counterscan.data.table import StudyTable, read_frame

    if is_table(source):
        frame = read_frame(source)
        columns = {name.strip().lower(): name.strip() for name in map(str, frame.columns)}
        image = columns.get("image")
        mapped = {} if "patient" in columns or image is None else {"patient": image, "image": image}
        own = [name for name in findings if name in frame.columns]
        table = StudyTable.from_frame(frame, source.parent, columns=mapped, findings=own, path=source)
    else:
        paths = [str(item.path.resolve()) for item in iter_images(source)]
        table = StudyTable.from_frame(pd.DataFrame({"image": paths, "patient": paths}), source)
    table.validate(labelled=False, path=source)
    return table


def _recipe(table: StudyTable, real: PreparedStore, intensity: Intensity) -> IntensityRecipe | None:
    """How synthetic files become [-1, 1]."""
    from counterscan.data.intensity import IntensityRecipe
    from counterscan.data.readers import read_image

    full = IntensityRecipe("range")
    if intensity == "full":
        return full
    if intensity == "real" or real.recipe is None or real.recipe.lo is None:
        return real.recipe
    eight_bit = (0.0, 255.0)
    for row in range(min(len(table), 20)):  # some may be damaged
        try:
            raw = read_image(table.image_path(row), frame=table.frame_number(row))
        except InputError:
            continue
        other = (real.recipe.lo, real.recipe.hi) != eight_bit
        return full if raw.kind == "raster" and raw.stored_range == eight_bit and other else real.recipe
    return real.recipe


def count_bad(store: PreparedStore) -> int:
    """Images of a store's table that could not be read."""
    from counterscan.files import read_json

    return 0 if store.folder is None else int(read_json(store.folder / "store.json").get("bad", 0))
