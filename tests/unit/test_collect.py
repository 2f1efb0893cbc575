"""Collecting goes on where it ended, whatever has happened to the store since."""

from rich.console import Console

from robolearn.commands.collect import collect_demonstrations
from robolearn.commands.recipe import load_recipe
from robolearn.data.repair import repair


def test_no_initial_state_is_met_twice_after_an_episode_was_set_aside(tmp_path):
    # The next seed was counted from the number of episodes: behind a gap, the last episode was collected once more.
    def collect(episodes):
        overrides = ["env.task=native_lift", "env.num_envs=1", f"data.path={tmp_path / 's'}", f"data.episodes={episodes}"]
        return collect_demonstrations(load_recipe(None, overrides), Console(quiet=True))

    with collect(2) as store:
        assert [store.metadata(i)["seed"] for i in range(len(store))] == [0, 1]
    file = tmp_path / "s" / "episodes" / "000000.zarr.zip"
    file.write_bytes(file.read_bytes()[:100])
    assert repair(tmp_path / "s").after.sound
    with collect(2) as store:
        assert [store.metadata(i)["seed"] for i in range(len(store))] == [1, 2]
