"""The server of a contrast: it keeps and logs what the devices of a careless federation send."""

import logging
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import save_file

from shared.protocol import INSTALL_RELEASE, release_to_content
from shared.release_files import read_release_files
from shared.run_settings import resolve_run


def receiving_server() -> ServerApp:
    """Return a ServerApp that sends release 1 to all, and writes down what comes."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_dir = resolve_run(context).run_dir
        content = release_to_content(read_release_files(run_dir / "releases" / "r1"), 1)
        requests = [
            Message(content, node, INSTALL_RELEASE, group_id="1") for node in grid.get_node_ids()
        ]
        for reply in grid.send_and_receive(requests):
            _keep(run_dir, reply)

    return app


def _keep(run_dir: Path, reply: Message) -> None:
    if reply.has_error():
        logging.getLogger("flwr").error("a device failed: %s", reply.error.reason)
        return
    folder = run_dir / "uploads"
    folder.mkdir(exist_ok=True)
    for record in reply.content.array_records.values():
        arrays = {name: array.numpy() for name, array in record.items()}
        save_file(arrays, folder / f"{reply.metadata.src_node_id}.safetensors")
