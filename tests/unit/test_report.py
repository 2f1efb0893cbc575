import base64
import io
import re
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image
from reach_env import NoisyReacher, ReachEnv

from robolearn.core.errors import RefusedError
from robolearn.deploy.executor import ExecutorConfig
from robolearn.evaluate.compare import compare
from robolearn.evaluate.plots import learning_curve
from robolearn.evaluate.recording import RecordingConfig, choose_episodes, record_episodes
from robolearn.evaluate.report import Report
from robolearn.evaluate.result import RolloutConfig
from robolearn.evaluate.rollout import evaluate
from robolearn.evaluate.video import FAILURE_COLOR, SUCCESS_COLOR, encode_mp4, grid_video, write_video

CONFIG = RolloutConfig(ExecutorConfig(exec_horizon=2), timed_decisions=10)
SMALL = RecordingConfig(successes=2, failures=1, height=32, width=48)
SLOPPY = NoisyReacher(noise=2.0, speed=0.4)
METRICS = [
    {"step": 1, "train/loss": 1.0, "time/update_s": 0.1},
    {"step": 2, "train/loss": 0.5},
    {"step": 2, "validation/loss": 0.6, "validation/action_error": None},
    {"step": 2, "score": 0.4},
]


@pytest.fixture(scope="module")
def results():
    policies = {"sloppy": SLOPPY, "<b>fast</b>": NoisyReacher()}
    facts = {"command": "robolearn evaluate x", "git": {"commit": "abc", "dirty": False}, "packages": {"numpy": "2"}, "seed": 3}
    return [evaluate(ReachEnv(4), p, range(20), CONFIG).described(policy=n, provenance=facts) for n, p in policies.items()]


@pytest.fixture(scope="module")
def recordings(results):
    return record_episodes(ReachEnv(2), SLOPPY, results[0], SMALL)


@pytest.fixture(scope="module")
def page(results, recordings):
    report = Report("Reach", results, comparison=compare(results), recordings={"sloppy": recordings}, metrics=METRICS)
    return report.html()


def decode(data):
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), container.streams.video[0]


