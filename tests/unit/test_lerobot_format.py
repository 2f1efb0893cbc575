"""LeRobotDataset v3 through stock lerobot: what we write its loader reads frame by frame, and what it wrote comes back."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from fractions import Fraction

import av
import numpy as np
import pytest
from episode_samples import CAMERA, new_store
from lerobot_samples import write_lerobot

from robolearn.commands.data_convert import known_formats
from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, STATE, FeatureSpec
from robolearn.data.convert import export_episodes, import_episodes, open_any
from robolearn.data.formats.exchange import ExportOptions, ImportOptions, StoreSource
from robolearn.data.formats.lerobot_files import VideoRows
from robolearn.data.store import EpisodeStore

FORMATS = known_formats()


def quiet(phase, steps):
    pass


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A store with a camera and the data set, pictures as images, that it was converted to."""
    folder = tmp_path_factory.mktemp("lerobot")
    store = new_store(folder / "s", (7, 5), camera=True)
    export_episodes(StoreSource(store), FORMATS["lerobot"], folder / "set", ExportOptions(), quiet)
    return store, folder / "set"


def test_the_stock_loader_reads_every_frame_that_we_wrote(written):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    store, root = written
    dataset = LeRobotDataset("local/set", root=root)
    assert dataset.num_episodes == 2
    assert len(dataset) == 12
    episodes = [store.read(0), store.read(1)]
    for index in range(len(dataset)):
        episode, step = (0, index) if index < 7 else (1, index - 7)
        item, ours = dataset[index], episodes[episode].data
        assert int(item["episode_index"]) == episode
        for key in (STATE, ACTION):
            np.testing.assert_array_equal(item[key].numpy(), ours[key][step], err_msg=key)
        picture = (item[CAMERA].permute(1, 2, 0) * 255).round().byte().numpy()
        np.testing.assert_array_equal(picture, ours[CAMERA][step])


def test_it_comes_back_bit_for_bit(written, tmp_path):
    store, root = written
    source = open_any(FORMATS, root, None, ImportOptions())
    import_episodes(source, tmp_path / "again", quiet)
    assert EpisodeStore.open(tmp_path / "again").checksum() == store.checksum()


def test_what_lerobot_wrote_is_imported_once_the_missing_is_said(tmp_path):
    store = new_store(tmp_path / "s", (6, 4), camera=False)
    write_lerobot(store, tmp_path / "theirs")
    with pytest.raises(RefusedError):  # it does not say which of its episodes were solved
        import_episodes(open_any(FORMATS, tmp_path / "theirs", None, ImportOptions()), tmp_path / "a", quiet)
    said = ImportOptions(task="lift", robot="panda", control_rate_hz=20.0, fidelity="real", success="yes")
    import_episodes(open_any(FORMATS, tmp_path / "theirs", None, said), tmp_path / "b", quiet)
    theirs = EpisodeStore.open(tmp_path / "b")
    assert [len(theirs.read(i)) for i in range(2)] == [6, 4]
    np.testing.assert_array_equal(theirs.read(1).data[STATE], store.read(1).data[STATE])


def test_a_video_whose_pictures_change_their_size_is_refused(tmp_path):
    # Found by fuzzing: the container promised 96 x 96, a damaged parameter set within it made later pictures 128 x 96.
    path = tmp_path / "changing.h264"
    with path.open("wb") as file:
        for height in (96, 128):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 96, height, "yuv420p", Fraction(1, 20)
            frames = [av.VideoFrame.from_ndarray(np.full((height, 96, 3), 90, np.uint8), format="rgb24") for _ in range(2)]
            packets = [packet for frame in (*frames, None) for packet in encoder.encode(frame)]
            file.write(b"".join(bytes(packet) for packet in packets))
    rows = VideoRows(path, 0, 4, 20.0, FeatureSpec((96, 96, 3), "uint8"), "episode 0")
    with pytest.raises(RefusedError, match=r"frame 2 is \(128, 96, 3\), not \(96, 96, 3\)"):
        rows[0:4]
