"""Build of robolearn_bringup: launch files and parameters only."""

from pathlib import Path

from setuptools import setup

PACKAGE = "robolearn_bringup"


def files(folder: str) -> tuple[str, list[str]]:
    """Return a folder's files and where they are installed."""
    return f"share/{PACKAGE}/{folder}", sorted(str(p) for p in Path(folder).iterdir() if p.is_file())


setup(
    name=PACKAGE,
    version="0.1.0",
    packages=[],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        files("launch"),
        files("config"),
    ],
    install_requires=["setuptools"],
    extras_require={"test": ["pytest"]},  # by this colcon test knows that the tests are pytest's
    zip_safe=True,
    maintainer="robolearn contributors",
    maintainer_email="robolearn@users.noreply.github.com",
    description="Launch files and parameters of robolearn_bridge.",
    license="Apache-2.0",
)
