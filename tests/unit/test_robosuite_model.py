"""The fast model weighs and collides as robosuite's does; building and resetting leave no traces in the process."""

import os
import random

import mujoco
import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from sim_envs.robosuite_model import build_robosuite, fast_xml, reset_robosuite, seeded, template, visual_xml
from sim_envs.tasks import can, door, lift

BODY, GEOM, CAMERA = mujoco.mjtObj.mjOBJ_BODY, mujoco.mjtObj.mjOBJ_GEOM, mujoco.mjtObj.mjOBJ_CAMERA


def names(model, kind, count):
    return [mujoco.mj_id2name(model, kind, i) for i in range(count)]


@pytest.mark.parametrize("task", [lift.ROBOSUITE, can.ROBOSUITE, door.ROBOSUITE], ids=lambda t: t.name)
def test_fast_model_has_the_same_bodies_and_colliders(task):
    fast = template(task)[0].sim.model._model
    full = mujoco.MjModel.from_xml_string(visual_xml(task))
    assert fast.ngeom < full.ngeom / 2
    assert names(fast, BODY, fast.nbody) == names(full, BODY, full.nbody)
    assert names(fast, CAMERA, fast.ncam) == names(full, CAMERA, full.ncam)
    assert set(task.cameras) <= set(names(full, CAMERA, full.ncam))
    for array in (
        "body_mass",
        "body_inertia",
        "body_ipos",
        "body_iquat",
        "dof_armature",
        "dof_damping",
        "dof_frictionloss",
        "jnt_range",
    ):
        np.testing.assert_array_equal(getattr(fast, array), getattr(full, array), err_msg=array)
    assert fast.stat.meaninertia == full.stat.meaninertia
    parked = [i for i, name in enumerate(names(fast, BODY, fast.nbody)) if name in task.parked_bodies]
    # Arena geoms have no names, so colliders are matched by their order.
    pairs = list(zip(colliders(full, ()), colliders(fast, parked), strict=True))
    assert len(pairs) > 10
    for i, j in pairs:
        assert full.geom(i).name == fast.geom(j).name
        contactless = full.geom_bodyid[i] in parked
        assert fast.geom_contype[j] == (0 if contactless else full.geom_contype[i])
        assert fast.geom_conaffinity[j] == (0 if contactless else full.geom_conaffinity[i])
        for field in ("friction", "solref", "solimp", "size", "pos", "quat", "margin", "condim", "bodyid", "type"):
            np.testing.assert_array_equal(getattr(full, f"geom_{field}")[i], getattr(fast, f"geom_{field}")[j], err_msg=field)


def colliders(model, parked):
    """Geoms that can touch something, or could before they were parked."""
    touching = (model.geom_contype != 0) | (model.geom_conaffinity != 0) | np.isin(model.geom_bodyid, parked)
    return np.flatnonzero(touching).tolist()


def test_parking_an_absent_body_is_refused_by_name():
    with pytest.raises(RefusedError, match="Cup_main"):
        fast_xml("<mujoco><worldbody><body name='Can_main'/></worldbody></mujoco>", ("Cup_main",))


def test_only_massless_contactless_geoms_go():
    xml = """<mujoco><compiler inertiagrouprange="0 0"/><size njmax="5000" nconmax="5000"/>
      <asset><material name="m" rgba="1 0 0 1"/></asset><worldbody>
      <geom name="wall" type="plane" size="1 1 1" contype="0" conaffinity="0" group="1"/>
      <body name="b"><freejoint/>
        <geom name="shown" size="1" contype="0" conaffinity="0" group="1" material="m"/>
        <geom name="heavy" size="1" contype="0" conaffinity="0" group="0"/>
        <geom name="solid" size="1" group="0"/></body></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(fast_xml(xml))
    assert names(model, GEOM, model.ngeom) == ["heavy", "solid"]
    assert model.nmat == 0
    assert model.nconmax != 5000


def test_reset_is_a_function_of_the_seed_and_leaves_the_global_generators_alone():
    environment = build_robosuite(lift.ROBOSUITE)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    reset_robosuite(environment, 11)
    first = environment.sim.data.qpos.copy()
    reset_robosuite(environment, 12)
    assert not np.array_equal(environment.sim.data.qpos, first)
    reset_robosuite(environment, 11)
    assert np.array_equal(environment.sim.data.qpos, first)
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert random.getstate() == before[1]
    with pytest.raises(RefusedError, match="4294967296"), seeded(2**32):
        pass


def test_building_prints_nothing_and_keeps_the_graphics_choice(capfd, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    build_robosuite(lift.ROBOSUITE)
    assert os.environ["MUJOCO_GL"] == "osmesa"
    assert capfd.readouterr() == ("", "")
