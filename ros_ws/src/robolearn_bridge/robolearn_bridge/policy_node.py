"""Sensor streams in, stamped chunks of actions out; never commands the robot itself."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import ContinuingPolicy, CorrectingPolicy, Policy
from robolearn.core.run import read_json
from robolearn.core.seeding import generator
from robolearn.deploy.bundle import open_bundle
from robolearn.deploy.chunk import StepClock
from robolearn.deploy.codecs import decode, stamp_ns
from robolearn.deploy.engine import DELAY_QUANTILE, Engine
from robolearn.deploy.executor import ExecutorConfig
from robolearn.deploy.streams import Frame, Resampler, StreamsNotReadyError
from robolearn_bridge.diagnostics import report
from robolearn_bridge.lifecycle import SafeLifecycleNode, run
from robolearn_bridge.messages import COMMAND_QOS, SENSOR_QOS, chunk_message, message_class
from robolearn_bridge.parameters import declare, read, read_choice


class PolicyNode(SafeLifecycleNode):
    """Runs the policy of a bundle on the robot's streams.

    Subscriptions only copy samples into the resampler; decisions are made in a worker thread. A frame that lacks a stream, or has
    one that is too old, gives no chunk: the gate then finds the policy silent and stops.
    """

    def __init__(self) -> None:
        super().__init__("policy_node")
        declare(self, "bundle", "", "Folder of the bundle.", read_only=True)
        declare(self, "robot", "", "Name of the robot at hand; must be the bundle's.", read_only=True)
        declare(
            self, "sync", "realtime", "'realtime', or 'lockstep' with a simulator that waits for each command.", read_only=True
        )
        declare(self, "device", "cpu", "Torch device.", read_only=True)
        declare(self, "threads", 1, "Torch threads.", read_only=True)
        declare(
            self,
            "continuation",
            "bundle",
            "How a new chunk continues the one under way: as the 'bundle' says, or 'switch', 'blend', 'guided', 'trained'.",
            read_only=True,
        )
        declare(
            self,
            "delay_quantile",
            DELAY_QUANTILE,
            "Of the newest decisions' durations, the one expected of the next.",
            read_only=True,
        )
        declare(
            self,
            "background",
            True,
            "Correct the plan under way while a decision takes a control step or more; in realtime, of a policy that corrects.",
            read_only=True,
        )
        declare(self, "episode_seed", 0, "Seeds the policy's randomness at the next reset.")
        self._worker: threading.Thread | None = None

    def configure(self) -> None:
        """Load the bundle, decide once as a warm-up, subscribe."""
        self._bundle = open_bundle(Path(read(self, "bundle")))
        self._bundle.require_robot(read(self, "robot"))
        lockstep = read_choice(self, "sync", ("lockstep", "realtime")) == "lockstep"
        import torch

        from robolearn.policies.loading import load_policy, trained_delay

        torch.set_num_threads(read(self, "threads"))
        spaces, contract = self._bundle.spaces, self._bundle.contract
        policy = load_policy(self._bundle.policy, read(self, "device"), spaces=spaces)
        self._executor = self._executor_config(lockstep=lockstep)
        longest = self._require_continuing(policy, trained_delay(policy))
        self._engine = Engine(
            policy,
            self._executor,
            clock=time.perf_counter,
            novelty=self._bundle.novelty,
            delay_quantile=read(self, "delay_quantile"),
            longest_delay=longest,
            background=read(self, "background") and not lockstep and isinstance(policy, CorrectingPolicy),
        )
        warm_up_s = self._engine.warm_up()
        self.get_logger().info(f"bundle {self._bundle.name}: warm-up {warm_up_s * 1e3:.0f} ms")
        self._period_ns = round(1e9 / spaces.control_rate_hz)
        self._resampler = Resampler(contract, spaces)
        self._steps = StepClock(1 / spaces.control_rate_hz, lockstep=lockstep)
        # More steps than the history and the plan are long change nothing.
        self._longest = policy.obs_horizon + policy.pred_horizon
        # Two locks: samples must go on arriving while a decision is made.
        self._wake, self._engine_lock = threading.Condition(), threading.Lock()
        self._acting = self._closing = False
        self._pending: list[tuple[int, Frame]] = []
        self._episode = 0
        self._counts = {"chunks": 0, "frames_skipped": 0, "frames_refused": 0, "samples_refused": 0}
        self._last_refusal = self._failure = ""
        self._chunks = self.create_lifecycle_publisher(JointTrajectory, "policy/chunk", COMMAND_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", COMMAND_QOS)
        self._inputs = [
            self.create_subscription(
                message_class(contract.streams[name].kind),
                contract.streams[name].topic,
                self.guarded(partial(self._on_sample, name), f"stream {name}"),
                SENSOR_QOS,
            )
            for name in self._resampler.streams
        ]
        self._offered = [
            self.create_service(Trigger, f"~/{name}", self.guarded(call, name))
            for name, call in (("reset", self._on_reset), ("start", self._on_start), ("stop", self._on_stop))
        ]
        self._timer = self.create_timer(1.0, self.guarded(self._report, "diagnostics"))
        self._reset_engine()
        self._worker = threading.Thread(target=self._work, name="policy")
        self._worker.start()

    def _executor_config(self, *, lockstep: bool) -> ExecutorConfig:
        """Return the bundle's, with the continuation that was asked for in its place, by the measured delay."""
        config = self._bundle.executor
        wanted = read_choice(self, "continuation", ("bundle", "switch", "blend", "guided", "trained"))
        if wanted != "bundle":
            config = replace(config, continuation=wanted, delay_steps=None)
        # In lockstep the world waits, so that no step goes by during a decision.
        return replace(config, delay_steps=0) if lockstep and config.delay_steps is None else config

    def _require_continuing(self, policy: Policy, trained: int) -> int | None:
        """Refuse a policy that cannot continue chunks as is asked; return the longest delay that it may be given."""
        wanted = self._executor.continuation
        kind = read_json(self._bundle.policy / "config.json", what="policy checkpoint's description")["policy"]
        who = f"the policy {kind!r} of bundle {self._bundle.name}"
        if wanted in ("guided", "trained") and not isinstance(policy, ContinuingPolicy):
            raise RefusedError(f"continuation={wanted!r}: {who} cannot continue a chunk; 'switch' and 'blend' ask nothing of it.")
        if wanted == "trained" and trained == 0:
            raise RefusedError(f"continuation='trained': {who} was not trained for it (max_delay=0).")
        return trained if wanted == "trained" else None

    def deactivate(self) -> None:
        """Stop deciding."""
        self._set_acting(False)

    def cleanup(self) -> None:
        """Unload."""
        self.stop()
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        for service in self._offered:
            self.destroy_service(service)
        self.destroy_timer(self._timer)
        self.destroy_lifecycle_publisher(self._chunks)
        self.destroy_publisher(self._diagnostics)

    def stop(self) -> None:
        """End the worker."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        with self._wake:
            self._acting, self._closing = False, True
            self._wake.notify()
        worker.join()
        self._engine.close()

    def fault(self, where: str, error: BaseException) -> None:
        """A bad message is not used; the stream grows stale if it goes on."""
        self._counts["samples_refused"] += 1
        self._last_refusal = f"{where}: {error}"

    def _on_sample(self, stream: str, message: Any) -> None:
        spec = self._bundle.contract.streams[stream]
        sample = decode(spec.kind, message, spec.names)
        received = time.time_ns()
        with self._wake:
            self._resampler.push(stream, sample, stamp_ns=stamp_ns(message), received_ns=received)
            if not self._acting:
                return
            try:
                frame = self._resampler.take(newest=True)
            except StreamsNotReadyError as error:
                self._counts["frames_refused"] += 1
                self._last_refusal = str(error)
                return
            steps = self._steps.advance(frame.at_ns) if frame is not None else 0
            if frame is not None and steps:
                self._pending.append((steps, frame))
                if len(self._pending) > self._longest:
                    (forgotten, _), (steps, oldest) = self._pending[:2]
                    self._pending[:2] = [(forgotten + steps, oldest)]
                self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._pending and not self._closing:
                    self._wake.wait()
                if self._closing:
                    return
                frames, episode = self._pending, self._episode
                self._pending = []
            try:
                self._decide(frames, episode)
            except Exception as error:  # a defect of the policy: it asks for nothing more, and somebody has to look
                self.get_logger().error(f"decision: {traceback.format_exc()}")
                self._failure = f"the policy failed ({type(error).__name__}: {error})"
                self._set_acting(False)

    def _decide(self, frames: list[tuple[int, Frame]], episode: int) -> None:
        """Publish the chunk of the newest frame, unless the episode or the permission to act is over by then.

        The others came, or were due, while the last decision was made: they move history and queue on.
        """
        frame = frames[-1][1]
        with self._engine_lock:
            if episode != self._episode:
                return
            self._counts["frames_skipped"] += len(frames) - 1
            try:
                for steps, seen in frames:
                    for _ in range(min(steps - (seen is frame), self._longest)):
                        self._engine.skip(seen.observation)
                rows = self._engine.act(frame.observation)
            except RefusedError as error:
                self._counts["frames_refused"] += 1
                self._last_refusal = str(error)
                return
        if not self._acting or episode != self._episode:
            return
        novelty = self._engine.novelty
        # Of a single row the times do not tell for how long it holds.
        one = {"step_s": self._period_ns / 1e9} if len(rows) == 1 else {}
        source = json.dumps({"source": "policy"} | one | ({"novelty": novelty} if novelty is not None else {}))
        names = self._bundle.spaces.action.names
        self._chunks.publish(chunk_message(rows, names, stamp_ns=frame.at_ns, period_ns=self._period_ns, source=source))
        self._counts["chunks"] += 1

    def _reset_engine(self) -> None:
        with self._engine_lock:
            # This may wait for a decision; samples go on arriving.
            self._failure = ""
            self._engine.reset(generator(self._bundle.policy_seed, "episode", int(read(self, "episode_seed"))))
            with self._wake:
                self._episode += 1
                self._pending = []
                self._resampler.reset()
                self._steps.reset()

    def _set_acting(self, acting: bool) -> None:
        with self._wake:
            self._acting, self._pending = acting, []

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._acting:
            raise RefusedError("The policy is acting; stop it before it is reset.")
        self._reset_engine()
        response.success = True
        return response

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._state_machine.current_state[1] != "active":
            raise RefusedError(f"The policy node is {self._state_machine.current_state[1]}; activate it first.")
        if self._failure:
            raise RefusedError(f"{self._failure}; see the log, then reset it.")
        self._set_acting(True)
        response.success = True
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._set_acting(False)
        response.success = True
        return response

    def _report(self) -> None:
        ages = self._resampler.ages_s(time.time_ns())
        values = {
            "bundle": self._bundle.name,
            "acting": self._acting,
            "novelty": "not scored" if self._engine.novelty is None else self._engine.novelty,
            "fallen back to the base": self._engine.fallen_back,
            "continuation": self._executor.continuation,
            "expected delay [steps]": self._engine.expected_delay(),
            "decisions later than expected": self._engine.deadline_misses,
            "steps answered while deciding": self._engine.steps_while_deciding,
            "decision p50 [ms]": self._engine.latency_s(0.5) * 1e3,
            "decision p99 [ms]": self._engine.latency_s(0.99) * 1e3,
            **self._counts,
            **{f"age of {name} [s]": age for name, age in ages.items()},
            **{f"received of {name}": count for name, count in self._resampler.received.items()},
            **{f"dropped of {name}": count for name, count in self._resampler.dropped.items()},
        }
        problem = self._failure or self._last_refusal
        self._last_refusal = ""
        self._diagnostics.publish(report(self, problem, values))


def main() -> int:
    """Run the node."""
    return run(PolicyNode)


if __name__ == "__main__":
    sys.exit(main())
