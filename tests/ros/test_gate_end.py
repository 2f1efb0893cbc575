"""A gate that is asked to end by a signal."""

from __future__ import annotations

import os
import signal

from harness import FakeArm, move, reach, require_rest_then_silence, wait_until

from robolearn.deploy.launcher import Launched


def test_sigterm_ends_with_a_command_at_rest(arm: FakeArm, launched: Launched) -> None:
    """Alone in its file: the module's gate ends here."""
    arm.bring_up()
    move(arm, reach(arm, 1.0))
    os.kill(launched.pid("gate_node"), signal.SIGTERM)
    wait_until(lambda: launched.exit_code("gate_node") == 0, what="exit code 0")
    require_rest_then_silence(arm)
