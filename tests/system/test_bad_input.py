"""Every kind of bad input, through the command line: exit code 2, the fault named, nothing overwritten and nothing left behind.

Each test of a kind goes further than the one case here: formats in tests/unit/test_formats.py, test_lerobot_format.py and
tests/ros, damage of stores in test_verify_and_repair.py, disks in test_durability.py, the page's origin and token in
test_teleop_server.py, and any damage at all in tests/bench/fuzz_importers.py.
"""

import json
import resource
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from robolearn import cli
from robolearn.commands.data_convert import known_formats
from robolearn.core.types import ENVIRONMENT_STATE, STATE, Episode, FeatureSpec, Spaces
from robolearn.data.convert import export_episodes
from robolearn.data.formats.exchange import ExportOptions, StoreSource
from robolearn.data.header import T_WALL
from robolearn.data.store import EpisodeStore

UNSAID = ["--task", "lift", "--robot", "panda", "--rate", "20", "--fidelity", "real", "--success", "yes"]


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Return a function that runs a command and returns what it said; the folder must be as it was before."""

    def call(*arguments, leaves=()):
        before = snapshot(tmp_path)
        monkeypatch.setattr(sys, "argv", ["robolearn", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "500")
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capfd.readouterr()
        said = " ".join((printed.out + printed.err).split())
        assert stop.value.code == 2, said
        assert "Traceback" not in said
        after = snapshot(tmp_path)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert changed <= set(leaves), said
        return said

    return call


def snapshot(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def make_store(path, *, rate_hz=20.0, state=3, lengths=(5, 7)):
    spaces = Spaces(
        "panda",
        {STATE: FeatureSpec((state,)), ENVIRONMENT_STATE: FeatureSpec((2,))},
        FeatureSpec((2,)),
        (-1.0, -1.0),
        (1.0, 1.0),
        rate_hz,
    )
    rng = np.random.default_rng(0)
    with EpisodeStore.create(path, spaces, task="lift", fidelity="exact") as store:
        for length in lengths:
            data = {
                key: rng.uniform(-1, 1, (length, *spec.shape)).astype(spec.dtype)
                for key, spec in store.header.streams.items()
                if key != T_WALL
            }
            store.append(Episode({**data, T_WALL: 1.7e9 + np.arange(length) / rate_hz}, True, 0, {}))
    return path


def make_hdf5(path, lengths=(4, 6), **changes):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "lift", "env_kwargs": {"control_freq": 20, "robots": ["Panda"]}})
        for index, length in enumerate(lengths):
            demo = data.create_group(f"demo_{index}")
            demo["actions"] = np.zeros((length, 2))
            demo["obs/object"] = np.ones((length, 3), np.float32)
        for place, value in changes.items():
            data.pop(place, None)
            data[place] = value
    return path


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def to_format(store, path, name):
    formats = known_formats()
    export_episodes(StoreSource(EpisodeStore.open(store)), formats[name], path, ExportOptions(), lambda phase, steps: None)


@pytest.fixture(scope="module")
def written_lerobot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot")
    to_format(make_store(folder / "s"), folder / "set", "lerobot")
    (folder / "set/meta/robolearn.json").unlink()  # what is only ours, so that it is a stranger's
    return folder / "set"


@pytest.fixture
def lerobot(written_lerobot, tmp_path):
    return Path(shutil.copytree(written_lerobot, tmp_path / "set"))


def test_a_corrupt_episode(tmp_path, refused):
    store = make_store(tmp_path / "s")
    file = store / "episodes/000001.zarr.zip"
    content = bytearray(file.read_bytes())
    content[200:260] = bytes(60)
    file.write_bytes(content)
    assert "000001.zarr.zip is damaged" in refused("data", "convert", store, tmp_path / "x.hdf5", "--to", "robomimic")


def test_truncated_files(tmp_path, refused):
    store = make_store(tmp_path / "s")
    file = store / "episodes/000001.zarr.zip"
    file.write_bytes(file.read_bytes()[:-100])
    assert "000001.zarr.zip" in refused("data", "info", store)
    whole = make_hdf5(tmp_path / "x.hdf5").read_bytes()
    (tmp_path / "x.hdf5").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused("data", "convert", tmp_path / "x.hdf5", tmp_path / "t", *UNSAID, "--from", "robomimic")


def test_another_version(tmp_path, refused, lerobot):
    store = make_store(tmp_path / "s")
    edit_json(store / "store.json", version=99)
    assert "version 99; this program reads" in refused("data", "info", store)
    edit_json(lerobot / "meta/info.json", codebase_version="v2.1")
    assert "of version 'v2.1'; 'v3.0' is read" in refused("data", "convert", lerobot, tmp_path / "t", *UNSAID)


def test_episodes_of_two_rates(tmp_path, refused, lerobot):
    a, b = make_store(tmp_path / "a"), make_store(tmp_path / "b", rate_hz=30.0)
    assert "control_rate_hz 20.0, but 30.0 is offered" in refused("data", "merge", a, b, "--out", tmp_path / "ab")
    # lerobot appends to a data set without looking at stamps: info.json says one rate, the frames have another.
    edit_json(lerobot / "meta/info.json", fps=10)
    said = refused("data", "convert", lerobot, tmp_path / "t", *UNSAID, "--rate", "10")
    assert "frame 1 is stamped 0.0500 s, at 10 fps it is due at 0.1000 s; episodes of another rate are mixed in" in said
    said = refused("data", "convert", lerobot, tmp_path / "t", *UNSAID)
    assert "control_rate_hz" in said, "what was said contradicts the file"


def test_episodes_of_two_sets_of_features(tmp_path, refused):
    a, b = make_store(tmp_path / "a"), make_store(tmp_path / "b", state=4)
    assert "observation.state" in refused("data", "merge", a, b, "--out", tmp_path / "ab")
    path = make_hdf5(tmp_path / "x.hdf5", **{"demo_1/obs/object": np.ones((6, 4), np.float32)})
    said = refused("data", "convert", path, tmp_path / "t", *UNSAID)
    assert "data/demo_1/obs/object is (6, 4) float32; (3,) per step" in said


def test_an_episode_without_steps(tmp_path, refused):
    path = make_hdf5(tmp_path / "x.hdf5", lengths=(4, 0))
    assert "data/demo_1/actions is empty" in refused("data", "convert", path, tmp_path / "t", *UNSAID)


def test_a_number_that_is_none(tmp_path, refused):
    bad = np.ones((6, 3), np.float32)
    bad[4, 1] = np.nan
    path = make_hdf5(tmp_path / "x.hdf5", **{"demo_1/obs/object": bad})
    said = refused("data", "convert", path, tmp_path / "t", *UNSAID)
    assert "stream 'observation.environment_state', step 4" in said
    assert "is nan" in said


def test_two_things_of_one_name(tmp_path, refused, lerobot):
    # The second picture used to take the first one's place, without a word.
    pictures = np.zeros((4, 8, 8, 3), np.uint8)
    names = {f"demo_0/obs/{name}": pictures for name in ("wrist", "wrist_image")}
    path = make_hdf5(tmp_path / "x.hdf5", lengths=(4,), **names)
    said = refused("data", "convert", path, tmp_path / "t", *UNSAID)
    assert "'obs/wrist' and 'obs/wrist_image' would both become the stream 'observation.images.wrist'" in said
    # Python keeps the last of two values for one name.
    info = lerobot / "meta/info.json"
    info.write_text(info.read_text().rstrip().removesuffix("}") + ', "fps": 20}')
    assert "it says 'fps' twice" in refused("data", "convert", lerobot, tmp_path / "t", *UNSAID)
    store = make_store(tmp_path / "s")
    assert "named twice" in refused("data", "merge", store, store, "--out", tmp_path / "ss")
    to_format(store, tmp_path / "x.zarr.zip", "zarr")
    with zipfile.ZipFile(tmp_path / "x.zarr.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("data/state/0.0", b"other")
    assert "names 'data/state/0.0' twice" in refused("data", "convert", tmp_path / "x.zarr.zip", tmp_path / "t")


def test_names_and_links_that_lead_out(tmp_path, refused, lerobot):
    store = make_store(tmp_path / "s")
    to_format(store, tmp_path / "x.zarr.zip", "zarr")
    with zipfile.ZipFile(tmp_path / "x.zarr.zip", "a") as archive:
        archive.writestr("../../evil", b"x")
    assert "'../../evil', which leads out of it" in refused("data", "convert", tmp_path / "x.zarr.zip", tmp_path / "t")
    path = make_hdf5(tmp_path / "x.hdf5", **{"demo_0/obs/evil": h5py.ExternalLink("/etc/passwd", "/")})
    assert "is a ExternalLink to '/etc/passwd'" in refused("data", "convert", path, tmp_path / "t", *UNSAID)
    edit_json(lerobot / "meta/info.json", data_path="../../{chunk_index:03d}/{file_index:03d}.parquet")
    assert "it may lead anywhere" in refused("data", "convert", lerobot, tmp_path / "t", *UNSAID)


def test_a_huge_header(tmp_path, refused):
    store = make_store(tmp_path / "s")
    to_format(store, tmp_path / "x.zarr", "zarr")
    edit_json(tmp_path / "x.zarr/data/state/.zarray", chunks=[12, 10**13])
    assert "claims" in refused("data", "convert", tmp_path / "x.zarr", tmp_path / "t")
    with (store / "store.json").open("r+b") as file:
        file.truncate((1 << 26) + 1)  # a sparse file, which takes no room
    assert "store.json is 67108865 bytes long; at most 67108864 are read" in refused("data", "info", store)


def test_a_folder_that_cannot_be_written(tmp_path, refused):
    a, b = make_store(tmp_path / "a"), make_store(tmp_path / "b")
    # Nobody can make a file in /proc, root included.
    assert "Cannot create an episode store at /proc/" in refused("data", "merge", a, b, "--out", "/proc/x")
    assert "/proc/.making.x.hdf5 cannot be written" in refused("data", "convert", a, "/proc/x.hdf5", "--to", "robomimic")


def test_a_full_disk(tmp_path, refused):
    """The kernel refuses to write more than some bytes to a file, which is met by the same lines as a full disk."""
    store = make_store(tmp_path / "s", lengths=(4000,))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        said = refused("data", "trim", store, tmp_path / "t", "--end", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the file would exceed the allowed file size" in said


def test_a_second_writer(tmp_path, refused):
    with EpisodeStore.open(make_store(tmp_path / "s"), "a"):
        assert "is being written by pid" in refused("data", "repair", tmp_path / "s")


def test_a_target_that_exists(tmp_path, refused):
    store = make_store(tmp_path / "s")
    (tmp_path / "x.hdf5").write_text("mine")
    assert "nothing is overwritten" in refused("data", "convert", store, tmp_path / "x.hdf5", "--to", "robomimic")
