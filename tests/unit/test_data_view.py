"""``robolearn data view``: what is written is read back with Rerun's own reader."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from episode_samples import CAMERA, new_store
from rerun.chunk import RrdReader

from robolearn.commands.data_view import view
from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, STATE
from robolearn.data.store import EpisodeStore


def test_every_chosen_episode_is_in_one_file_value_for_value(tmp_path, capsys):
    # --save view.rrd wrote view_000000.rrd, view_000001.rrd, ... and said nothing.
    new_store(tmp_path / "store", (5, 7, 6), camera=True).close()
    view(tmp_path / "store", "0,2", tmp_path / "view.rrd")
    assert [path.name for path in tmp_path.glob("*.rrd")] == ["view.rrd"]
    assert capsys.readouterr().out.startswith("2 episodes of ")
    rows, pictures = {}, {}
    for chunk in RrdReader(tmp_path / "view.rrd").stream():
        columns = chunk.to_record_batch().to_pydict()
        for name, values in columns.items():
            if name.endswith("Scalars:scalars"):
                rows[chunk.entity_path] = (columns["step"], np.array(values))
            elif name.endswith(":blob"):
                for step, (value,) in zip(columns["step"], values, strict=True):
                    pictures[chunk.entity_path, step] = np.asarray(PIL.Image.open(io.BytesIO(bytes(value))))
    with EpisodeStore.open(tmp_path / "store") as store:
        for index, length in ((0, 5), (2, 6)):
            for key in (STATE, ACTION):
                steps, values = rows[f"/episode_{index}/{key.replace('.', '/')}"]
                assert steps == list(range(length))
                np.testing.assert_array_equal(values, store.read_rows(index, key, 0, length))
            assert {step for path, step in pictures if path == f"/episode_{index}/{CAMERA.replace('.', '/')}"} == set(
                range(length)
            )
    assert not any("episode_1/" in path for path in rows)
    assert {picture.shape for picture in pictures.values()} == {(96, 96, 3)}


@pytest.mark.parametrize(
    ("episodes", "save", "said"),
    [
        (None, "there.rrd", "there.rrd exists; nothing is overwritten"),
        (None, "nowhere/x.rrd", "there is no folder nowhere"),
        ("0,9", "x.rrd", "No episode 9 in .* it holds 1"),
    ],
)
def test_what_it_cannot_write_or_find_is_refused(tmp_path, monkeypatch, episodes, save, said):
    monkeypatch.chdir(tmp_path)
    new_store(tmp_path / "store", (5,)).close()
    (tmp_path / "there.rrd").write_text("mine")
    with pytest.raises(RefusedError, match=said):
        view(Path("store"), episodes, Path(save))
    assert (tmp_path / "there.rrd").read_text() == "mine"
    assert not (tmp_path / "x.rrd").exists()
