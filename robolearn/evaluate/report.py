"""The report: one HTML file that holds everything it shows and asks the network for nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from robolearn.core.errors import RefusedError
from robolearn.evaluate import plots
from robolearn.evaluate.compare import Comparison
from robolearn.evaluate.plots import MetricsRow
from robolearn.evaluate.recording import Recording
from robolearn.evaluate.result import EvaluationResult
from robolearn.evaluate.video import encode_mp4

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Report:
    """What a report shows; only ``results`` is needed."""

    title: str
    results: Sequence[EvaluationResult]
    """All on one task; the first is in the headline."""
    comparison: Comparison | None = None
    """Of the same policies; adds letters and the table of pairs."""
    recordings: Mapping[str, Sequence[Recording]] = field(default_factory=dict)
    """Policy name -> recorded episodes."""
    metrics: Sequence[MetricsRow] = ()
    """Rows of the training's ``metrics.jsonl``."""

    def __post_init__(self) -> None:
        names = [result.policy for result in self.results]
        if not names or len(set(names)) != len(names):
            raise RefusedError(f"A report needs at least one policy, each with its own name; got {names}.")
        if stray := [name for name in self.recordings if name not in names]:
            raise RefusedError(f"Recordings of {stray} belong to none of the policies {names}.")

    def html(self) -> str:
        """Return the page."""
        import jinja2
        from markupsafe import Markup

        template = resources.files("robolearn.evaluate").joinpath("report.html").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"percent": _percent, "number": _number}
        letters = self._letters()
        shown = [recording for recordings in self.recordings.values() for recording in recordings]
        figures = {
            "success": plots.success_bars(self.results, [letters[r.policy] for r in self.results] if letters else ()),
            "learning": plots.learning_curve(self.metrics),
            "actions": plots.action_traces(list(next(iter(self.recordings.values()), ()))) if shown else None,
            "latency": plots.latency_histogram({r.policy: r.single_latency for r in self.results}),
        }
        return environment.from_string(template).render(
            report=self,
            first=self.results[0],
            summaries=[result.summary() for result in self.results],
            letters=letters,
            figures={name: Markup(svg) if svg else None for name, svg in figures.items()},
            videos={name: [_video(recording) for recording in recordings] for name, recordings in self.recordings.items()},
            strips=[_strip(result) for result in self.results],
            provenance={result.policy: _flatten(result.provenance) for result in self.results if result.provenance},
        )

    def write(self, path: Path) -> Path:
        """Write the page to ``path``, or as ``report.html`` into a folder, and return where it lies.

        Raises:
            RefusedError: the file cannot be written.
        """
        file = path / REPORT_FILE if path.is_dir() else path
        temporary = file.with_name(f".{file.name}.tmp")
        page = self.html()
        try:
            temporary.write_text(page, encoding="utf-8")
            temporary.replace(file)
        except OSError as error:
            raise RefusedError(f"Cannot write {file}: {error.strerror or error}.") from error
        return file

    def _letters(self) -> dict[str, str]:
        if self.comparison is None:
            return {}
        letters = {r.policy: text for r, text in zip(self.comparison.results, self.comparison.letters, strict=True)}
        if missing := [r.policy for r in self.results if r.policy not in letters]:
            raise RefusedError(f"The comparison is of {sorted(letters)} and lacks {missing}.")
        return letters


def _video(recording: Recording) -> dict[str, object]:
    """Return what the template needs to embed one episode."""
    data = base64.b64encode(encode_mp4(recording.frames, recording.frame_rate_hz)).decode()
    _, height, width, _ = recording.frames.shape
    seconds = recording.episode.length / recording.control_rate_hz
    return {"data": data, "height": height, "width": width, "seconds": seconds, "recording": recording}


def _strip(result: EvaluationResult) -> list[dict[str, object]]:
    """Return one cell per episode, by seed, so that the same column is the same initial state for all policies."""
    return [{"seed": e.seed, "success": e.success, "length": e.length} for e in sorted(result.episodes, key=lambda e: e.seed)]


def _flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return dotted names -> text; an inner mapping without further mappings is one line."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if not isinstance(value, Mapping):
            flat[f"{prefix}{name}"] = _text(value)
        elif any(isinstance(inner, Mapping) for inner in value.values()):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return flat


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f} %"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}g}"
