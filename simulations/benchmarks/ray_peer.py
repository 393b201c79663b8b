"""The peer of a whole round: a ClientApp that trains one PEFT model a client, and its ServerApp.

Each client does what tutorials on federated fine-tuning show: load the model, wrap it, take the
server's adapter, train on its own samples, answer with its losses. Samples, order, rates and
start are those of our devices, so that both sides must arrive at the same losses.
"""

import shared.flower_environment  # noqa: F401 - before flwr, which reads it on import

# isort: split

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from server.rounds import wait_for_devices
from shared.atomic_file import write_json
from shared.errors import MesofedError
from shared.run_settings import partition, run_folder

DEADLINE_SECONDS = 1800.0

client = ClientApp()


@dataclass(frozen=True)
class ClientWork:
    """What one client trains on.

    Attributes
    ----------
    model : str
        Name of the base model.
    rank : int
        Of the private LoRA.
    start_seed : int
        From which it starts.
    weight_decay, clip_norm : float
    rates : list of float
        Learning rate of each step.
    batches : list of list of (prompt, answer)
        Token ids of each step's samples.
    """

    model: str
    rank: int
    start_seed: int
    weight_decay: float
    clip_norm: float
    rates: list[float]
    batches: list[list[tuple[list[int], list[int]]]]


def write_work(run_dir: Path, clients: Sequence[ClientWork]) -> None:
    """Put each client's work where its worker process finds it."""
    for index, work in enumerate(clients):
        write_json(_work_file(run_dir, index), asdict(work))


def read_work(run_dir: Path, index: int) -> ClientWork:
    """Return one client's work."""
    return ClientWork(**json.loads(_work_file(run_dir, index).read_text(encoding="utf-8")))


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train a client; answer with its losses and when it began."""
    began = time.time()
    from shared.quiet import quiet_libraries

    quiet_libraries()
    import torch

    torch.set_num_threads(1)  # Ray gives each worker one core
    received = message.content["population"]
    assert isinstance(received, ArrayRecord)
    population = {name: torch.from_numpy(array.numpy().copy()) for name, array in received.items()}
    losses = train_client(read_work(run_folder(context), partition(context)), population)
    answer = MetricRecord({"losses": losses, "began": began, "partition": partition(context)})
    return Message(RecordDict({"metrics": answer}), reply_to=message)


def train_client(work: ClientWork, population: Mapping[str, Tensor]) -> list[float]:
    """Load, wrap and train one PEFT model in fp32.

    Parameters
    ----------
    population : mapping of Tensor
        The server's adapter, as ``Lora.tensors`` names it; merged into the base model.

    Returns
    -------
    list of float
        Loss of each step, in nats per answer token.
    """
    import torch
    from peft import get_peft_model

    from shared.lora.lora import LinearMap, Lora
    from shared.lora.slab import Slab
    from simulations.benchmarks.models import plain_model
    from simulations.benchmarks.peft_peer import adapter_name, fill_adapter, lora_config, wrap

    model = plain_model(work.model, torch.float32, torch.device("cpu"))
    shared = Lora.from_tensors(dict(population))
    config = lora_config(list(shared.factors), shared.rank)
    served = get_peft_model(model, config, "population")
    fill_adapter(served, "population", shared.factors)
    model = served.merge_and_unload()
    maps = tuple(
        LinearMap(name, pair.a.shape[0], pair.b.shape[1]) for name, pair in shared.factors.items()
    )
    wrapped = wrap(model, Slab.initial(maps, work.rank, [work.start_seed])).train()
    wrapped.set_adapter(adapter_name(0))
    learned = [p for p in wrapped.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, weight_decay=work.weight_decay, fused=True)
    losses = []
    for rate, batch in zip(work.rates, work.batches, strict=True):
        ids, mask, labels = padded(batch)
        logits = wrapped(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = mean_of_samples(logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, work.clip_norm)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def server_of(
    population: Mapping[str, Tensor],
    clients: int,
    answers: dict[int, list[float]],
    times: list[float],
) -> ServerApp:
    """Return a ServerApp that sends every client the adapter and waits for all losses.

    Parameters
    ----------
    answers : dict of int to list of float
        Filled with each client's losses.
    times : list of float
        Filled with when each client began, in seconds of the epoch.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        content = RecordDict({"population": ArrayRecord(dict(population))})
        requests = [
            Message(content, node, "train")
            for node in wait_for_devices(grid, clients, DEADLINE_SECONDS)
        ]
        replies = list(grid.send_and_receive(requests, timeout=DEADLINE_SECONDS))
        for metrics in losses_of(replies):
            answers[int(metrics["partition"])] = list(metrics["losses"])
            times.append(float(metrics["began"]))

    return app


def losses_of(replies: Sequence[Any]) -> list[Any]:
    """Return what the clients answered.

    Raises
    ------
    MesofedError
        If a client has failed: then the round is no round.
    """
    for reply in replies:
        if reply.has_error():
            raise MesofedError(
                f"Expected every client of the peer to train; one failed with: "
                f"{reply.error.reason}. Leave this row out with --only."
            )
    return [reply.content["metrics"] for reply in replies]


def padded(
    batch: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and labels of samples, (rows, tokens) each, padded on the right."""
    import torch

    from simulations.benchmarks.workload import IGNORED

    length = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (prompt, answer) in enumerate(batch):
        tokens = torch.tensor([*prompt, *answer])
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return ids, mask, labels


def mean_of_samples(logits: Tensor, labels: Tensor) -> Tensor:
    """Average the answer losses within each sample, then over the samples, as our trainer does.

    Parameters
    ----------
    logits : Tensor, (rows, tokens, vocabulary)
    labels : Tensor, (rows, tokens)
        Not yet shifted; ``IGNORED`` where there is no answer.
    """
    import torch

    from simulations.benchmarks.workload import IGNORED

    wanted = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].mT, wanted, ignore_index=IGNORED, reduction="none"
    )  # (rows, tokens - 1)
    return (losses.sum(1) / (wanted != IGNORED).sum(1)).mean()


def _work_file(run_dir: Path, index: int) -> Path:
    return run_dir / "clients" / f"{index:04d}.json"
