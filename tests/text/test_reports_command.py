"""`counterscan augment reports` on small tables."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from counterscan.cli.main import run_commands
from counterscan.cli.reports import Reports
from counterscan.data.findings import CHEXPERT
from counterscan.data.table import StudyTable
from counterscan.errors import InputError


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in" / "table.csv"
    path.parent.mkdir()
    pd.DataFrame(
        {
            "image": ["a.png", "b.png", "c.png", "d.png"],
            "patient": ["p1", "p2", "p3", "p4"],
            "report": [
                "FINDINGS: Small left effusion. IMPRESSION: Possible edema.",
                "",
                "Kein Erguss, das Herz ist normal.",
                "Foo.",
            ],
        }
    ).to_csv(path, index=False)
    return path


def run(*arguments):
    return run_commands("counterscan augment", {"reports": Reports}, ["reports", *map(str, arguments)])


def test_labels_are_written_beside_the_table(table, tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert run(table, "--out", out) == 0
    frame = pd.read_csv(out, dtype=str, keep_default_na=False)
    assert list(frame.columns) == ["image", "patient", "report", *CHEXPERT, "report_status"]
    assert list(frame["report_status"]) == ["read", "empty", "not English", "read"]
    assert list(frame["Pleural Effusion"]) == ["1", "", "", ""]
    assert list(frame["Edema"]) == ["-1", "", "", ""]
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 reports read" in said
    assert "1 not labelled: empty" in said
    assert "1 not labelled: not English (more than half" in said
    assert "1 read, but nothing in them is known" in said
    study = StudyTable.read(out, labelled=False)
    assert "Edema" in study.findings
    assert "No Finding" not in study.findings


def test_parquet_views_and_json(table, tmp_path):
    out, lines = tmp_path / "out.parquet", tmp_path / "found.jsonl"
    run(table, "--out", out, "--view", "rules-v2", "impression", "--json", lines)
    frame = pd.read_parquet(out)
    assert list(frame["view:rules-v2"]) == ["small left pleural effusion, possible pulmonary edema", "", "", ""]
    assert frame["view:impression"].iloc[0] == "Possible edema."
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["row"] for row in rows] == [2, 3, 4, 5]
    assert rows[0]["findings"][0]["laterality"] == "left"
    assert rows[2]["refusal"] == "not English"


def test_explain_prints_one_row_and_writes_nothing(table, tmp_path, capsys):
    run(table, "--explain", 2)
    said = capsys.readouterr().out
    assert "Pleural Effusion, present, small, left" in said
    assert "Edema = -1" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    with pytest.raises(InputError, match=r"there is no row 9\. Rows are 2 to 5"):
        run(table, "--explain", 9)


def test_sections_in_columns_of_their_own(tmp_path):
    path, out = tmp_path / "t.csv", tmp_path / "out.csv"
    pd.DataFrame({"findings": ["Edema.", ""], "impression": ["No edema.", "Edema."], "normal": ["0", "0"]}).to_csv(path)
    run(path, "--out", out, "--text-column", "findings", "impression")
    assert list(pd.read_csv(out, dtype=str)["Edema"]) == ["0", "1"]
    run(path, "--out", out, "--text-column", "findings", "impression", "--findings-win")
    assert list(pd.read_csv(out, dtype=str)["Edema"]) == ["1", "1"]


def test_own_rules(table, tmp_path):
    rules = tmp_path / "ours.yaml"
    rules.write_text("findings:\n  - {id: our-foo, finding: Fracture, phrases: ['foo']}\n")
    run(table, "--out", tmp_path / "out.csv", "--rules", rules)
    assert pd.read_csv(tmp_path / "out.csv")["Fracture"].iloc[3] == 1


def test_labels_that_are_there_are_kept_unless_told(tmp_path):
    path, out = tmp_path / "t.csv", tmp_path / "out.csv"
    pd.DataFrame({"report": ["Edema."], "Pulmonary Oedema": ["0"]}).to_csv(path, index=False)
    with pytest.raises(InputError, match="has the column 'Pulmonary Oedema' already"):
        run(path, "--out", out)
    assert not out.exists()
    run(path, "--out", out, "--replace")
    frame = pd.read_csv(out)
    assert "Pulmonary Oedema" not in frame
    assert frame["Edema"].iloc[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--out: is missing"),
        (
            ("--out", "x.csv", "--text-column", "text"),
            "column 'text': no such column. Give --text-column; the table has",
        ),
        (("--out", "x.csv", "--view", "rules-v9"), "--view: unknown text view 'rules-v9'"),
        (("--out", "x.csv", "--rules", "gone.yaml"), "gone.yaml: rules: no such file"),
    ],
)
def test_mistakes(table, arguments, said):
    with pytest.raises(InputError) as caught:
        run(table, *arguments)
    assert said in str(caught.value)
