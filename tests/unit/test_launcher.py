"""Reserved ROS domains: what one process holds, no other one gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from robolearn.deploy import launcher
from robolearn.deploy.launcher import reserve_domain

ASK = "from robolearn.deploy.launcher import reserve_domain; print(reserve_domain()[0])"


def test_domains_are_distinct_until_they_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "RESERVATIONS", tmp_path)
    (first, held), (second, other) = reserve_domain(), reserve_domain()
    assert (first, second) == (1, 2)
    held.close()
    with reserve_domain()[1], other:
        assert reserve_domain()[0] == 3  # 1 was given back and taken again


def test_another_process_gets_another_domain_whatever_its_temporary_folder(tmp_path: Path) -> None:
    domain, held = reserve_domain()
    with held:
        environ = {"TMPDIR": str(tmp_path), "PATH": ""}
        done = subprocess.run([sys.executable, "-c", ASK], env=environ, capture_output=True, text=True, check=True)
    assert int(done.stdout) != domain
