"""What the child processes of test_durability do, apart from the test so that they import little."""

import os
import resource
import signal
import time

from episode_samples import episode, frame

from robolearn.core.errors import RefusedError
from robolearn.data import journal
from robolearn.data.header import T_WALL
from robolearn.data.store import EpisodeStore

RECORDED = 60


def write_until_killed(path, acknowledgements):
    """Append and record in turn for ever; say so after each append, frame and end."""
    with EpisodeStore.open(path, "a") as store:
        while True:
            number = len(store)
            if number % 2:
                store.append(episode(40, number))
            else:
                recording = store.record(seed=number, flush_interval_s=0.05)
                whole = episode(RECORDED, number)
                for step in range(RECORDED):
                    recording.add_frame(frame(whole, step), t_wall=float(whole.data[T_WALL][step]))
                    os.write(acknowledgements, f"frame {number} {step + 1}\n".encode())
                    time.sleep(0.001)
                recording.finish(success=True)
            os.write(acknowledgements, f"episode {number}\n".encode())


def write_and_log(path, log):
    write_until_killed(path, os.open(log, os.O_WRONLY | os.O_APPEND))


def begin_recording_and_die(path):
    """Be killed between the creation of a journal and its first byte."""
    journal.write_all = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    with EpisodeStore.open(path, "a") as store:
        store.record()


def append_beyond_the_limit(path, sender):
    with EpisodeStore.open(path, "a") as store:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            store.append(episode(30, camera=True))
        except RefusedError as error:
            sender.send(str(error))


def open_as_nobody(path, sender):
    if os.geteuid() == 0:  # permissions do not bind root
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        EpisodeStore.open(path, "a")
        refused = ""
    except RefusedError as error:
        refused = str(error)
    sender.send((refused, len(EpisodeStore.open(path))))
