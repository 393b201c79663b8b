"""The Ray engine: the same ServerApp and ClientApp on Flower's own simulation, in worker processes.

Flower runs a ServerApp in a thread of its own. Here that thread only lends its grid: the server
works in the calling thread, so that Ctrl-C, errors and the progress display are as on the local
engine.
"""

import shared.flower_environment  # noqa: F401 - before flwr, which reads it on import

# isort: split

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from shared.errors import MesofedError
from shared.flower_internals import Run, numbered_nodes, quiet_flower
from shared.run_settings import RUN_DIR_VARIABLE
from simulations.prepare import require_engine


def run_on_ray(
    server_app: ServerApp, client_app: ClientApp, run_dir: Path, devices: int, workers: int = 0
) -> None:
    """Run a ServerApp and a ClientApp on Ray.

    Parameters
    ----------
    run_dir : Path
        The run's folder; its ``config.toml`` is the run's configuration.
    devices : int
        Number of virtual SuperNodes.
    workers : int
        Worker processes, each with a base model of its own; 0: one per core.

    Raises
    ------
    MesofedError
        If Ray is not installed or breaks down, or the ServerApp raises it.
    """
    require_engine("ray")
    with (
        _environment(run_dir),
        quiet_flower(),
        numbered_nodes(),
        _simulation(client_app, devices, workers) as lent,
    ):
        server_app(*lent)


@contextmanager
def _environment(run_dir: Path) -> Iterator[None]:
    """Name the run folder to the worker processes, which get no run configuration."""
    before = {name: os.environ.get(name) for name in (RUN_DIR_VARIABLE, "PYTHONPATH")}
    os.environ[RUN_DIR_VARIABLE] = str(run_dir.absolute())
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _simulation(
    client_app: ClientApp, devices: int, workers: int
) -> Iterator[tuple[Grid, Context]]:
    """Start Flower's simulation in the background and lend its grid; stop it at the end."""
    from flwr.simulation import run_simulation

    lent: Queue[tuple[Grid, Context]] = Queue()
    failures: list[BaseException] = []
    finished = threading.Event()
    bridge = ServerApp()

    @bridge.main()
    def lend(grid: Grid, context: Context) -> None:
        lent.put((grid, context))
        finished.wait()

    def simulate() -> None:
        try:
            run_simulation(
                server_app=bridge,
                client_app=client_app,
                num_supernodes=devices,
                backend_config={
                    "init_args": {
                        "num_cpus": workers or os.cpu_count() or 1,
                        "include_dashboard": False,
                        "logging_level": "ERROR",
                        "log_to_driver": False,
                    },
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=simulate, name="flower-simulation", daemon=True)
    thread.start()
    try:
        grid, context = _first(lent, thread, failures)
        yield _WatchedGrid(grid, failures), context
    finally:
        finished.set()
        thread.join(timeout=30)
        _shut_down_ray()


def _first(
    lent: "Queue[tuple[Grid, Context]]", thread: threading.Thread, failures: list[BaseException]
) -> tuple[Grid, Context]:
    while True:
        try:
            return lent.get(timeout=0.1)
        except Empty:
            if not thread.is_alive():
                raise _broken(failures) from None


def _broken(failures: list[BaseException]) -> MesofedError:
    cause = f": {failures[0]}" if failures else ""
    return MesofedError(
        f"Flower's Ray simulation stopped before the run was finished{cause}. "
        'Resume the run, or use engine = "local".'
    )


def _shut_down_ray() -> None:
    import ray

    if ray.is_initialized():
        ray.shutdown()


class _WatchedGrid(Grid):
    """A grid that raises, instead of waiting for a deadline, when its engine has broken down."""

    def __init__(self, grid: Grid, failures: list[BaseException]) -> None:
        self._grid = grid
        self._failures = failures

    def _engine(self) -> Grid:
        if self._failures:
            raise _broken(self._failures)
        return self._grid

    def set_run(self, run: Run) -> None:
        """Pass on."""
        self._engine().set_run(run)

    @property
    def run(self) -> Run:
        """The simulation's run."""
        return self._engine().run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Pass on."""
        return self._engine().create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Pass on."""
        return self._engine().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self._engine().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return self._engine().pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Pass on."""
        return self._engine().send_and_receive(messages, timeout=timeout)
