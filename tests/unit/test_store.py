import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from episode_samples import CAMERA, assert_same, episode, new_store, spaces

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, STATE, FeatureSpec
from robolearn.data import folder
from robolearn.data.header import ACTION_SENT, REWARD, T_WALL, StoreHeader, seal, standard_extra, unseal
from robolearn.data.store import EpisodeStore


def test_episodes_come_back_bit_for_bit_with_their_facts(tmp_path):
    with new_store(tmp_path / "s", camera=True) as store:
        assert store.append(episode(7, 1, camera=True)) == 0
        assert store.append(episode(30, 2, camera=True, success=False)) == 1
    with EpisodeStore.open(tmp_path / "s") as store:
        assert len(store) == 2
        assert store.lengths.tolist() == [7, 30]
        assert store.successes.tolist() == [True, False], "failures are kept"
        assert_same(store.read(0), episode(7, 1, camera=True))
        assert_same(store.read(1), episode(30, 2, camera=True))
        assert store.read(1).seed == 2
        assert not store.read(1).success
        facts = {"operator": "test", "outcome": "failure", "seed": 2, "success": False, "length": 30, "number": 1}
        assert store.metadata(1) == facts
        assert set(store.read(0, keys=[ACTION]).data) == {ACTION}
        assert store.header.spaces == spaces(camera=True)


def test_image_rows_decode_only_the_chunks_that_hold_them(tmp_path, monkeypatch):
    # 96 * 96 * 3 = 27648 B a frame; 262144 // 27648 = 9 frames a chunk. Steps 8..9 lie in chunks 0 and 1 of four.
    with new_store(tmp_path / "s", camera=True) as store:
        whole = episode(30, camera=True)
        store.append(whole)
        store.read_rows(0, CAMERA, 0, 1)
        opened = []
        archive = store._file(0)._store._zf
        real_open = archive.open
        monkeypatch.setattr(archive, "open", lambda name, *a, **k: opened.append(str(name)) or real_open(name, *a, **k))
        np.testing.assert_array_equal(store.read_rows(0, CAMERA, 8, 10), whole.data[CAMERA][8:10])
        assert sorted(opened) == [f"{CAMERA}/c/0/0/0/0", f"{CAMERA}/c/1/0/0/0"]


def test_rewards_are_kept_where_the_store_asks_for_them(tmp_path):
    extra = standard_extra(spaces(), reward=True)
    with EpisodeStore.create(tmp_path / "s", spaces(), task="lift", fidelity="exact", extra=extra) as store:
        with pytest.raises(RefusedError, match=r"\['reward'\] are missing"):
            store.append(episode(5))
        plain = episode(5)
        rewarded = dataclasses.replace(plain, data={**plain.data, REWARD: np.linspace(0, 1, 5, dtype=np.float32)})
        store.append(rewarded)
        assert_same(store.read(0), rewarded)


def without(key):
    return lambda data: data.pop(key)


def put(key, value):
    def change(data):
        data[key] = value

    return change


def spoil(key, index, value):
    def change(data):
        data[key][index] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(ACTION_SENT), r"\['action.sent'\] are missing"),
        (put("torque", np.zeros((5, 1), np.float32)), r"\['torque'\] are unknown"),
        (put(STATE, np.zeros((5, 4), np.float32)), r"'observation.state' has shape \(t, \*\(4,\)\)"),
        (put(STATE, np.zeros((5, 3))), "'observation.state' has dtype float64, the store keeps float32"),
        (put(STATE, np.zeros((4, 3), np.float32)), "differ in length.*'observation.state': 4"),
        (spoil(STATE, (3, 1), np.nan), "Episode 2.*'observation.state', step 3: y is nan"),
        (spoil(ACTION, (1, 0), np.inf), "Episode 2.*'action', step 1: dx is inf"),
        (spoil(T_WALL, (4,), np.nan), "'t_wall', step 4: value is nan"),
    ],
)
def test_a_bad_episode_is_refused_by_name_and_the_store_stays_as_it_was(tmp_path, change, message):
    with new_store(tmp_path / "s", (5, 6)) as store:
        before = {p: p.read_bytes() for p in sorted(store.path.rglob("*")) if p.is_file()}
        bad = episode(5)
        change(bad.data)
        with pytest.raises(RefusedError, match=message):
            store.append(bad)
        assert {p: p.read_bytes() for p in sorted(store.path.rglob("*")) if p.is_file()} == before
        assert store.append(episode(5)) == 2


