"""Exchange formats: what goes out comes back bit for bit, and what is wrong is refused by name."""

import dataclasses
import json
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from episode_samples import CAMERA, assert_same, new_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robolearn.commands.data_convert import known_formats
from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, STATE, Episode, FeatureSpec, Spaces
from robolearn.data.convert import export_episodes, import_episodes, open_any
from robolearn.data.formats.exchange import ExportOptions, ImportOptions, StoreSource
from robolearn.data.formats.robomimic import SIM_STATE
from robolearn.data.store import EpisodeStore

FORMATS = known_formats()
UNSAID = ImportOptions(task="lift", robot="panda", control_rate_hz=20.0, fidelity="exact", success="yes")
QUICK = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def quiet(phase, steps):
    pass


def send(store_path, name, target, **how):
    return export_episodes(StoreSource(EpisodeStore.open(store_path)), FORMATS[name], target, ExportOptions(**how), quiet)


def back(source, target, options=None, name=None):
    opened = open_any(FORMATS, source, name, options or ImportOptions())
    try:
        return import_episodes(opened, target, quiet)
    finally:
        opened.close()


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "s"
    new_store(path, (7, 5, 12), camera=True).close()
    return path


TARGETS = [("robomimic", "x.hdf5"), ("zarr", "x.zarr"), ("zarr", "x.zarr.zip"), ("rosbag", "x")]


@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_round_trip_is_lossless_and_losses_are_said(tmp_path, sample, name, target):
    done = send(sample, name, tmp_path / target)
    assert done.lossless
    assert done.notes
    assert done.steps == 24
    assert back(tmp_path / target, tmp_path / "again").episodes == 3
    ours, theirs = EpisodeStore.open(sample), EpisodeStore.open(tmp_path / "again")
    assert theirs.checksum() == ours.checksum(), "streams, facts and header"
    assert_same(theirs.read(2), ours.read(2))


@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_nothing_is_overwritten(tmp_path, sample, name, target):
    (tmp_path / target).write_text("mine")
    with pytest.raises(RefusedError, match="nothing is overwritten"):
        send(sample, name, tmp_path / target)
    assert (tmp_path / target).read_text() == "mine"


@st.composite
def stores(draw):
    """A header of any streams that a store takes, and episodes of any finite numbers."""
    kinds = st.sampled_from(["float32", "float64", "int32", "uint8", "bool", "int16"])
    shapes = st.sampled_from([(), (1,), (3,), (2, 2)])
    extra = {f"x{i}": FeatureSpec(draw(shapes), draw(kinds)) for i in range(draw(st.integers(0, 2)))}
    spaces = Spaces("r", {STATE: FeatureSpec((2,), names=("a", "b"))}, FeatureSpec((2,)), (-1.0, -2.0), (1.0, 2.0), 10.0)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    episodes = []
    for length in draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)):
        streams = {STATE: spaces.observation[STATE], ACTION: spaces.action, **extra}
        data = {}
        for key, spec in streams.items():
            bits = rng.integers(-(2**15), 2**15, (length, *spec.shape))
            scale = 10.0 ** rng.integers(-30, 30) if np.dtype(spec.dtype).kind == "f" else 1
            data[key] = np.asarray(bits * scale).astype(spec.dtype)
        seed = draw(st.none() | st.integers(0, 2**40))
        note = draw(st.text(max_size=5))
        episodes.append(Episode(data, draw(st.booleans()), seed, {"note": note}))
    return spaces, extra, episodes


@pytest.mark.parametrize(("name", "target"), TARGETS)
@QUICK
@given(made=stores())
def test_any_store_comes_back(tmp_path_factory, name, target, made):
    spaces, extra, episodes = made
    folder = tmp_path_factory.mktemp("any")
    with EpisodeStore.create(folder / "s", spaces, task="t", fidelity="native", extra=extra) as store:
        for episode in episodes:
            store.append(episode)
    send(folder / "s", name, folder / target)
    back(folder / target, folder / "again")
    assert EpisodeStore.open(folder / "again").checksum() == EpisodeStore.open(folder / "s").checksum()


@pytest.mark.parametrize("compressor", ["zstd", "lz4", "lz4hc", "blosclz", "zlib", "none"])
def test_every_blosc_codec_of_a_replay_buffer_is_read(tmp_path, sample, compressor):
    send(sample, "zarr", tmp_path / "x.zarr", compressor=compressor)
    head = json.loads((tmp_path / "x.zarr/data/state/.zarray").read_text())
    assert head["zarr_format"] == 2
    assert (head["compressor"] or {}).get("cname", "none") == compressor
    back(tmp_path / "x.zarr", tmp_path / "again")


def strangers_zarr(sample, path):
    send(sample, "zarr", path)
    (path / ".robolearn.json").unlink()
    return path


