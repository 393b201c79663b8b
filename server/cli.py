"""The commands `mesofed release ...`: look at what the server publishes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shared.errors import MesofedError

release = typer.Typer(no_args_is_help=True, help="Look at releases, export and sign them.")

ReleaseFolder = Annotated[Path, typer.Argument(help="A release, such as RUN/releases/r1.")]


@release.callback()
def _release() -> None:
    """Look at releases, export and sign them."""


@release.command()
def show(folder: ReleaseFolder) -> None:
    """Say what a release holds, and whether its files are what its manifest names."""
    from shared.release import verify_files
    from shared.signature import MANIFEST, SIGNATURE, read_signature, verify_signature

    files = _files(folder)
    manifest = verify_files(files)
    table = Table(show_header=False, box=None)
    table.add_row("release", str(manifest.release))
    table.add_row("base model", f"{manifest.base.name} ({manifest.base.fingerprint[:12]})")
    table.add_row("population LoRA", f"rank {manifest.ranks.population}")
    table.add_row("group experts", f"{manifest.experts} of rank {manifest.ranks.experts}")
    table.add_row("anchors", f"{manifest.anchors} of rank {manifest.ranks.bank}")
    for name, entry in manifest.files.items():
        table.add_row(name, f"{entry.bytes / 1e6:.2f} MB  sha256 {entry.sha256[:12]}")
    console = Console()
    console.print(table)
    console.print(f"All files are what {MANIFEST} names.")
    if SIGNATURE in files:
        key = verify_signature(files, read_signature(files).key)
        console.print(f"Signed with {key}.", soft_wrap=True, highlight=False)
    else:
        console.print("Not signed: no device takes it.")


@release.command()
def export(
    folder: ReleaseFolder,
    part: Annotated[str, typer.Option(help="population, expert:I or anchor:I, counted from 0.")],
    out: Annotated[Path, typer.Option(help="Folder for the PEFT adapter.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML file; default: the config of the release's run.")
    ] = None,
) -> None:
    """Write one part of a release as a PEFT adapter for the plain base model."""
    from shared.base_model import load_base
    from shared.config import load_config
    from shared.lora.peft_format import save_peft
    from shared.quiet import quiet_libraries
    from shared.release import unpack_release

    quiet_libraries()
    found = config or folder.resolve().parent.parent / "config.toml"
    if not found.is_file():
        raise MesofedError(f"Expected the run's config.toml at {found}; name one with --config.")
    settings = load_config(found)
    base = load_base(settings.base, settings.adapt)
    unpacked = unpack_release(_files(folder), base)
    loras = {"population": unpacked.population}
    loras |= {f"expert:{i}": lora for i, lora in enumerate(unpacked.experts)}
    loras |= {f"anchor:{i}": lora for i, lora in enumerate(unpacked.bank)}
    if part not in loras:
        raise MesofedError(f"Expected --part to be one of {', '.join(loras)}; got {part!r}.")
    save_peft(loras[part], out, base.name)
    typer.echo(f"{out}: rank {loras[part].rank}")


@release.command()
def key(
    folder: Annotated[Path, typer.Argument(help="Folder of the signing key: release.keys.")],
) -> None:
    """Print the public key that devices trust; make the key if there is none."""
    from server.signing_keys import signer

    public = signer(folder).public
    typer.echo(public)
    typer.echo(f"Next, on a device: mesofed device init VAULT --folder DIR --server-key {public}")


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
    from shared.release import read_release_files
    from shared.signature import MANIFEST

    if not (folder / MANIFEST).is_file():
        raise MesofedError(f"Expected a release in {folder}, with its {MANIFEST}; there is none.")
    try:
        return read_release_files(folder)
    except OSError as error:
        raise MesofedError(f"Cannot read {error.filename}: {error.strerror}.") from error