def test_an_empty_episode_is_refused(tmp_path):
    with new_store(tmp_path / "s") as store, pytest.raises(RefusedError, match="no steps"):
        store.append(episode(0))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"task": "stack"}, "task is 'stack', the store keeps 'lift'"),
        ({"fidelity": "turbo"}, "fidelity is 'turbo', the store keeps 'exact'"),
        ({"note": {1, 2}}, "metadata 'note' cannot be written as JSON"),
        ({"weight": float("nan")}, "metadata 'weight' cannot be written as JSON"),
    ],
)
def test_metadata_that_contradict_the_store_or_are_not_json_are_refused(tmp_path, metadata, message):
    with new_store(tmp_path / "s") as store:
        with pytest.raises(RefusedError, match=message):
            store.append(dataclasses.replace(episode(5), metadata=metadata))
        assert len(store) == 0


def test_a_store_that_differs_from_what_is_expected_is_refused(tmp_path):
    new_store(tmp_path / "s", (5,)).close()
    with pytest.raises(RefusedError, match="holds task 'lift', but 'stack' is offered"):
        EpisodeStore.open(tmp_path / "s", "a", task="stack")
    with pytest.raises(RefusedError, match="holds fidelity 'exact', but 'turbo' is offered"):
        EpisodeStore.open(tmp_path / "s", "a", fidelity="turbo")
    with pytest.raises(RefusedError, match="spaces with robot panda, but ur5e is offered"):
        EpisodeStore.open(tmp_path / "s", "a", spaces=spaces(robot="ur5e"))
    faster = dataclasses.replace(spaces(), control_rate_hz=50.0)
    with pytest.raises(RefusedError, match=r"control_rate_hz 20.0, but 50.0 is offered"):
        EpisodeStore.open(tmp_path / "s", "a", spaces=faster)
    EpisodeStore.open(tmp_path / "s", "a", spaces=spaces(), task="lift", fidelity="exact").close()


def test_a_second_writer_is_refused_by_the_first_ones_process_id(tmp_path):
    code = "import sys; from robolearn.data.store import EpisodeStore; s = EpisodeStore.open(sys.argv[1], 'a')"
    code += "; print('open', flush=True); sys.stdin.read()"
    new_store(tmp_path / "s", (5,)).close()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RefusedError, match=f"being written by pid {other.pid} on .*one writer at a time"):
            EpisodeStore.open(tmp_path / "s", "a")
        assert len(EpisodeStore.open(tmp_path / "s")) == 1, "readers are welcome"
        other.stdin.close()
    EpisodeStore.open(tmp_path / "s", "a").close()


def test_a_reader_sees_what_was_finished_when_it_opened(tmp_path):
    with new_store(tmp_path / "s", (5,)) as store:
        reader = EpisodeStore.open(store.path)
        store.append(episode(6, 1))
        assert len(reader) == 1
        assert len(EpisodeStore.open(store.path)) == 2
        with pytest.raises(RefusedError, match="open for reading only"):
            reader.append(episode(6))
        with pytest.raises(RefusedError, match="open for reading only"):
            reader.record()


