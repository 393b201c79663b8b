"""The commands `mesofed device ...`: what a person may do with a device's vault."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from client.passphrase import (
    PASSPHRASE_VARIABLE,
    opened_by,
    passphrase_from,
    warn_of_a_short_one,
)
from shared.console import notices, output, say
from shared.errors import MesofedError
from shared.program import command

if TYPE_CHECKING:
    from client.device import Device
    from client.vault import Vault
    from shared.config import RunConfig

device = typer.Typer(no_args_is_help=True, help="A person's vault, and the agent that owns it.")

VaultFolder = Annotated[Path, typer.Argument(help="The vault, such as RUN/vaults/0000.")]
MethodName = Annotated[str, typer.Option(help="A method this device has been personalised by.")]
ConfigFile = Annotated[
    Path | None, typer.Option(help="TOML file; default: that of the run the vault is in, if any.")
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help=f"File with the passphrase; default: ${PASSPHRASE_VARIABLE}, else asked."),
]


@device.callback()
def _device() -> None:
    """Keep a person's vault, and run the agent that owns it."""


@device.command()
def init(
    vault: VaultFolder,
    folder: Annotated[Path, typer.Option(help="A folder of the person's own .txt or .md files.")],
    server_key: Annotated[
        str, typer.Option(help="Public key of the server whose releases the device takes.")
    ] = "",
    lock: Annotated[
        Literal["auto", "keyring", "passphrase"],
        typer.Option(help="What opens the vault; auto: the system's keyring if there is one."),
    ] = "auto",
    passphrase_file: PassphraseFile = None,
) -> None:
    """Create a vault, encrypted, from a folder of a person's own text files."""
    from client.lock import keyring_works, lock_with_keyring, lock_with_passphrase
    from client.vault import Vault
    from shared.corpus.text_folder import history_from_folder
    from shared.corpus.user import User
    from shared.signature import read_key_text

    if vault.exists() and (not vault.is_dir() or any(vault.iterdir())):
        raise MesofedError(
            f"Expected a new or empty folder for the vault; {vault} holds something, maybe a vault "
            "already. Name another folder; nothing was changed."
        )
    if server_key:
        read_key_text(server_key)
    read = history_from_folder(folder)
    if lock == "keyring" or (lock == "auto" and keyring_works()):
        seal = lock_with_keyring(vault)
    else:
        chosen = passphrase_from(passphrase_file, new=True)()
        seal = lock_with_passphrase(vault, chosen)
        warn_of_a_short_one(chosen, vault)
    home = Vault(vault, seal)
    if server_key:
        home.trust(server_key)
    home.move_in(User(vault.name, read.items, ()))
    console = output()
    say(console, f"{len(read.items)} paragraphs are in {vault}, encrypted.")
    for skip in read.skipped:
        say(console, f"  left out {skip.where}: {skip.reason}")
    opened = opened_by(passphrase_file)
    if server_key:
        _say_to_start(vault, opened)
    else:
        say(console, f"Next: `{command('device', 'trust', vault, 'SERVER_KEY', *opened)}`")


