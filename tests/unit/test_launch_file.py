"""The strict launch reader: what it reads, and that it refuses everything else by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from robolearn.core.errors import RefusedError
from robolearn.deploy.launch_file import NodeProcess, read_launch_file

FILE = """
<launch>
  <arg name="who"/>
  <arg name="fast" default="false"/>
  <set_env name="A" value="$(env HOME)/x"/>
  <group>
    <push-ros-namespace namespace="$(var who)"/>
    <node pkg="p" exec="e" name="n" if="$(var fast)"/>
    <node pkg="p" exec="e" name="m" unless="$(var fast)">
      <param from="$(find-pkg-share p)/c.yaml"/>
      <param name="a" value="0.5" type="float"/>
      <param name="b" value="007" type="str"/>
      <param name="c" value="[1, 2]"/>
      <remap from="x" to="y"/>
      <env name="B" value="$(dirname)"/>
    </node>
  </group>
  <node pkg="p" exec="e" name="outer"/>
</launch>
"""


def read(tmp_path: Path, text: str = FILE, **arguments: str) -> list[NodeProcess]:
    file = tmp_path / "f.launch.xml"
    file.write_text(text)
    (tmp_path / "c.yaml").write_text("{}")
    return read_launch_file(file, arguments, find_package=lambda _: tmp_path, environ={"HOME": "/h"})


def test_a_file_is_read(tmp_path: Path) -> None:
    inner, outer = read(tmp_path, who="bob")
    assert (inner.name, inner.namespace, outer.namespace) == ("m", "/bob", "/")
    assert inner.parameters == (tmp_path / "c.yaml", {"a": 0.5}, {"b": "007"}, {"c": [1, 2]})
    assert inner.remaps == (("x", "y"),)
    assert inner.environment == {"A": "/h/x", "B": str(tmp_path)}
    assert outer.environment == {"A": "/h/x"}
    assert [p.name for p in read(tmp_path, who="bob", fast="true")] == ["n", "outer"]


def test_arguments_reach_the_command_line_with_their_types(tmp_path: Path) -> None:
    arguments = read(tmp_path, who="bob")[0].ros_arguments(tmp_path)
    assert arguments[:5] == ["--ros-args", "-r", "__node:=m", "-r", "__ns:=/bob"]
    assert arguments[5:7] == ["-r", "x:=y"]
    files = [Path(a) for a in arguments if a.endswith(".yaml")]
    values = [yaml.safe_load(f.read_text()) for f in files[1:]]
    assert [v["/**"]["ros__parameters"] for v in values] == [{"a": 0.5}, {"b": "007"}, {"c": [1, 2]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('<node pkg="p" exec="e" name="outer"/>', '<let name="x" value="y"/>'), "<let> is not read here"),
        (('exec="e" name="outer"', 'exec="e" nam="outer"'), "<node> has no 'nam'.*Did you mean 'name'"),
        (("$(var who)", "$(var whom)"), r"\$\(var whom\) names no argument.*Did you mean 'who'"),
        (("$(env HOME)", "$(eval 1)"), r"\$\(eval 1\) is not read here"),
        (("$(env HOME)", "$(env ABSENT)"), "no 'ABSENT'"),
        (('value="0.5" type="float"', 'value="half" type="float"'), "param 'a' must be float, got 'half'"),
        (('if="$(var fast)"', 'if="perhaps"'), "if='perhaps'"),
        (("</launch>", ""), "not well-formed"),
        (("c.yaml", "d.yaml"), "no parameter file"),
    ],
)
def test_everything_else_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        read(tmp_path, FILE.replace(*change), who="bob")


def test_arguments_must_be_declared_and_given(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="needs the argument 'who'"):
        read(tmp_path)
    with pytest.raises(RefusedError, match=r"declares no argument 'fats'.*Did you mean 'fast'"):
        read(tmp_path, who="bob", fats="1")


def test_an_included_file_takes_what_is_stated_then_what_has_its_names_outside_then_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "inner.launch.xml").write_text(
        '<launch><arg name="who"/><arg name="speed" default="1"/><arg name="why" default="0"/>'
        '<set_env name="A" value="$(var who)"/><node pkg="p" exec="$(var speed)" name="n$(var why)"/></launch>'
    )
    text = """<launch><arg name="who"/><arg name="why" default="2"/><group><push-ros-namespace namespace="g"/>
      <include file="$(dirname)/inner.launch.xml"><arg name="speed" value="fast"/></include></group>
      <node pkg="p" exec="e"/></launch>"""
    inner, outer = read(tmp_path, text, who="bob")
    assert (inner.name, inner.namespace, inner.executable, inner.environment) == ("n2", "/g", "fast", {"A": "bob"})
    assert outer.environment == {}  # what the included file set ends with its group
    with pytest.raises(RefusedError, match=r"declares no argument 'sped'\..* Did you mean 'speed'"):
        read(tmp_path, text.replace('"speed"', '"sped"'), who="bob")
    with pytest.raises(RefusedError, match="in a <group> only, not in <launch>"):
        read(tmp_path, text.replace("<group>", "").replace("</group>", ""), who="bob")
    with pytest.raises(RefusedError, match="<include> holds <arg name"):
        read(tmp_path, text.replace('value="fast"', 'default="fast"'), who="bob")
    with pytest.raises(RefusedError, match="includes itself, by way of"):
        read(tmp_path, text.replace("inner.launch", "f.launch"), who="bob")
    with pytest.raises(RefusedError, match=r"No launch file at .*nowhere"):
        read(tmp_path, text.replace("inner.launch", "nowhere"), who="bob")
