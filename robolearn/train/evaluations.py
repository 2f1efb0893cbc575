"""The evaluations of an online run: one row each, in ``evaluations.json``, and how deep success ever fell below the base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robolearn.core.run import read_json, write_json

EVALUATIONS_FILE = "evaluations.json"

type Score = Mapping[str, object]
"""JSON-serialisable result of one evaluation; ``successes`` and ``episodes`` are counts."""


class Evaluations:
    """The table in ``run_dir``. A run that was set back to an earlier step does not see the rows behind it."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / EVALUATIONS_FILE

    def rows(self, until: int) -> list[dict[str, Any]]:
        """Return the rows up to control step ``until``."""
        if not self._file.exists():
            return []
        rows: Any = read_json(self._file, what="table of evaluations")["evaluations"]
        return [row for row in rows if row["env_steps"] <= until]

    def add(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Write ``row``, which replaces one of the same control step; return the success rate and the dip depth so far."""
        step = row["env_steps"]
        rows = [r for r in self.rows(step) if r["env_steps"] != step] + [dict(row)]
        rates = [r["successes"] / r["episodes"] for r in rows]
        rows[-1]["dip_depth"] = round(max(0.0, rates[0] - min(rates)), 4)
        write_json(self._file, {"evaluations": rows})
        return {"success": rates[-1], "dip_depth": rows[-1]["dip_depth"]}
