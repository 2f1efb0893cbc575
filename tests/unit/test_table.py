"""A result table in numbers, worked by hand, and what of it a reader sees."""

import json
from dataclasses import replace

import pytest
from test_compare import result
from test_curves import curve

from robolearn.evaluate.curve_figure import _base_rate, write_curves
from robolearn.evaluate.statistics import clopper_pearson, paired_difference_interval
from robolearn.evaluate.table import CellOutcome, RunOutcome, TableOutcome, difference
from robolearn.evaluate.table_text import markdown

BASE = result("base", [1] * 5 + [0] * 15)


def run(name, seed, outcomes, learned=None, state="done"):
    tests = result(name, outcomes) if outcomes else None
    return RunOutcome(name, seed, state, f"robolearn refine {name}", tests, learned)


def table(*cells):
    return TableOutcome("Reach", "robolearn table reach.yaml", RunOutcome("base", 0, "done", "robolearn train", BASE), cells, 0.9)


def row(text, name):
    return next([w.strip() for w in line.strip("|").split("|")] for line in text.splitlines() if line.startswith(f"| {name} |"))


def test_a_run_minus_the_base_worked_by_hand():
    # The base solves states 0-4 of 20, the run 2-17: both 3 (2-4), only the run 13 (5-17), only the base 2 (0, 1), neither 2.
    pair = difference(result("run", [0] * 2 + [1] * 16 + [0] * 2), BASE)
    assert (pair.run_only, pair.base_only, pair.difference) == (13, 2, 11 / 20)
    assert pair.interval == pytest.approx(paired_difference_interval(3, 13, 2, 2))
    # 15 discordant, 2 or fewer of one side: 2 (1 + 15 + 105) / 2^15.
    assert pair.p_value == pytest.approx(242 / 2**15)
    # A run that is worse has the signs turned round.
    worse = difference(result("run", [0] * 20), BASE)
    assert (worse.run_only, worse.base_only, worse.difference) == (0, 5, -5 / 20)
    assert worse.interval[1] < 0


def test_several_seeds_worked_by_hand():
    # 10, 15 and 20 of 20: 45 of 60; mean of the three rates 0.75, band all of [0.5, 1] (see test_curves); base 0.25.
    runs = tuple(run(f"a{i}", i, [1] * n + [0] * (20 - n)) for i, n in enumerate((10, 15, 20)))
    summary = CellOutcome("a", runs).summary(BASE)
    assert (summary.runs, summary.successes, summary.episodes) == (3, 45, 60)
    assert summary.interval == clopper_pearson(45, 60)
    assert (summary.success, *summary.band) == pytest.approx((0.75, 0.5, 1.0))
    assert summary.difference == pytest.approx(0.5)
    assert summary.difference_interval[0] < 0.5 < summary.difference_interval[1]


def test_one_seed_has_no_band_over_seeds_and_says_so():
    cell = CellOutcome("a", (run("a0", 0, [1] * 10 + [0] * 10),), left_out=(1, 2))
    summary = cell.summary(BASE)
    assert summary.band is None
    assert summary.difference_interval == difference(cell.runs[0].result, BASE).interval
    shown = row(markdown(table(cell)), "a")
    assert shown[1] == "0; 1, 2 left out"
    assert shown[4] == "1 seed"


def test_what_was_not_run_and_the_dip_of_a_run_that_did_not_finish_are_shown():
    # 26 of 50, then 6: the dip of 0.4 belongs to the seed that diverged, and stays in the table.
    runs = (run("a0", 0, [1] * 20, curve(26, 40, 50)), run("a1", 1, None, curve(26, 6), "diverged, at step 1,000 of 2,000"))
    cells = (CellOutcome("a", runs), CellOutcome("b", (run("b0", 0, None, state="not run"),)), CellOutcome("c", (), (0, 1)))
    text = markdown(table(*cells))
    assert row(text, "a")[1] == "0; 1 diverged, at step 1,000 of 2,000"
    assert row(text, "a")[6] == "0.400"
    assert row(text, "a")[9] == "2,000"
    assert row(text, "b")[1:3] == ["0 not run", "-"]
    assert row(text, "c")[1] == "0, 1 left out"
    numbers = json.loads(json.dumps(table(*cells).to_json(), allow_nan=False))
    assert [cell["dip_depth"] for cell in numbers["cells"]] == [pytest.approx(0.4), None, None]
    assert numbers["cells"][0]["runs"][0]["minus_base"]["run_only"] == 15


def test_a_table_without_a_base_has_no_differences():
    cell = CellOutcome("a", (run("a0", 0, [1] * 20, curve(26, 50)),))
    bare = replace(table(cell), base=RunOutcome("base", 0, "not run", "robolearn train"))
    assert row(markdown(bare), "base")[1] == "not run"
    assert bare.to_json()["cells"][0]["summary"] is None


def test_the_figure_is_drawn_where_there_are_curves(tmp_path):
    several = CellOutcome("a", tuple(run(f"a{i}", i, [1] * 20, curve(26, 30 + i, 40)) for i in range(3)))
    assert write_curves(table(several), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert not write_curves(table(CellOutcome("b", ())), tmp_path / "none.png")
    # A cell on top of another one begins with that one's success, which was taken for the base's.
    stacked = CellOutcome("b", (run("b0", 0, [1] * 20, curve(45, 48)),), stacked=True)
    assert _base_rate(table(several, stacked)) == pytest.approx(26 / 50)
    assert _base_rate(table(stacked)) is None
    assert write_curves(table(stacked), tmp_path / "stacked.png")
    assert not (tmp_path / "none.png").exists()
