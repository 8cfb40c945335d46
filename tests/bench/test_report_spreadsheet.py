"""The table of a result for spreadsheets."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from report_results import EVERYTHING, ODD, result, timed, untimed

from tilewright.bench.report import write_csv
from tilewright.bench.report.spreadsheet import COLUMNS


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_is_a_line_and_numbers_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_csv(result(EVERYTHING), path)
    found = lines(path)
    assert len(found) == len(EVERYTHING)
    for line, row in zip(found, EVERYTHING, strict=True):
        assert tuple(line) == COLUMNS
        for name in ("item", "provider", "status", "unit", "op", "mode", "scene", "label", "dtype"):
            assert line[name] == row[name]
        assert line["reason"] == row.get("reason", "")
        for name in ("result", "of_roofline", "error", "limit", "peak_bytes"):
            assert (float(line[name]) if line[name] else None) == row.get(name), name
        for clock in ("device", "wall"):
            for q in ("p20", "p50", "p80"):
                cell = line[f"{clock}_{q}_seconds"]
                assert (float(cell) if cell else None) == row.get(clock, {}).get(q)
    versions = {line["provider"]: line["version"] for line in found if line["item"] == "a"}
    assert versions == {"tilewright triton": "1.2.3", "tilewright cuda": "1.2.3", "eager": "2.11", "compile": ""}
    assert [line["fault"] for line in found if line["fault"]] == ["200% of the roofline: the measurement is wrong"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_is_a_formula(start: str, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    text = f'{start}HYPERLINK("file"),"\n×'
    write_csv(result([untimed("a", text, "raised", text), timed("b", "eager", 1e-3, result=-1.5)]), path)
    first, second = lines(path)
    assert first["provider"] == first["reason"] == "'" + text
    assert second["result"] == "-1.5"  # a number is none


@pytest.mark.parametrize("name", ODD)
def test_whatever_a_run_leaves_is_written(name: str, tmp_path: Path) -> None:
    write_csv(result(ODD[name]), tmp_path / "results.csv")
    assert [line["item"] for line in lines(tmp_path / "results.csv")] == [r["item"] for r in ODD[name]]


def test_a_spreadsheet_takes_it_for_unicode(tmp_path: Path) -> None:
    write_csv(result([timed("a", "eager", 1e-3, label="8 × 8 → 4")]), tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_bytes().startswith(b"\xef\xbb\xbf")
