"""The commands `mesofed release ...`: look at what the server publishes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from shared.byte_size import byte_size
from shared.console import output, say
from shared.errors import MesofedError
from shared.program import command_elsewhere

if TYPE_CHECKING:
    from shared.release_files import ExamplesEntry

release = typer.Typer(no_args_is_help=True, help="Look at releases, export and sign them.")

ReleaseFolder = Annotated[Path, typer.Argument(help="A release, such as RUN/releases/r1.")]


@release.callback()
def _release() -> None:
    """Look at releases, export and sign them."""


@release.command()
def show(folder: ReleaseFolder) -> None:
    """Say whether a release is good, and what it holds: the verdict first, then the contents."""
    from shared.release_files import MANIFEST, SIGNATURE, verify_files
    from shared.signature import read_signature, verify_signature

    files = _files(folder)
    try:
        manifest = verify_files(files)
    except MesofedError as error:
        raise MesofedError(f"Damaged. {error}") from error
    verdict = f"Not signed: no device takes it. All files are what {MANIFEST} names."
    if SIGNATURE in files:
        try:
            key = verify_signature(files, read_signature(files).key)
        except MesofedError as error:
            raise MesofedError(f"Its signature is not valid. {error}") from error
        verdict = f"Good: all files are what {MANIFEST} names.\nSigned with {key}."
    table = Table(show_header=False, box=None)
    table.add_row("release", str(manifest.release))
    table.add_row("base model", f"{manifest.base.name} ({manifest.base.fingerprint[:12]})")
    table.add_row("population LoRA", f"rank {manifest.ranks.population}")
    table.add_row("group experts", f"{manifest.experts} of rank {manifest.ranks.experts}")
    table.add_row("anchors", f"{manifest.anchors} of rank {manifest.ranks.bank}")
    table.add_row("own items before", _examples(manifest.examples))
    for name, entry in manifest.files.items():
        table.add_row(name, f"{byte_size(entry.bytes):>8}  sha256 {entry.sha256[:12]}")
    console = output()
    console.print(verdict, markup=False)
    console.print(table)


def _examples(entry: "ExamplesEntry") -> str:
    if not entry.count:
        return "no question"
    items = "1 item" if entry.count == 1 else f"{entry.count} items"
    return f"{', '.join(entry.tasks)}: {items}, cut to {entry.tokens} tokens"


@release.command()
def export(
    folder: ReleaseFolder,
    part: Annotated[
        str,
        typer.Option(help="population, expert:I or anchor:I, from 0: expert:0 is the report's E1."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the PEFT adapter.")],
    alone: Annotated[
        bool, typer.Option("--alone", help="An expert or anchor without the population LoRA.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="TOML file; default: the config of the release's run.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a former export.")] = False,
) -> None:
    """Write one part of a release as a PEFT adapter.

    Experts and anchors were trained over the population LoRA, so it is folded
    in, exactly, and the adapter is for the plain base model. With --alone it is
    left out.
    """
    from shared.config import load_config
    from shared.lora.export import check_target, export_adapter
    from shared.quiet import quiet_libraries
    from shared.release_files import verify_files

    quiet_libraries()
    check_target(out, force)
    files = _files(folder)
    found = config or folder.resolve().parent.parent / "config.toml"
    if not found.is_file():
        raise MesofedError(f"Expected the run's config.toml at {found}; name one with --config.")
    settings = load_config(found)
    manifest = verify_files(files)
    parts = [
        "population",
        *(f"expert:{index}" for index in range(manifest.experts)),
        *(f"anchor:{index}" for index in range(manifest.anchors)),
    ]
    if part not in parts:
        raise MesofedError(f"Expected --part to be one of {', '.join(parts)}; got {part!r}.")
    from shared.base_model import load_base
    from shared.lora.algebra import concatenate
    from shared.release import unpack_release

    base = load_base(settings.base, settings.adapt)
    unpacked = unpack_release(files, base)
    kind, _, index = part.partition(":")
    lora, holds = unpacked.population, "The population LoRA."
    if index:
        lora = (unpacked.experts if kind == "expert" else unpacked.bank)[int(index)]
        name = f"the meta-LoRA of anchor {index}"
        if kind == "expert":  # reports count from one
            name = f"group expert {index} (E{int(index) + 1} in reports)"
        holds = f"The population LoRA and {name}, folded into one LoRA."
        if alone:
            holds = f"{name[0].upper()}{name[1:]} alone: it was trained over the population LoRA "
            holds += "and means nothing without it."
        else:
            lora = concatenate([unpacked.population, lora])
    holds += unpacked.examples.note()
    told, code = export_adapter(lora, out, base, holds, force)
    say(output(), told)
    typer.echo(code, nl=False)


@release.command()
def key(
    folder: Annotated[Path, typer.Argument(help="Folder of the signing key: release.keys.")],
) -> None:
    """Print the public key that devices trust; make the key if there is none."""
    from server.signing_keys import signer

    public = signer(folder).public
    typer.echo(public)
    line = command_elsewhere("device", "init", "VAULT", "--folder", "DIR", "--server-key", public)
    say(output(), f"Next, on a device: `{line}`")


@release.command()
def rotate(
    folder: Annotated[Path, typer.Argument(help="Folder of the signing key: release.keys.")],
) -> None:
    """Replace the signing key; devices that trust the old one follow with the next release."""
    from server.signing_keys import rotate as rotate_key

    public = rotate_key(folder).public
    typer.echo(public)
    typer.echo("The old key is deleted. New devices need this one; others learn it by themselves.")


def _files(folder: Path) -> dict[str, bytes]:
    from shared.release_files import MANIFEST, read_release_files

    if not (folder / MANIFEST).is_file():
        raise MesofedError(f"Expected a release in {folder}, with its {MANIFEST}; there is none.")
    try:
        return read_release_files(folder)
    except OSError as error:
        raise MesofedError(f"Cannot read {error.filename}: {error.strerror}.") from error
