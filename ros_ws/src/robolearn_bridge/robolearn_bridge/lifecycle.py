"""A lifecycle node that no message, service call or exception can bring down, and the process around it."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from rclpy import init, ok, try_shutdown
from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from robolearn.core.errors import RefusedError
from robolearn_bridge.parameters import read, require_declared

type Transition = Callable[[], None]

END_WITHIN_S = 7
"""A process that was asked to end is gone after this time, whatever hangs in it: the kernel ends it then [s]."""
SPIN_S = 0.2
"""How often the executor looks whether it is over; its own wake-up is lost if it comes between two waits."""


class SafeLifecycleNode(LifecycleNode):
    """Lifecycle node with guarded callbacks.

    Subclasses override :meth:`configure`, :meth:`activate`, :meth:`deactivate` and :meth:`cleanup`, which raise to refuse; and
    :meth:`stop`, the last thing that the process does. rclpy 7.1.6 swallows exceptions in transitions, ends the process on one in
    a callback, and dies on an illegal transition that anybody on the network may ask for; all three are caught here.
    """

    # rclpy registers its own, name-mangled method as the service callback; this takes its place.
    def _LifecycleNodeMixin__on_change_state(self, request: Any, response: Any) -> Any:  # noqa: N802
        allowed = {(t[0], t[1]) for t in self._state_machine.available_transitions}
        label, number = request.transition.label, request.transition.id
        match = next((t for t in allowed if (t[1] == label if label else t[0] == number)), None)
        if match is None:
            state = self._state_machine.current_state[1]
            self.get_logger().warning(
                f"refused lifecycle transition {label or number!r} in state {state!r}; allowed: {sorted(allowed)}"
            )
            response.success = False
            return response
        code = self._LifecycleNodeMixin__change_state(match[0])
        response.success = code == TransitionCallbackReturn.SUCCESS
        return response

    def configure(self) -> None:
        """Read parameters, load what is heavy, make publishers and subscriptions."""

    def activate(self) -> None:
        """Allow output."""

    def deactivate(self) -> None:
        """Stop output; whatever goes to a robot ends with its safe command."""

    def cleanup(self) -> None:
        """Undo :meth:`configure`."""

    def stop(self) -> None:
        """End output before the process ends, in whatever state it is."""

    def fault(self, where: str, error: BaseException) -> None:
        """React to an exception in a callback; the gate overrides it to stop the robot."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """See :class:`rclpy.lifecycle.LifecycleNode`."""
        return self._transition("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """See :class:`rclpy.lifecycle.LifecycleNode`."""
        done = super().on_activate(state)
        return done if done != TransitionCallbackReturn.SUCCESS else self._transition("activate", self.activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """See :class:`rclpy.lifecycle.LifecycleNode`."""
        # Ours first: the safe command must leave before the publishers fall silent.
        done = self._transition("deactivate", self.deactivate)
        super().on_deactivate(state)
        return done

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """See :class:`rclpy.lifecycle.LifecycleNode`."""
        return self._transition("cleanup", self.cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """See :class:`rclpy.lifecycle.LifecycleNode`."""
        return self._transition("shutdown", self.stop)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured, so that a fixed cause can be tried again."""
        self._transition("error", self.stop)
        return self._transition("cleanup", self.cleanup)

    def guarded(self, callback: Callable[..., Any], where: str) -> Callable[..., Any]:
        """Return ``callback`` with its exceptions logged and passed to :meth:`fault`; a service then answers success=False."""

        def call(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception as error:
                if not isinstance(error, RefusedError):
                    self.get_logger().error(f"{where}: {traceback.format_exc()}")
                self.fault(where, error)
                if len(arguments) == 2 and hasattr(arguments[1], "success"):
                    arguments[1].success, arguments[1].message = False, str(error)
                    return arguments[1]
                return None

        return call

    def _configure(self) -> None:
        if read(self, "use_sim_time"):
            raise RefusedError("use_sim_time=true: nodes run on the steady clock, and a stopped /clock must not stop them.")
        self.configure()

    def _transition(self, name: str, action: Transition) -> TransitionCallbackReturn:
        try:
            action()
        except RefusedError as error:
            self.get_logger().error(f"{name} refused: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().error(f"{name} failed: {traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS


def run(make_node: Callable[[], SafeLifecycleNode]) -> int:
    """Run one node until SIGINT or SIGTERM and return the exit code of the process.

    The executor spins in its own thread and the main thread waits for the signal: so the signal is seen at once, and the context
    is still whole when :meth:`SafeLifecycleNode.stop` sends the safe command (rclpy's own handlers would have shut it down).
    """
    try:
        made = _Process(make_node)
    except (RefusedError, RCLError) as error:
        return _refused(error)
    with made as process:
        process.wait()
        # At once, whatever a callback is doing: the safe command does not wait for it.
        process.node.stop()
        process.join()
        # Again: what a transition under way has started meanwhile (a control loop, a worker) would outlive it.
        process.node.stop()
    return process.exit_code


def run_plain(make_node: Callable[[], Any]) -> int:
    """Run a node that has a job (``work()``) and ends with it; return the exit code, 2 if something was refused."""
    try:
        made = _Process(make_node)
    except (RefusedError, RCLError) as error:
        return _refused(error)
    with made as process:
        worker = threading.Thread(target=process.do, args=(process.node.work,), name="work", daemon=True)
        worker.start()
        process.wait()
        process.join()
    return process.exit_code


def _refused(error: Exception) -> int:
    """Say why a node was not made (a parameter file that is no YAML, a value of another type) and return the exit code."""
    sys.stderr.write(f"robolearn: {error}\n")
    try_shutdown()
    return 2


class _Process:
    """A node, its executor in a thread of its own, and the end of both."""

    def __init__(self, make_node: Callable[[], Any]) -> None:
        self.stopping = threading.Event()
        # A second signal inside Event.set() would wait for the first one's lock for ever; SimpleQueue.put may be entered again.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.exit_code = 0
        # Until the node is made nothing can move, and a signal may end the process even inside a middleware that hangs.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        init(signal_handler_options=SignalHandlerOptions.NO)
        self.node = make_node()
        require_declared(self.node)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._spinner = threading.Thread(target=self.do, args=(self._spin,), name="executor")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._asked.put(None))

    def wait(self) -> None:
        """Wait for the end, and have the kernel see to it: an alarm that is not handled needs neither Python nor its lock."""
        self._asked.get()
        self.stopping.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # asked once is enough: the next one must not cut off the end
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(END_WITHIN_S)

    def join(self) -> None:
        """Wait for the callback under way; no other one begins."""
        self._spinner.join()

    def _spin(self) -> None:
        while not self.stopping.is_set() and ok():
            self._executor.spin_once(timeout_sec=SPIN_S)

    def do(self, action: Callable[[], None]) -> None:
        """Run ``action``; when it returns or raises, the process ends."""
        try:
            action()
        except ExternalShutdownException:
            pass
        except RefusedError as error:
            self.node.get_logger().error(str(error))
            self.exit_code = 2
        except Exception as error:
            # A wait set of a context that is being shut down; anything else is a defect.
            if not (isinstance(error, RCLError) and (self.stopping.is_set() or not ok())):
                self.node.get_logger().error(f"ended: {traceback.format_exc()}")
                self.exit_code = 1
        finally:
            self._asked.put(None)

    def __enter__(self) -> _Process:
        self._spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A spinning thread that outlives the interpreter aborts the process.
        self.stopping.set()
        self._spinner.join()
        self._executor.shutdown()
        self.node.destroy_node()
        try_shutdown()