def test_what_is_not_a_store_is_refused(tmp_path):
    with pytest.raises(RefusedError, match=r"No episode store at .*nowhere.*does not exist"):
        EpisodeStore.open(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(RefusedError, match="exists and is not empty"):
        new_store(tmp_path / "full")
    new_store(tmp_path / "s", (5,)).close()
    with pytest.raises(RefusedError, match="exists and is not empty"):
        new_store(tmp_path / "s")
    with pytest.raises(RefusedError, match="mode='w' must be 'r' or 'a'"):
        EpisodeStore.open(tmp_path / "s", "w")
    header = tmp_path / "s" / "store.json"
    header.write_bytes(header.read_bytes()[:100])
    with pytest.raises(RefusedError, match=r"store\.json is damaged or not an episode store"):
        EpisodeStore.open(tmp_path / "s")


def test_a_newer_format_is_refused(tmp_path):
    header = StoreHeader(spaces(), "lift", "exact", standard_extra(spaces()))
    body = json.loads(seal(header)) | {"version": 2}
    with pytest.raises(RefusedError, match=r"version 2; this program reads .* version 1"):
        unseal(json.dumps(body).encode(), where=tmp_path)


@pytest.mark.parametrize("number", [b"NaN", b"1e309"])
def test_a_header_with_a_number_that_is_not_finite_is_damaged(tmp_path, number):
    # Found by fuzzing: Python's JSON reads such numbers, and writing them again for the checksum raised ValueError.
    sealed = seal(StoreHeader(spaces(), "lift", "exact", standard_extra(spaces())))
    assert b"20.0" in sealed
    with pytest.raises(RefusedError, match="does not match its own checksum"):
        unseal(sealed.replace(b"20.0", number), where=tmp_path)


def test_header_round_trip_and_stream_names():
    header = StoreHeader(spaces(camera=True), "lift", "exact", standard_extra(spaces()), {"command": "x"})
    assert unseal(seal(header), where=None) == header
    with pytest.raises(RefusedError, match="cannot name a stream"):
        dataclasses.replace(header, extra={"../../etc": FeatureSpec((1,))})
    with pytest.raises(RefusedError, match=r"\['action'\] carry the name"):
        dataclasses.replace(header, extra={ACTION: FeatureSpec((1,))})
    with pytest.raises(RefusedError, match="dtype 'object'"):
        dataclasses.replace(header, extra={"note": FeatureSpec((1,), "object")})


def test_truncated_and_missing_episode_files_are_refused_by_name(tmp_path):
    new_store(tmp_path / "s", (5, 6, 7)).close()
    file = tmp_path / "s" / "episodes" / "000001.zarr.zip"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(RefusedError, match=r"000001\.zarr\.zip is truncated or changed"):
        EpisodeStore.open(tmp_path / "s")
    file.unlink()
    with pytest.raises(RefusedError, match=r"000001\.zarr\.zip missing"):
        EpisodeStore.open(tmp_path / "s")
    file.write_bytes(content)
    assert len(EpisodeStore.open(tmp_path / "s")) == 3


def test_reading_damage_is_refused_by_name_and_never_becomes_zeros(tmp_path):
    new_store(tmp_path / "s", (50,)).close()
    file = tmp_path / "s" / "episodes" / "000000.zarr.zip"
    content = bytearray(file.read_bytes())
    # The central directory's name of a chunk: without it zarr would take the chunk for one of zeros.
    at = content.rindex(b"observation.state/c/0/0")
    content[at] ^= 1
    file.write_bytes(content)
    store = EpisodeStore.open(tmp_path / "s")
    with pytest.raises(RefusedError, match=r"000000\.zarr\.zip is damaged"):
        store.read(0)


def test_what_is_asked_for_must_exist(tmp_path):
    with new_store(tmp_path / "s", (5,)) as store:
        with pytest.raises(RefusedError, match=r"No episode 1 in .* it holds 1"):
            store.read(1)
        with pytest.raises(RefusedError, match="No episode -1"):
            store.metadata(-1)
        with pytest.raises(RefusedError, match=r"has no stream 'torque'\. It holds: "):
            store.read(0, keys=["torque"])
        with pytest.raises(RefusedError, match=r"Steps \[3, 6\) do not lie in episode 0 of 5 steps"):
            store.read_rows(0, STATE, 3, 6)


def test_the_checksum_is_of_the_content_and_of_nothing_else(tmp_path):
    first, again = new_store(tmp_path / "a", (5, 6)), new_store(tmp_path / "b", (5, 6))
    assert first.checksum() == again.checksum(), "the same episodes elsewhere, written at another time"
    before = first.checksum()
    first.append(episode(5, 9))
    again.append(episode(5, 8))
    assert len({before, first.checksum(), again.checksum()}) == 3
    assert EpisodeStore.open(tmp_path / "a").checksum() == first.checksum()


@pytest.mark.parametrize("damage", ["missing", "torn", "garbled"])
def test_episodes_outlive_their_manifest(tmp_path, damage):
    new_store(tmp_path / "s", (5, 6, 7)).close()
    manifest = tmp_path / "s" / "manifest.jsonl"
    whole = manifest.read_bytes()
    if damage == "missing":
        manifest.unlink()
    else:
        manifest.write_bytes(whole[:-20] if damage == "torn" else whole.replace(b'"length": 6', b'"length": 8'))
    with EpisodeStore.open(tmp_path / "s") as reader:
        assert reader.lengths.tolist() == [5, 6, 7]
        assert_same(reader.read(2), episode(7, 2))
    EpisodeStore.open(tmp_path / "s", "a").close()
    assert manifest.read_bytes() == whole, "opening for appending mends it"


def test_an_interrupt_after_an_episode_got_its_name_costs_nothing(tmp_path, monkeypatch):
    """Ctrl-C between the rename and the manifest: the episode is finished and its number is not used again."""
    with new_store(tmp_path / "s", (5,)) as store:
        with monkeypatch.context() as patch:
            patch.setattr(folder, "append_entry", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                store.append(episode(6, 1))
        store.append(episode(7, 2))
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert store.lengths.tolist() == [5, 6, 7]
        assert_same(store.read(1), episode(6, 1))


def test_a_description_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="cannot be written as JSON"):
        EpisodeStore.create(tmp_path / "s", spaces(), task="lift", fidelity="exact", provenance={"seed": {1}})
    assert not (tmp_path / "s").exists()


def test_metadata_read_the_same_before_and_after_reopening(tmp_path):
    with new_store(tmp_path / "s") as store:
        store.append(dataclasses.replace(episode(5), metadata={"region": (1, 2), "notes": {3: "x"}}))
        now = store.metadata(0)
    assert EpisodeStore.open(tmp_path / "s").metadata(0) == now
