"""The command `mesofed bench`."""

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from shared.console import output, say
from shared.interrupt import INTERRUPTED, stopping_in_order
from simulations.benchmarks.catalogue import ROWS, chosen

bench = typer.Typer(help="Measure Mesofed against PEFT and Flower on this machine.")

_NAMES = ", ".join(row.name for row in ROWS)


@bench.command()
def _bench(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="ROW", help=f"Run this row; may be repeated. {_NAMES}."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side is timed.")] = 3,
    model: Annotated[str, typer.Option(help="smollm2, tiny, a folder, or a hub id.")] = "smollm2",
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of each side; 0: one per core, which jitters.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; default: benchmarks/<time>.")
    ] = None,
) -> None:
    """Measure Mesofed against PEFT and Flower on this machine.

    Every peer runs in turn with ours, from the same weights and on the same
    samples, after both were found to compute the same. Takes about seven
    minutes on two idle cores and needs no network; a single row takes about
    one:

      mesofed bench --only train-qv
    """
    if threads:
        # Libraries read it when they are imported.
        os.environ["OMP_NUM_THREADS"] = str(threads)
    from shared.quiet import quiet_libraries

    quiet_libraries()
    from shared.progress import shown
    from simulations.benchmarks.bench import run_benchmark
    from simulations.benchmarks.measurement import Settings
    from simulations.benchmarks.table import render_results
    from simulations.benchmarks.wording import next_step

    rows = chosen(tuple(only or ()))
    folder = out or Path("benchmarks") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    console = output()
    try:
        with stopping_in_order(), shown(console):
            results = run_benchmark(Settings(model, rounds, threads), rows, folder)
    except KeyboardInterrupt:
        console.print(
            f"\nStopped. Rows that were done: {folder}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        # A thread may be deep in a computation; results are written whole, so just go.
        console.file.flush()
        os._exit(INTERRUPTED)
    console.print()
    console.print(render_results(results))
    page = (folder / "benchmark.html").resolve()
    console.print(f"\nPage: {page}", soft_wrap=True, highlight=False)
    say(console, f"Next: {next_step(results.figures, str(folder))}")