def test_a_strangers_replay_buffer_needs_what_it_does_not_say(tmp_path, sample):
    path = strangers_zarr(sample, tmp_path / "x.zarr")
    with pytest.raises(RefusedError, match="does not say its task"):
        back(path, tmp_path / "again")
    back(path, tmp_path / "again", UNSAID)
    ours, theirs = EpisodeStore.open(sample), EpisodeStore.open(tmp_path / "again")
    assert theirs.lengths.tolist() == [7, 5, 12]
    np.testing.assert_array_equal(theirs.read(1).data[STATE], ours.read(1).data[STATE])
    np.testing.assert_array_equal(theirs.read(1).data["observation.images.agentview_image"], ours.read(1).data[CAMERA])
    low = min(ours.read(i).data[ACTION][:, 0].min() for i in range(3))
    assert theirs.header.spaces.action_low[0] == low, "bounds are the data's own range"


def edit_json(path, **changes):
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, **changes}))


ZARR_DAMAGE = {
    "imagecodecs_jpeg2k": lambda p: edit_json(p / "data/state/.zarray", compressor={"id": "imagecodecs_jpeg2k"}),
    r"'\|O'": lambda p: edit_json(p / "data/state/.zarray", dtype="|O"),
    "filters": lambda p: edit_json(p / "data/state/.zarray", filters=[{"id": "pickle"}]),
    "zarr_format 3": lambda p: edit_json(p / "data/state/.zarray", zarr_format=3),
    "claims .* bytes": lambda p: edit_json(p / "data/state/.zarray", shape=[24, 3], chunks=[24, 10**12]),
    "0 of 1 chunks": lambda p: (p / "data/state/0.0").unlink(),
    "truncated": lambda p: (p / "data/state/0.0").write_bytes((p / "data/state/0.0").read_bytes()[:-5]),
    "is a link": lambda p: (p / "data/state/0.1").symlink_to("/etc/passwd"),
    "episode_ends is missing": lambda p: (p / "meta/episode_ends/.zarray").unlink(),
    "has 0 steps": lambda p: (p / "meta/episode_ends/0").write_bytes(struct.pack("<3q", 7, 7, 24)),
    "ends at 30": lambda p: (p / "meta/episode_ends/0").write_bytes(struct.pack("<3q", 7, 12, 30)),
}


@pytest.mark.parametrize("word", ZARR_DAMAGE)
def test_a_damaged_or_hostile_replay_buffer_is_refused_by_name(tmp_path, sample, word):
    path = strangers_zarr(sample, tmp_path / "x.zarr")
    ZARR_DAMAGE[word](path)
    with pytest.raises(RefusedError, match=word):
        back(path, tmp_path / "again", UNSAID, "zarr")
    assert not (tmp_path / "again").exists()


