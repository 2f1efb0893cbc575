"""robosuite behind a fence: its environments built and reset without side effects, and the XML of the fast physics model.

Fenced in: log lines and prints of robosuite's import and constructors, its change of ``MUJOCO_GL``, and its use of the global
``numpy.random`` and ``random`` states, which are saved, seeded and restored around every build and reset.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from sim_envs.robosuite_task import CONTROL_RATE_HZ, RobosuiteTask

COMPILE_SEED = 0
"""Seed under which every robosuite model is built. Lift draws the cube's half-size (20-22 mm) when its model is compiled, and a
soft reset keeps it; one seed for ``reference``, ``exact`` and ``turbo`` gives all of them the same cube."""
MAX_SEED = 2**32 - 1
"""Largest seed that numpy's global generator, which robosuite draws from, accepts."""
MASS_GROUP = "0"
"""Geoms of any other group weigh nothing: robosuite compiles with ``inertiagrouprange="0 0"``."""


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random states for the length of a block and put back what was there.

    Raises:
        RefusedError: the seed lies outside [0, 2^32 - 1].
    """
    if not 0 <= seed <= MAX_SEED:
        raise RefusedError(f"{seed=} must lie in [0, {MAX_SEED}]: robosuite draws from numpy's global generator.")
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep log lines, prints and warnings of a block from the user; exceptions pass."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def build_robosuite(task: RobosuiteTask) -> Any:
    """Return robosuite's own environment of ``task`` as it ships: OSC pose control at 20 Hz, no cameras, soft resets.

    Soft resets draw the same initial states as hard ones (bitwise for Can and Square) and keep what a hard reset would redraw
    with the model, which is the cube's size in Lift.
    """
    gl = os.environ.get("MUJOCO_GL")
    with quiet(), seeded(COMPILE_SEED):
        import robosuite

        environment = robosuite.make(
            task.robosuite_name,
            robots=task.robots,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            control_freq=CONTROL_RATE_HZ,
            ignore_done=True,
            hard_reset=False,
            renderer="mujoco",
        )
    os.environ.pop("MUJOCO_GL", None)
    if gl is not None:
        os.environ["MUJOCO_GL"] = gl
    return environment


def reset_robosuite(environment: Any, seed: int) -> None:
    """Soft-reset a robosuite environment to the initial state that ``seed`` alone decides."""
    with seeded(seed):
        environment.reset()


@cache
def template(task: RobosuiteTask) -> tuple[Any, str]:
    """Return (robosuite environment with the fast physics model, XML of the untouched model); one per process and task.

    The environment serves resets only: its state after a reset is copied, whereupon it may be reset again.
    """
    environment = build_robosuite(task)
    full = environment.edit_model_xml(environment.model.get_xml())
    # The mapping from geoms to instances serves segmentation images only, and wants the visual geoms by name.
    environment.model.generate_id_mappings = lambda sim: None
    environment.set_xml_processor(lambda xml: fast_xml(xml, task.parked_bodies))
    with quiet(), seeded(COMPILE_SEED):
        # Rebuilds the simulation from the model that is already drawn: a hard reset would draw another cube.
        environment._initialize_sim()
        environment.reset()
    return environment, full


def visual_xml(task: RobosuiteTask) -> str:
    """Return the XML of robosuite's untouched model, meshes and textures included, for rendering.

    Its joints, bodies and cameras are those of the fast model, so ``qpos`` of one is ``qpos`` of the other.
    """
    return template(task)[1]


def fast_xml(xml: str, parked_bodies: tuple[str, ...] = ()) -> str:
    """Return a model with the same dynamics that steps faster.

    Removed: visual geoms with their meshes and textures (``mj_collision`` clears one byte per mesh face every step, whether a
    mesh can touch anything or not), and the request for a contact arena of 5,000 rows. Geoms of ``parked_bodies``, which
    robosuite moves 10 m away in single-object variants, touch nothing: stacked in one place, they push each other for ever.
    """
    root = ElementTree.fromstring(xml)
    parked = _parked_elements(root, parked_bodies)
    for body in [*root.iter("worldbody"), *root.iter("body")]:
        for geom in body.findall("geom"):
            contactless = geom.get("contype") == "0" and geom.get("conaffinity") == "0"
            if contactless and geom.get("group", MASS_GROUP) != MASS_GROUP:
                body.remove(geom)
            elif geom in parked:
                geom.set("contype", "0")
                geom.set("conaffinity", "0")
    for size in root.findall("size"):
        for key in ("njmax", "nconmax"):
            size.attrib.pop(key, None)
    _drop_unused_assets(root)
    return ElementTree.tostring(root, encoding="unicode")


def _parked_elements(root: ElementTree.Element, names: tuple[str, ...]) -> set[ElementTree.Element]:
    bodies = {body.get("name"): body for body in root.iter("body")}
    missing = [name for name in names if name not in bodies]
    if missing:
        raise RefusedError(f"Bodies {missing} to be parked are not in the model; it has {sorted(str(b) for b in bodies)}.")
    return {geom for name in names for geom in bodies[name].iter("geom")}


def _drop_unused_assets(root: ElementTree.Element) -> None:
    used = {geom.get("mesh") for geom in root.iter("geom")}
    for asset in root.findall("asset"):
        for element in list(asset):
            if element.tag in ("texture", "material") or (element.tag == "mesh" and element.get("name") not in used):
                asset.remove(element)
    for element in root.iter():
        element.attrib.pop("material", None)
