"""Films chosen episodes and writes the HTML report, the grid video and ``comparison.json`` of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robolearn.commands.policy_reference import open_policy
from robolearn.commands.recipe import Recipe
from robolearn.core.protocols import Env
from robolearn.core.run import write_json
from robolearn.evaluate.compare import compare
from robolearn.evaluate.recording import Recording, RecordingConfig, record_episodes
from robolearn.evaluate.report import Report
from robolearn.evaluate.result import EvaluationResult
from robolearn.evaluate.video import grid_video, write_video
from robolearn.train.metrics import METRICS_FILE, read_metrics


def write_report(
    title: str, results: Sequence[EvaluationResult], env: Env, folder: Path, *, policy: str, recipe: Recipe, videos: int
) -> Path:
    """Write ``report.html`` into ``folder``, and ``rollouts.mp4`` if episodes are filmed; return the report's path.

    Args:
        title: headline.
        results: the first is the one that is filmed; several are compared, paired.
        env: as it was in the evaluation.
        folder: where the files go.
        policy: reference of the first result's policy, see :func:`~robolearn.commands.policy_reference.open_policy`.
        recipe: the run's; its run folder's metrics give the learning curve.
        videos: episodes to film, failures and successes in equal parts where there are enough.
    """
    recordings: Sequence[Recording] = ()
    if videos > 0:
        failures = min(videos // 2, len(results[0].episodes) - results[0].successes)
        config = RecordingConfig(successes=videos - failures, failures=failures)
        recordings = record_episodes(env, open_policy(policy, env, recipe)[0], results[0], config)
    comparison = compare(results) if len(results) > 1 else None
    run_dir = Path(recipe.run_dir)
    metrics = read_metrics(run_dir) if (run_dir / METRICS_FILE).exists() else ()
    shown = {results[0].policy: recordings} if recordings else {}
    folder.mkdir(parents=True, exist_ok=True)
    if comparison:
        write_json(folder / "comparison.json", comparison.to_json())
    if recordings:
        grid = grid_video([r.frames for r in recordings], successes=[r.episode.success for r in recordings])
        write_video(folder / "rollouts.mp4", grid, recordings[0].frame_rate_hz)
    return Report(title, results, comparison=comparison, recordings=shown, metrics=metrics).write(folder)
