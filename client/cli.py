"""The commands `mesofed device ...`: what a person may do with a device's vault."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import output
from shared.errors import MesofedError

if TYPE_CHECKING:
    from client.device import Device

device = typer.Typer(no_args_is_help=True, help="Create, ask and export a device's vault.")

VaultFolder = Annotated[Path, typer.Argument(help="The vault, such as RUN/vaults/0000.")]
MethodName = Annotated[str, typer.Option(help="A method this device has been personalised by.")]
ConfigFile = Annotated[
    Path | None, typer.Option(help="TOML file; default: that of the run the vault is in, if any.")
]


@device.callback()
def _device() -> None:
    """Create, ask and export a device's vault."""


@device.command()
def init(
    vault: VaultFolder,
    folder: Annotated[Path, typer.Option(help="A folder of the person's own .txt or .md files.")],
) -> None:
    """Create a vault from a folder of a person's own text files."""
    from client.vault import Vault
    from shared.corpus.text_folder import history_from_folder
    from shared.corpus.user import User

    home = Vault(vault)
    if home.exists:
        raise MesofedError(f"{vault} is a vault already. Name another folder; it was not changed.")
    read = history_from_folder(folder)
    home.move_in(User(vault.name, read.items, ()))
    console = output()
    lines = [
        f"{len(read.items)} paragraphs are in {vault}.",
        *(f"  left out {skip.where}: {skip.reason}" for skip in read.skipped),
        f"Next: a SuperNode with --node-config 'vault=\"{vault.resolve()}\"'",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


@device.command()
def ask(
    vault: VaultFolder,
    prompt: Annotated[str, typer.Argument(help="What the model shall continue.")],
    method: MethodName = "meso",
    config: ConfigFile = None,
) -> None:
    """Continue a prompt with the personalised model."""
    from shared.quiet import quiet_libraries

    quiet_libraries()
    typer.echo(_open(vault, config).answer(method, prompt))


@device.command()
def export(
    vault: VaultFolder,
    out: Annotated[Path, typer.Option(help="Folder for the PEFT adapter.")],
    method: MethodName = "meso",
    config: ConfigFile = None,
) -> None:
    """Write the whole stack of this person, folded into one LoRA, as a PEFT adapter.

    It holds what the device has learned about the person: keep it at home.
    """
    from shared.lora.export import check_target, export_adapter
    from shared.quiet import quiet_libraries

    quiet_libraries()
    check_target(out)
    opened = _open(vault, config)
    stack = opened.personalised(method).folded()
    if stack is None:
        raise MesofedError(f"Method {method} is the base model alone: there is nothing to export.")
    holds = f"One person's whole stack by {method}, folded into one LoRA; keep it at home."
    typer.echo(export_adapter(stack, out, opened.base, holds))


def _open(vault: Path, config: Path | None) -> "Device":
    from client.vault import Vault
    from shared.config import load_config
    from shared.release_files import verify_files

    home = Vault(vault)
    home.person()
    of_run = vault.resolve().parent.parent / "config.toml"
    found = config or (of_run if of_run.is_file() else None)
    settings = load_config(found)
    verify_files(home.release_files())
    from client.device import Device
    from shared.base_model import load_base

    base = load_base(settings.base, settings.adapt)
    opened = Device(base, home, settings.methods, settings.private, settings.seed)
    try:
        opened.release()
    except MesofedError as error:
        # Its files are whole, so it is for another base model, adapt or base.top_layers.
        used = f"those of {found}" if found else "the defaults, since the vault is in no run"
        raise MesofedError(
            f"{error} The settings in use are {used}; name the file with the settings that the "
            "release was trained with: --config FILE."
        ) from error
    return opened