def test_recordings_show_the_chosen_episodes_of_the_evaluation(results, recordings):
    by_seed = {e.seed: e for e in results[0].episodes}
    chosen = choose_episodes(results[0], SMALL)
    outcomes = [by_seed[s].success for s in chosen]
    assert outcomes == [False, True, True]
    assert chosen[1:] == [e.seed for e in results[0].episodes if e.success][:2]
    for seed, recording in zip(chosen, recordings, strict=True):
        assert recording.episode == by_seed[seed]  # run again in other company, bit for bit
        assert recording.same_outcome
        steps = recording.episode.length
        assert recording.actions.shape == (steps, 1)
        assert recording.frames.shape == (1 + -(-steps // 2), 32, 48, 3)  # the start, every second step, and the end
        assert recording.frame_rate_hz == 5.0
        # The white bar of the point stands at x = 0 in the first picture, and moves.
        assert (recording.frames[0][0].argmax(axis=0) == 0).all()
        assert (recording.frames[-1][0].argmax(axis=0) > 0).all()


def test_a_recording_that_ends_otherwise_says_so(results):
    (recording,) = record_episodes(ReachEnv(2), NoisyReacher(), results[0], replace(SMALL, successes=0))
    assert recording.episode.success
    assert not recording.same_outcome


def test_nothing_to_record(results):
    assert record_episodes(ReachEnv(2), SLOPPY, results[0], replace(SMALL, successes=0, failures=0)) == ()


def test_an_unknown_camera_is_refused_with_the_known_ones(results):
    with pytest.raises(RefusedError, match=r"Camera 'sid' cannot be rendered\. Allowed: side\. Did you mean 'side'"):
        record_episodes(ReachEnv(2), SLOPPY, results[0], replace(SMALL, camera="sid"))


@pytest.mark.parametrize("change", [{"height": 33}, {"width": 8}, {"frame_stride": 0}, {"successes": -1}])
def test_bad_recording_settings_are_refused(change):
    with pytest.raises(RefusedError, match=next(iter(change))):
        replace(SMALL, **change)


def test_the_page_asks_the_network_for_nothing(page):
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b", page)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert sources
    assert all(s.startswith(("data:video/mp4;base64,", "#")) for s in sources)
    assert "@import" not in page
    assert re.findall(r"url\((?!#|&#34;#)", page) == []


def test_the_page_says_the_numbers(page, results):
    low, high = results[0].interval()
    assert f"{results[0].successes}/20" in page
    assert f"{100 * low:.1f} % – {100 * high:.1f} %" in page
    assert "&lt;b&gt;fast&lt;/b&gt;" in page
    assert "<b>fast</b>" not in page
    assert "commit abc, dirty false" in page
    assert page.count('<i class="success"') == results[0].successes + results[1].successes
    for heading in ("Success", "Numbers", "Episodes", "Learning curve", "Sent actions", "Decision latency", "Safety filter"):
        assert f"<h2>{heading}</h2>" in page


def test_safety_counts_are_shown(page, results):
    hits = results[0].safety_hits["position"]
    assert hits > 0
    assert f"<td>position</td><td>{hits}</td>" in page


def test_the_embedded_videos_play(page, recordings):
    videos = re.findall(r'<figure( class="success")?>\s*<video src="data:video/mp4;base64,([^"]+)"', page)
    assert [bool(mark) for mark, _ in videos] == [r.episode.success for r in recordings]
    for (_, data), recording in zip(videos, recordings, strict=True):
        frames, stream = decode(base64.b64decode(data))
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert frames.shape == recording.frames.shape
        assert float(stream.average_rate) == pytest.approx(5.0)
        assert np.abs(frames.astype(int) - recording.frames).mean() < 12


def test_the_page_is_the_same_for_the_same_results(page, results, recordings):
    again = Report("Reach", results, comparison=compare(results), recordings={"sloppy": recordings}, metrics=METRICS)
    # The encoder reads a few bytes beyond each row of a picture whose width is no multiple of its vectors, so one video in ten
    # differs in bytes that nobody sees.
    video = re.compile(r"data:video/mp4;base64,[A-Za-z0-9+/=]+")
    assert len(video.findall(page)) == len(video.findall(again.html()))
    assert video.sub("", again.html()) == video.sub("", page)


def test_a_bare_report_leaves_out_what_it_has_not(results, tmp_path):
    bare = replace(results[1], single_latency=replace(results[1].single_latency, seconds=()), provenance={}, policy="")
    file = Report("Bare", [bare]).write(tmp_path)
    text = file.read_text(encoding="utf-8")
    assert file == tmp_path / "report.html"
    assert not any(f"<h2>{h}</h2>" in text for h in ("Episodes", "Learning curve", "Sent actions", "Decision latency"))
    assert "No command had to be altered" in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_partial_evaluation_is_marked(results):
    partial = replace(results[1], episodes=results[1].episodes[:7])
    assert "is partial:</b> 7 of 20 episodes" in Report("Partial", [partial]).html()
    nothing = replace(results[1], episodes=())
    assert "is partial:</b> 0 of 20 episodes" in Report("Nothing", [nothing]).html()


def test_reports_refuse_what_does_not_belong_together(results, recordings, tmp_path):
    with pytest.raises(RefusedError, match="its own name"):
        Report("Twice", [results[0], results[0]])
    with pytest.raises(RefusedError, match="its own name"):
        Report("None", [])
    with pytest.raises(RefusedError, match=r"Recordings of \['other'\]"):
        Report("Stray", results, recordings={"other": recordings})
    with pytest.raises(RefusedError, match=r"lacks \['third'\]"):
        Report("Third", [*results, replace(results[0], policy="third")], comparison=compare(results)).html()
    with pytest.raises(RefusedError, match=r"Cannot write .*missing/report\.html"):
        Report("Nowhere", results).write(tmp_path / "missing" / "report.html")


def test_learning_curves_need_something_to_show():
    assert learning_curve([]) is None
    assert learning_curve([{"step": 1, "time/update_s": 0.1}]) is None
    assert learning_curve([{"step": 1, "train/loss": None}]) is None
    assert learning_curve(METRICS).startswith("<svg")


def test_grid_worked_by_hand():
    # Two 2x2 clips of 1 and 2 pictures, border 1: cells of 4x4 side by side.
    short, long = np.full((1, 2, 2, 3), 10, np.uint8), np.stack([np.full((2, 2, 3), v, np.uint8) for v in (20, 30)])
    grid = grid_video([short, long], successes=[True, False], columns=2, border=1)
    assert grid.shape == (2, 4, 8, 3)
    assert (grid[:, 0, :4] == SUCCESS_COLOR).all()
    assert (grid[:, :, 4] == FAILURE_COLOR).all()
    assert grid[:, 1, 1, 0].tolist() == [10, 10]  # the shorter clip stays at its last picture
    assert grid[:, 1, 5, 0].tolist() == [20, 30]
    three = grid_video([short] * 3, successes=[True] * 3, border=1)
    assert three.shape == (1, 8, 8, 3)
    assert (three[0, 4:, 4:] == 255).all()  # an empty cell is white


def test_videos_are_written_by_suffix(tmp_path):
    frames = np.zeros((6, 32, 32, 3), np.uint8)
    frames[:, :, :16] = SUCCESS_COLOR
    for i in range(6):
        frames[i, 5 * i : 5 * i + 5] = 255
    write_video(tmp_path / "clip.mp4", frames, 10.0)
    decoded, _ = decode((tmp_path / "clip.mp4").read_bytes())
    assert decoded.shape == frames.shape
    write_video(tmp_path / "clip.gif", frames, 10.0)
    with Image.open(tmp_path / "clip.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (6, 100, 0)
        gif.seek(3)
        np.testing.assert_allclose(np.asarray(gif.convert("RGB")).astype(int), frames[3], atol=4)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((2, 16, 16), np.uint8), r"got \(2, 16, 16\) uint8"),
        (np.zeros((2, 16, 16, 3), np.float32), "float32"),
        (np.zeros((0, 16, 16, 3), np.uint8), "t > 0"),
        (np.zeros((2, 15, 16, 3), np.uint8), "even height and width, got 15 x 16"),
    ],
)
def test_bad_frames_are_refused(frames, words):
    with pytest.raises(RefusedError, match=words):
        encode_mp4(frames, 10.0)


def test_bad_videos_are_refused(tmp_path):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(RefusedError, match=r"\.mp4 or \.gif, not '\.avi'"):
        write_video(tmp_path / "clip.avi", frames, 10.0)
    with pytest.raises(RefusedError, match="Cannot write"):
        write_video(tmp_path / "missing" / "clip.mp4", frames, 10.0)
    with pytest.raises(RefusedError, match="clips of one size"):
        grid_video([frames, frames[:, :8]], successes=[True, True])