@device.command()
def trust(
    vault: VaultFolder,
    server_key: Annotated[str, typer.Argument(help="The server's public key, 44 characters.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Take releases that are signed with this key, and no others."""
    _open_vault(vault, passphrase_file).trust(server_key)
    say(output(), f"{vault} takes the releases of {server_key}.")
    _say_to_start(vault, opened_by(passphrase_file))


@device.command()
def start(
    vault: VaultFolder,
    socket: Annotated[
        Path | None, typer.Option(help="Where to listen; default: a folder of this user's own.")
    ] = None,
    config: ConfigFile = None,
    allow_user: Annotated[
        list[str] | None,
        typer.Option(help="Also answer this user, such as the one that runs the SuperNode."),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Run the device agent: it owns the vault and the model, and answers the SuperNode.

    The SuperNode's processes ask it over a Unix socket. They can bring a release
    and ask for its router statistics: at once or, in privacy mode central, by
    the four messages of a secure sum. There is no way to ask for anything else.
    """
    from shared.config import load_config
    from shared.quiet import quiet_libraries

    quiet_libraries()
    home = _open_vault(vault, passphrase_file)
    if home.seal.key is None:
        raise MesofedError(
            f"Expected an encrypted vault; {vault} is that of a simulation. Create one with "
            f"`{command('device', 'init')}`."
        )
    home.person()
    trusted, settings = home.trusted(), load_config(_config_of(home, config))
    users = frozenset({os.getuid(), *(_user_id(name) for name in allow_user or ())})
    if allow_user and socket is None:
        raise MesofedError(
            "Expected --socket with --allow-user: another user cannot enter this user's own folder "
            "of sockets. Name a place that both may enter, such as /run/mesofed/NAME.sock."
        )
    path = socket or _socket_of(vault)
    console = output()

    from client.agent import Agent

    agent = Agent(
        _device_of(home, settings), path.absolute(), users, lambda text: say(console, text)
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: agent.stop())

    def ready() -> None:
        node = "flower-supernode --superlink SERVER:8000 --root-certificates CA.crt --node-config"
        say(console, f"Vault {vault}: takes the releases of {trusted}")
        say(console, f"Listening at {agent.path}")
        say(console, f"Next, beside this process: `{node} 'agent=\"{agent.path}\"'`")
        say(
            console,
            "CA.crt is for TLS; with a SuperLink on this machine without it: --insecure instead.",
        )

    agent.serve(ready)
    console.print("Stopped.")


@device.command()
def ask(
    vault: VaultFolder,
    prompt: Annotated[str, typer.Argument(help="What the model shall continue.")],
    method: MethodName = "meso",
    config: ConfigFile = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Continue a prompt with the personalised model."""
    from shared.methods import method_named
    from shared.quiet import quiet_libraries

    quiet_libraries()
    method_named(method)  # before anything is loaded
    answer = _personalised(_open_vault(vault, passphrase_file), config).answer(method, prompt)
    if answer.strip():
        typer.echo(answer)
    else:  # beside the answers, for a script reads these
        say(
            notices(),
            "The answer is empty: the model ended it before the first word. Put the prompt as the "
            "person's texts are put, or name another --method.",
        )


@device.command()
def export(
    vault: VaultFolder,
    out: Annotated[Path, typer.Option(help="Folder for the PEFT adapter.")],
    method: MethodName = "meso",
    config: ConfigFile = None,
    passphrase_file: PassphraseFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a former export.")] = False,
) -> None:
    """Write the whole stack of this person, folded into one LoRA, as a PEFT adapter.

    It holds what the device has learned about the person: keep it at home.
    """
    from shared.methods import method_named
    from shared.quiet import quiet_libraries

    quiet_libraries()
    declared = method_named(method)  # before anything is loaded

    from shared.lora.export import check_target, export_adapter

    check_target(out, force)
    opened = _personalised(_open_vault(vault, passphrase_file), config)
    personalised = opened.personalised(method)
    stack = personalised.folded()
    if stack is None:
        raise MesofedError(f"Method {method} is the base model alone: there is nothing to export.")
    without = ", without the label prior" if personalised.label_prior else ""
    holds = f"One person's stack by {method}, folded into one LoRA{without}; keep it at home."
    if personalised.private is None and not declared.routed:
        holds = "The population LoRA of the release; nothing in it is this person's."
    holds += personalised.examples.note()
    told, code = export_adapter(stack, out, opened.base, holds, force)
    say(output(), told)
    typer.echo(code, nl=False)


@device.command()
def inspect(
    vault: VaultFolder,
    passphrase_file: PassphraseFile = None,
    raw: Annotated[bool, typer.Option(help="Also print the very bytes that were sent.")] = False,
    errors: Annotated[bool, typer.Option(help="Print what went wrong, instead.")] = False,
    config: ConfigFile = None,
) -> None:
    """Say what a vault holds and whether it is sound, what has left it, and what privacy is left.

    Every file is read. What is damaged is named, with what to do.
    """
    home = _open_vault(vault, passphrase_file)
    console = output()

    from client.agent_errors import error_journal
    from client.inspection import report
    from client.soundness import damages
    from shared.config import load_config

    if errors:
        entries = list(error_journal(home).entries())
        for entry in entries:
            typer.echo(f"{entry['time']} {entry['request']}\n{entry['error']}")
        if not entries:
            say(
                console,
                "Nothing went wrong, or it was forgotten: the record begins anew above 1 MiB.",
            )
        return
    budget = load_config(_config_of(home, config)).privacy
    found = damages(home)
    for line in report(home, found, budget, raw):
        say(console, line)
    if found:
        parts = ", ".join(dict.fromkeys(damage.part for damage in found))
        raise MesofedError(
            f"Expected a sound vault; damaged: {parts}. What to do is said above, at each."
        )


@device.command()
def passphrase(
    vault: VaultFolder,
    new_passphrase_file: Annotated[
        Path | None, typer.Option(help="File with the new passphrase; default: asked.")
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Change the passphrase of a vault."""
    from client.lock import change_passphrase

    home = _open_vault(vault, passphrase_file)
    fresh = passphrase_from(new_passphrase_file, new=True, variable="")()
    change_passphrase(vault, home.seal, fresh)
    warn_of_a_short_one(fresh, vault)
    say(output(), f"{vault} opens with the new passphrase, and no more with the old one.")


@device.command()
def forget(
    vault: VaultFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase a vault, its key first, then every file; and what its device has left outside."""
    from client.lock import LOCK, PERSON
    from client.vault import Vault

    if not any((vault / name).exists() for name in (LOCK, PERSON)):
        raise MesofedError(f"Expected a vault in {vault}; there is none. Nothing was changed.")
    if not yes and not sys.stdin.isatty():
        raise MesofedError(
            f"Expected a terminal to ask at whether to erase {vault}; there is none. Nothing was "
            "erased; with --yes nobody is asked."
        )

    from client.agent import owned
    from client.inspection import erase
    from client.traces import erase_traces

    with owned(Vault(vault)):  # before anybody is asked, so that no agent starts meanwhile
        if not yes and not typer.confirm(f"Erase {vault} for good?"):
            raise MesofedError("Nothing was erased.")
        said = _erased(vault)
        # First, for the vault knows where they are, and a kill must leave one that can be erased.
        gone, kept = erase_traces(vault)
        files, size = erase(vault)
    console = output()
    say(console, f"{vault} is gone: {files} files, {size:,} bytes.")
    for path in gone:
        say(console, f"Outside of it, {path} is gone too.")
    say(console, said)
    say(console, "What was exported from it, and the texts it was made of, are where you put them.")
    if kept:
        raise MesofedError(
            f"Expected to remove what lies outside of {vault}; could not: {'; '.join(kept)}. "
            "Remove it as the user who owns it."
        )


def _erased(vault: Path) -> str:
    """Say what is left of a vault that is about to be erased, elsewhere."""
    from client.lock import LOCK, read_lock
    from client.seal import NewerError

    if not (vault / LOCK).exists():
        return (
            "It was not encrypted: copies made elsewhere can be read as before, and so can what "
            "its run keeps of this person's answers (results/)."
        )
    try:
        kind = read_lock(vault).kind
    except NewerError:
        raise
    except MesofedError:
        return "Its lock was damaged, so nobody could open it any more."
    if kind == "keyring":
        return "Its key was destroyed first: no copy of these files can be read any more."
    return (
        f"Its key was destroyed first. A copy made before, with its {LOCK}, still opens with the "
        "passphrase: erase backups too."
    )


def _open_vault(folder: Path, passphrase_file: Path | None) -> "Vault":
    from client.lock import unlock
    from client.vault import Vault

    if not Vault(folder).exists:
        Vault(folder).person()  # says what to do
    return Vault(folder, unlock(folder, passphrase_from(passphrase_file)))


def _personalised(home: "Vault", config: Path | None) -> "Device":
    """Return the device of a vault that holds a release for the settings in use."""
    from shared.config import load_config

    home.person()
    found = _config_of(home, config)
    settings = load_config(found)
    home.whole_release()
    opened = _device_of(home, settings)
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


def _config_of(home: "Vault", config: Path | None) -> Path | None:
    """Return the settings to use, and say so where nobody has named them."""
    of_run = home.folder.resolve().parent.parent / "config.toml"
    if config is not None or not of_run.is_file():
        return config
    # Beside the answer, which may go into a pipe.
    say(notices(), f"Settings: {of_run} (that of the run the vault is in; --config names another)")
    return of_run


def _device_of(home: "Vault", settings: "RunConfig") -> "Device":
    from shared.progress import shown, stage

    with shown(notices()), stage(f"load {settings.base.name}", 1, "model"):
        from client.device import Device
        from shared.base_model import load_base
        from shared.compute import compute, use_threads

        use_threads(settings.threads)
        base = compute(lambda: load_base(settings.base, settings.adapt))
    return Device(base, home, settings.methods, settings.private, settings.seed, settings.privacy)


def _say_to_start(vault: Path, opened: tuple[str, ...]) -> None:
    console = output()
    say(console, f"Next: `{command('device', 'start', vault, *opened)}`")
    say(console, "  with --config FILE, if the server's settings are not the defaults")


def _socket_of(vault: Path) -> Path:
    """Return a vault's place to listen at, in a folder that only this user may enter."""
    from client.traces import socket_folders, socket_name

    folder = socket_folders()[0]
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder / socket_name(vault)


def _user_id(name: str) -> int:
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise MesofedError(f"Expected the name of a user of this system; got {name!r}.") from error
