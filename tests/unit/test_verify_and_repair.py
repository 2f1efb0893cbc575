import dataclasses
import json
import shutil
import zipfile

import numpy as np
import pytest
from episode_samples import assert_same, episode, frame, new_store, spaces

from robolearn.core.errors import RefusedError
from robolearn.core.types import STATE
from robolearn.data.episode_file import content_sha256, file_sha256, write_episode_file
from robolearn.data.header import StoreHeader, seal
from robolearn.data.manifest import Entry, manifest_bytes, read_manifest
from robolearn.data.repair import repair
from robolearn.data.store import EpisodeStore
from robolearn.data.verify import Fault, verify

LENGTHS = (5, 6, 7)


@pytest.fixture
def store(tmp_path):
    """A sound store of three episodes, closed."""
    new_store(tmp_path / "s", LENGTHS).close()
    return tmp_path / "s"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A sound store of one episode, to be copied."""
    path = tmp_path_factory.mktemp("pristine") / "s"
    new_store(path, LENGTHS[:1]).close()
    return path


def faults(path):
    return [(problem.fault, problem.file) for problem in verify(path).problems]


def file_of(number):
    return f"episodes/{number:06d}.zarr.zip"


def assert_mended(path, lengths, *, quarantined=()):
    """Whatever was wrong, the store now is sound, holds these episodes unchanged, and can be appended to."""
    repaired = repair(path)
    assert not repaired.before.sound
    assert repaired.after.sound, repaired.after
    assert repaired.actions
    quarantine = path / "quarantine"
    assert sorted(p.name for p in quarantine.iterdir()) == sorted(quarantined) if quarantined else not quarantine.exists()
    with EpisodeStore.open(path, "a") as store:
        assert store.lengths.tolist() == list(lengths)
        for position, length in enumerate(lengths):
            whole = episode(length, LENGTHS.index(length)) if length in LENGTHS else episode(20)
            assert_same(store.read(position), whole, steps=length)
        store.append(episode(4))
    assert verify(path).sound


def flip(path, at, bit=0):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def test_a_sound_store_is_sound(store):
    report = verify(store)
    assert report.sound
    assert (report.episodes, report.steps, report.being_written) == (3, 18, False)
    assert repair(store).actions == ()


@pytest.mark.parametrize("name", ["store.json", "manifest.jsonl", file_of(0)])
def test_any_flipped_bit_in_any_file_is_found_and_named(pristine, tmp_path, name):
    """Fifty bits spread over each file, the last byte included; every one is found in that file and in no other."""
    shutil.copytree(pristine, tmp_path / "s")
    file = tmp_path / "s" / name
    size = file.stat().st_size
    rng = np.random.default_rng(0)
    for at in [*rng.integers(0, size, 49).tolist(), size - 1]:
        bit = int(rng.integers(8))
        flip(file, at, bit)
        problems = verify(tmp_path / "s").problems
        where = {problem.file for problem in problems}
        if name == "manifest.jsonl":  # the line is named, and the episode that is not listed any more
            assert name in where, (at, bit)
        else:
            assert where == {name}, (at, bit, problems)
        flip(file, at, bit)
    assert verify(tmp_path / "s").sound


def test_a_flipped_bit_that_leaves_the_content_whole_is_mended(store):
    file = store / file_of(1)
    with zipfile.ZipFile(file) as archive:
        at = archive.infolist()[0].header_offset + 10  # the time of day in the first local header
    flip(file, at)
    assert faults(store) == [(Fault.DAMAGED, file_of(1))]
    assert "its content is whole" in verify(store).problems[0].message
    assert_mended(store, LENGTHS, quarantined=["000001.zarr.zip"])


def test_a_flipped_bit_in_the_content_sets_the_episode_aside(store):
    content = (store / file_of(1)).read_bytes()
    flip(store / file_of(1), content.index(b"observation.state/c/0/0") + 60)
    assert faults(store) == [(Fault.DAMAGED, file_of(1))]
    assert_mended(store, (5, 7), quarantined=["000001.zarr.zip"])


@pytest.mark.parametrize("kept", [0, 1, 1000, -1])
def test_a_truncated_episode_file_is_found_and_set_aside(store, kept):
    file = store / file_of(1)
    file.write_bytes(file.read_bytes()[:kept])
    assert faults(store) == [(Fault.DAMAGED, file_of(1))]
    assert_mended(store, (5, 7), quarantined=["000001.zarr.zip"])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_episode_is_found_and_the_rest_is_usable_again(store, number):
    (store / file_of(number)).unlink()
    assert faults(store) == [(Fault.MISSING, file_of(number))]
    with pytest.raises(RefusedError, match="missing"):
        EpisodeStore.open(store)
    assert_mended(store, [n for i, n in enumerate(LENGTHS) if i != number])


def test_a_missing_episode_is_found_without_the_manifest(store):
    (store / file_of(1)).unlink()
    (store / "manifest.jsonl").unlink()
    assert faults(store)[:2] == [(Fault.MANIFEST, "manifest.jsonl"), (Fault.MISSING, file_of(1))]
    assert_mended(store, (5, 7))


def test_a_damaged_or_missing_header_is_rebuilt_from_the_episodes(store):
    header = store / "store.json"
    whole = header.read_bytes()
    header.write_bytes(whole[:200])
    assert faults(store) == [(Fault.HEADER, "store.json")]
    assert_mended(store, LENGTHS, quarantined=["store.json"])
    assert header.read_bytes() == whole
    header.unlink()
    assert faults(store) == [(Fault.HEADER, "store.json")]
    assert repair(store).after.sound
    assert header.read_bytes() == whole


def test_a_header_of_another_store_fits_no_episode(store):
    other = StoreHeader(spaces(robot="ur5e"), "lift", "exact", EpisodeStore.open(store).header.extra)
    (store / "store.json").write_bytes(seal(other))
    assert faults(store) == [(Fault.DAMAGED, file_of(n)) for n in range(3)]
    assert "robot ur5e, but panda is offered" in verify(store).problems[0].message


def test_nothing_can_be_rebuilt_from_nothing(tmp_path):
    new_store(tmp_path / "s").close()
    (tmp_path / "s" / "store.json").write_bytes(b"{}")
    with pytest.raises(RefusedError, match="no episode remembers its content"):
        repair(tmp_path / "s")
    with pytest.raises(RefusedError, match="No episode store at"):
        verify(tmp_path / "nowhere")


def test_a_torn_manifest_is_rebuilt(store):
    manifest = store / "manifest.jsonl"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-30])
    assert faults(store) == [(Fault.MANIFEST, "manifest.jsonl"), (Fault.UNLISTED, file_of(2))]
    assert "Line 3 is torn or damaged" in verify(store).problems[0].message
    assert_mended(store, LENGTHS, quarantined=["manifest.jsonl"])


def test_a_manifest_that_disagrees_with_a_file_is_rebuilt(store):
    manifest = read_manifest(store / "manifest.jsonl")
    lying = dataclasses.replace(manifest.entries[1], length=60, success=False)
    changed = dataclasses.replace(manifest, entries={**manifest.entries, 1: lying})
    (store / "manifest.jsonl").write_bytes(manifest_bytes(changed))
    assert faults(store) == [(Fault.MANIFEST, file_of(1))]
    assert "disagrees with the file about length, success" in verify(store).problems[0].message
    assert_mended(store, LENGTHS)


def put_episode(store, number, data, **facts):
    """Write an episode file as some other program might, whatever it holds, and list it properly."""
    header = EpisodeStore.open(store).header
    said = {"success": True, "seed": None, "metadata": {}}
    length = len(data[STATE])
    content = content_sha256(data, said)
    attributes = {"format": "robolearn-episodes", "version": 1, "store": header.to_json()}
    attributes["episode"] = {"length": length, **said, "content_sha256": content, **facts}
    path = store / file_of(number)
    write_episode_file(path, data, attributes)
    manifest = read_manifest(store / "manifest.jsonl")
    manifest.entries[number] = Entry(number, path.stat().st_size, file_sha256(path), content, length, **said)
    (store / "manifest.jsonl").write_bytes(manifest_bytes(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({STATE: np.full((4, 3), np.nan, np.float32)}, "stream 'observation.state', step 0: x is nan"),
        ({STATE: np.zeros((3, 3), np.float32)}, "the streams differ in length"),
        ({STATE: np.zeros((4, 3))}, "has dtype float64, the store keeps float32"),
    ],
)
def test_an_episode_that_the_store_would_have_refused_is_found_and_set_aside(store, change, message):
    put_episode(store, 3, {**episode(4).data, **change})
    assert faults(store) == [(Fault.DAMAGED, file_of(3))]
    assert message in verify(store).problems[0].message
    assert_mended(store, LENGTHS, quarantined=["000003.zarr.zip"])


def test_content_that_does_not_match_its_own_checksum_is_found(store):
    put_episode(store, 3, episode(4).data, content_sha256="0" * 64)
    assert "its content does not match the checksum in it" in verify(store).problems[0].message
    assert_mended(store, LENGTHS, quarantined=["000003.zarr.zip"])


def leave_unfinished(path, steps):
    store = EpisodeStore.open(path, "a")
    recording = store.record()
    for step in range(steps):
        recording.add_frame(frame(episode(20), step), t_wall=1.7e9 + step / 20)
    assert verify(path).being_written
    assert verify(path).sound, "a recording that is going on is no fault"
    with pytest.raises(RefusedError, match="being written by pid"):
        repair(path)
    recording._close()
    store._lock.release()
    return recording._journal.path


def test_an_unfinished_episode_is_named_and_recovered(store):
    leave_unfinished(store, 9)
    assert faults(store) == [(Fault.UNFINISHED, "unfinished/000003.journal")]
    assert_mended(store, (*LENGTHS, 9))


def test_a_torn_journal_is_named_and_recovered(store):
    journal = leave_unfinished(store, 9)
    journal.write_bytes(journal.read_bytes()[:-10])
    assert faults(store) == [(Fault.TORN_JOURNAL, "unfinished/000003.journal")]
    assert "8 steps can be recovered" in verify(store).problems[0].message
    assert_mended(store, (*LENGTHS, 8))


def test_a_damaged_journal_is_named_and_recovered_up_to_the_damage(store):
    journal = leave_unfinished(store, 12)
    flip(journal, journal.stat().st_size - 30)
    assert faults(store) == [(Fault.DAMAGED_JOURNAL, "unfinished/000003.journal")]
    assert_mended(store, (*LENGTHS, 11), quarantined=["000003.journal"])


def test_leftovers_of_killed_writers_are_named_and_set_aside(store):
    (store / "episodes" / ".000003.zarr.zip.tmp").write_bytes(b"half")
    (store / "episodes" / "notes.txt").write_text("mine")
    (store / "unfinished" / "000001.journal").write_bytes(b"RLJOURN1")
    assert sorted(faults(store)) == [
        (Fault.LEFTOVER, "episodes/.000003.zarr.zip.tmp"),
        (Fault.LEFTOVER, "episodes/notes.txt"),
        (Fault.LEFTOVER, "unfinished/000001.journal"),
    ]
    assert_mended(store, LENGTHS, quarantined=["000003.zarr.zip.tmp", "notes.txt"])


def test_many_faults_at_once(store):
    """One of each in one store: what is whole survives all of them."""
    leave_unfinished(store, 9)
    flip(store / "store.json", 40)
    flip(store / "manifest.jsonl", 100)
    content = (store / file_of(1)).read_bytes()
    (store / file_of(1)).write_bytes(content[: len(content) // 2])
    (store / file_of(2)).unlink()
    assert len({fault for fault, _ in faults(store)}) == 6, faults(store)
    assert_mended(store, (5, 9), quarantined=["000001.zarr.zip", "manifest.jsonl", "store.json"])
    gone = [json.loads(line) for line in (store / "manifest.jsonl").read_text().splitlines()]
    assert [(g["gone"]["number"], g["gone"]["reason"]) for g in gone if "gone" in g] == [(1, "damaged"), (2, "missing")]
