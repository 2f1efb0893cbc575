"""The README's commands and snippets work as they stand."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from robolearn import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = ["data.episodes=2", "env.num_envs=2", "train.steps=2", "train.batch_size=4", "train.warmup_steps=1"]
TINY += ["evaluate.episodes=1", "env.task=native_lift", "env.fidelity=native"]
REFINED = ["env.task=native_lift", "env.fidelity=native", "env.num_envs=2", "online.env_steps=40", "online.learning_starts=16"]
REFINED += ["online.warmup_steps=20", "online.batch_size=8", "validation_episodes=1"]


def commands() -> list[list[str]]:
    lines = [line.split("#")[0] for line in README.splitlines() if line.startswith(".venv/bin/robolearn")]
    return [shlex.split(line)[1:] for line in lines]


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 100
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"quickstart", "test"} <= set(re.findall(r"make (\w+)", README)) <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_snippet_runs(snippet: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Run every command of the README with a tiny task in place of Can; ``runs/other`` is made by evaluating a baseline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    recipe = ["--recipe", "configs/can_diffusion.yaml"]

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["robolearn", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capfd.readouterr()
        assert not stop.value.code, captured.out + captured.err

    for arguments in commands():
        if arguments[0] in ("collect", "train"):
            run(*arguments, *TINY, "data.path=data/can")
        elif arguments[0] == "teleop":
            open_the_page_and_interrupt(arguments)
        elif arguments[0] == "refine":
            run(*arguments, *REFINED)
        elif arguments[0] == "table":
            run(*arguments, "--report")  # tests/system/test_table_command.py makes a whole one
        elif arguments[0] == "compare":
            run("evaluate", "hold", *TINY, *recipe, "--out", "runs/other", "--videos", "0")
            run(*arguments)
        elif arguments[0] == "evaluate":
            run(*arguments, "--videos", "1")
        else:
            run(*arguments)


def open_the_page_and_interrupt(arguments: list[str]) -> None:
    """Start a session, fetch the page at the address that it prints, and end it as a person does: with Ctrl-C."""
    command = [sys.executable, "-m", "robolearn.cli", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as session:
        assert session.stdout is not None
        address = re.search(r"http://\S+", session.stdout.readline())
        assert address, "the first line says where the page is"
        with urllib.request.urlopen(address[0], timeout=30) as page:
            assert b"robolearn teleop" in page.read()
        session.send_signal(signal.SIGINT)
        assert "0 episodes" in session.stdout.read()
    assert session.returncode == 0