def test_a_zip_that_leads_out_or_is_cut_is_refused(tmp_path, sample):
    send(sample, "zarr", tmp_path / "x.zarr.zip")
    whole = (tmp_path / "x.zarr.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.zarr.zip", "a") as archive:
        archive.writestr("../../evil", b"x")
    with pytest.raises(RefusedError, match="leads out of it"):
        back(tmp_path / "x.zarr.zip", tmp_path / "again")
    (tmp_path / "y.zarr.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RefusedError, match="no ZIP file"):
        back(tmp_path / "y.zarr.zip", tmp_path / "again", name="zarr")


def strangers_hdf5(path, **changes):
    """What robosuite's collection script writes: states and actions."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20, "robots": ["Panda"]}})
        for index, length in enumerate((4, 6)):
            demo = data.create_group(f"demo_{index}")
            demo["actions"] = np.linspace(-1, 1, length * 2).reshape(length, 2)
            demo["states"] = np.zeros((length, 5))
            demo["obs/object"] = np.ones((length, 3), np.float32)
            for name, change in changes.items():
                demo.pop(name, None)
                change(demo, name)
    return path


def test_a_strangers_hdf5_is_read_with_its_own_names(tmp_path):
    path = strangers_hdf5(tmp_path / "x.hdf5")
    back(path, tmp_path / "s", ImportOptions(fidelity="reference", success="yes"))
    store = EpisodeStore.open(tmp_path / "s")
    assert (store.header.task, store.header.spaces.robot, store.header.spaces.control_rate_hz) == ("Lift", "panda", 20.0)
    assert store.lengths.tolist() == [4, 6]
    assert store.successes.all()
    assert store.read(0).data[SIM_STATE].shape == (4, 5)
    assert list(store.header.spaces.observation) == ["observation.environment_state"]
    with pytest.raises(RefusedError, match="says task 'Lift', but 'Can'"):
        back(path, tmp_path / "t", ImportOptions(task="Can", fidelity="reference", success="yes"))
    with pytest.raises(RefusedError, match="--success yes, no or reward"):
        back(path, tmp_path / "t", ImportOptions(fidelity="reference"))


CONTRADICTIONS = {
    "says task 'lift', but 'other' is asked for": {"task": "other"},
    "says robot 'panda', but 'ur5'": {"robot": "ur5"},
    "says control_rate_hz 20.0, but 50.0": {"control_rate_hz": 50.0},
    "says fidelity 'exact', but 'real'": {"fidelity": "real"},
    "says success True of episode 0; --success no contradicts it": {"success": "no"},
    "has no rewards, so --success reward cannot be told": {"success": "reward"},
}


@pytest.mark.parametrize("words", CONTRADICTIONS)
@pytest.mark.parametrize("name", ["store", "zarr"])
def test_what_contradicts_a_file_that_says_it_itself_is_refused(tmp_path, sample, name, words):
    # Files of our own have everything in them; what was said beside was passed over, and success was reported.
    path = sample if name == "store" else tmp_path / "x.zarr.zip"
    if name == "zarr":
        send(sample, name, path)
    with pytest.raises(RefusedError, match=words):
        back(path, tmp_path / "t", ImportOptions(**CONTRADICTIONS[words]))
    assert not (tmp_path / "t").exists()
    back(path, tmp_path / "t", UNSAID)


@pytest.mark.parametrize("rate", [-5.0, 0.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(tmp_path, rate):
    # A stranger's file became a store of -5 Hz.
    path = strangers_hdf5(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift"})
    with pytest.raises(RefusedError, match=r"control_rate_hz=.* must be positive and finite"):
        back(path, tmp_path / "s", dataclasses.replace(UNSAID, task=None, control_rate_hz=rate))


def put(value):
    return lambda demo, name: demo.__setitem__(name, value)


HDF5_DAMAGE = {
    "ExternalLink": {"evil": put(h5py.ExternalLink("/etc/passwd", "/"))},
    "SoftLink": {"evil": put(h5py.SoftLink("/data"))},
    "objects never": {"evil": lambda demo, name: demo.create_dataset(name, data=["text"], dtype=h5py.string_dtype())},
    "a loop": {"evil": lambda demo, name: demo.__setitem__(name, demo.parent)},
    "claims .* bytes": {"evil": lambda demo, name: demo.create_dataset(name, shape=(10**14,), chunks=(1000,), dtype="f8")},
    "not finite": {"actions": put(np.full((4, 2), np.nan))},
    "is empty": {"actions": put(np.zeros((0, 2)))},
    "virtual or external": {
        "evil": lambda demo, name: demo.create_dataset(name, shape=(4,), dtype="u1", external=[("/etc/passwd", 0, 4)])
    },
    "differ in length": {"actions": put(np.zeros((3, 2)))},
}


@pytest.mark.parametrize("word", HDF5_DAMAGE)
def test_a_damaged_or_hostile_hdf5_is_refused_by_name(tmp_path, word):
    path = strangers_hdf5(tmp_path / "x.hdf5", **HDF5_DAMAGE[word])
    with pytest.raises(RefusedError, match=word):
        back(path, tmp_path / "s", ImportOptions(fidelity="reference", success="yes"))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["x.hdf5", "x.zarr.zip"])
@QUICK
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path_factory, sample, name, data):
    folder = tmp_path_factory.getbasetemp()
    original = folder / f"original_{name}"
    if not original.exists():
        send(sample, "robomimic" if name.endswith("5") else "zarr", original)
    content = bytearray(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 20_000) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    mutated = folder / f"mutated_{name}"
    mutated.write_bytes(content)
    try:
        opened = open_any(FORMATS, mutated, "robomimic" if name.endswith("5") else "zarr", UNSAID)
        try:
            for index in range(len(opened)):
                for rows in opened.episode(index).data.values():
                    np.asarray(rows[slice(0, rows.shape[0])])
        finally:
            opened.close()
    except RefusedError:
        pass  # anything else, a crash or a hang fails the test


def test_the_bags_refuse_a_type_that_they_cannot_hold(tmp_path):
    spaces = Spaces("r", {STATE: FeatureSpec((1,))}, FeatureSpec((1,)), (-1.0,), (1.0,), 10.0)
    with EpisodeStore.create(tmp_path / "s", spaces, task="t", fidelity="native", extra={"n": FeatureSpec((), "int64")}) as store:
        store.append(Episode({STATE: np.zeros((1, 1), "f4"), ACTION: np.zeros((1, 1), "f4"), "n": np.array([2**53 + 1])}, True))
    with pytest.raises(RefusedError, match="int64, which that cannot hold exactly"):
        send(tmp_path / "s", "rosbag", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert not Path(tmp_path / ".making.x").exists()
