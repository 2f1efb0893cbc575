"""The command line of ``robolearn data``; as in :mod:`robolearn.cli`, nothing heavy is imported before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robolearn.core.errors import RefusedError

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Inspect, check and mend episode stores.")

StoreArgument = Annotated[Path, typer.Argument(help="Folder of an episode store.")]


@data_app.command("info")
def data_info(
    store: StoreArgument,
    *,
    html: Annotated[Path | None, typer.Option(help="Also write a page with pictures and figures to this new file.")] = None,
) -> None:
    """Say what a store holds: task, streams, episodes, success, ranges, checksum."""
    from robolearn.commands.data import info

    info(store, html=html)


@data_app.command("verify")
def data_verify(store: StoreArgument) -> None:
    """Check every byte; name any damage. Exit code 1 if some is found."""
    from robolearn.commands.data import verify

    raise typer.Exit(verify(store))


@data_app.command("repair")
def data_repair(store: StoreArgument) -> None:
    """Recover unfinished episodes, rebuild the index, move damaged episodes aside. Nothing is deleted."""
    from robolearn.commands.data import repair

    raise typer.Exit(repair(store))


OutArgument = Annotated[Path, typer.Argument(help="New store; it must not exist.")]
EpisodesOption = Annotated[str | None, typer.Option(help="Positions such as 0,3,7-9.")]


@data_app.command("convert")
def data_convert(
    source: Annotated[Path, typer.Argument(help="Store, data set, file or bag.")],
    target: Annotated[Path, typer.Argument(help="What is written; it must not exist.")],
    *,
    to: Annotated[str, typer.Option(help="store, lerobot, robomimic, zarr or rosbag.")] = "store",
    origin: Annotated[str | None, typer.Option("--from", help="Format of the source; recognised by default.")] = None,
    task: Annotated[str | None, typer.Option(help="Task, where the source does not say it.")] = None,
    robot: Annotated[str | None, typer.Option(help="Robot, where the source does not say it.")] = None,
    rate: Annotated[float | None, typer.Option(help="Steps per second, where the source does not say it.")] = None,
    fidelity: Annotated[str | None, typer.Option(help="How the world was simulated, or 'real'.")] = None,
    success: Annotated[str | None, typer.Option(help="Outcome, where the source does not say it: yes, no or reward.")] = None,
    contract: Annotated[Path | None, typer.Option(help="Bags: which topics are what (docs/formats.md).")] = None,
    images: Annotated[str, typer.Option(help="lerobot: png (lossless) or video.")] = "png",
    codec: Annotated[str, typer.Option(help="lerobot: video codec.")] = "h264",
    compressor: Annotated[
        str, typer.Option(help="zarr: zstd, lz4, lz4hc, blosclz, zlib or none. robomimic: none, or gzip.")
    ] = "zstd",
    replay: Annotated[bool, typer.Option("--replay", help="Make observations from recorded simulator states.")] = False,
) -> None:
    """Convert episodes between formats; what is written is read back and compared. Nothing is overwritten."""
    from robolearn.commands.data_convert import convert, import_options
    from robolearn.data.formats.exchange import ExportOptions, ImportOptions

    unsaid = import_options(ImportOptions(task, robot, rate, fidelity, contract=contract), success)
    how = ExportOptions.checked(images, codec, compressor)
    convert(source, target, to=to, origin=origin, unsaid=unsaid, how=how, replay=replay)


@data_app.command("formats")
def data_formats() -> None:
    """List the formats that are read and written."""
    from robolearn.commands.data_convert import list_formats

    list_formats()


@data_app.command("merge")
def data_merge(
    stores: Annotated[list[Path], typer.Argument(help="Stores, in order.")],
    *,
    out: Annotated[Path, typer.Option(help="New store; it must not exist.")],
    common: Annotated[bool, typer.Option("--common", help="Keep the streams that all have, say which are left out.")] = False,
) -> None:
    """Join stores of one task, robot and rate into a new one."""
    from robolearn.commands.data_edit import merge

    merge(stores, out, common=common)


@data_app.command("corrections")
def data_corrections(
    store: StoreArgument,
    out: OutArgument,
    *,
    min_steps: Annotated[int, typer.Option(help="Leave shorter stretches out.")] = 2,
) -> None:
    """Keep what a person drove while watching over a policy (HG-DAgger): one episode per stretch, in a new store."""
    from robolearn.commands.data_edit import corrections

    corrections(store, out, min_steps=min_steps)


@data_app.command("split")
def data_split(
    store: StoreArgument,
    outs: Annotated[list[Path], typer.Argument(help="New stores; none may exist.")],
    *,
    fractions: Annotated[str, typer.Option(help="Part of each, such as 0.8,0.2.")] = "0.8,0.2",
    seed: Annotated[int, typer.Option(help="The same seed gives the same split.")] = 0,
) -> None:
    """Deal whole episodes out to new stores at random."""
    from robolearn.commands.data_edit import split

    try:
        parts = [float(part) for part in fractions.split(",")]
    except ValueError as error:
        raise RefusedError(f"--fractions {fractions!r} must be numbers such as 0.8,0.2.") from error
    split(store, outs, parts, seed)


@data_app.command("filter")
def data_filter(
    store: StoreArgument,
    out: OutArgument,
    *,
    where: Annotated[list[str] | None, typer.Option(help="Condition such as success=true, 'length<=80', operator!=ada.")] = None,
    episodes: EpisodesOption = None,
) -> None:
    """Keep the episodes that pass every condition in a new store."""
    from robolearn.commands.data_edit import select

    select(store, out, where or [], episodes)


@data_app.command("trim")
def data_trim(
    store: StoreArgument,
    out: OutArgument,
    *,
    start: Annotated[int, typer.Option(help="Steps to cut off the beginning.")] = 0,
    end: Annotated[int, typer.Option(help="Steps to cut off the end.")] = 0,
    idle: Annotated[float | None, typer.Option(help="Cut ends at which no element of the action changes by more.")] = None,
) -> None:
    """Cut the ends off every episode, into a new store."""
    from robolearn.commands.data_edit import trim

    trim(store, out, start, end, idle)


@data_app.command("relabel")
def data_relabel(
    store: StoreArgument,
    out: OutArgument,
    *,
    label: Annotated[list[str] | None, typer.Option("--set", help="name=value, such as success=false or operator=ada.")] = None,
    episodes: EpisodesOption = None,
    task: Annotated[str | None, typer.Option(help="Another task for the whole.")] = None,
) -> None:
    """Change outcomes and facts of episodes, into a new store."""
    from robolearn.commands.data_edit import relabel

    relabel(store, out, label or [], episodes, task)


@data_app.command("quality")
def data_quality(
    store: StoreArgument,
    *,
    by: Annotated[str, typer.Option(help="What --weights go by: return, advantage, or a measure.")] = "action_divergence",
    keep: Annotated[float, typer.Option(help="Part of the episodes that a measure keeps.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of return and advantage weights; small is greedy.")] = 0.1,
    weights: Annotated[Path | None, typer.Option(help="Write sampling weights for 'train' to this new file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all measures to this new file.")] = None,
    audit: Annotated[int, typer.Option(help="Episodes whose outcome label a person should check.")] = 6,
    reference: Annotated[Path | None, typer.Option(help="Store that SACo compares with.")] = None,
) -> None:
    """Measure demonstrations: divergence, diversity, jerk, idle time, duplicates, TQ, SACo; write sampling weights."""
    from robolearn.commands.data_quality import quality

    quality(store, by=by, keep=keep, temperature=temperature, weights=weights, json=json, audit=audit, reference=reference)


@data_app.command("view")
def data_view(
    store: StoreArgument,
    *,
    episodes: EpisodesOption = None,
    save: Annotated[Path | None, typer.Option(help="Write a .rrd file instead of opening the viewer.")] = None,
) -> None:
    """Look at episodes in Rerun: pictures, streams and actions over time."""
    from robolearn.commands.data_view import view

    view(store, episodes, save)
