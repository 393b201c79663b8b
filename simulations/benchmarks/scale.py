"""The row on scale: what a device costs in time and memory as devices grow; run by name only."""

from collections.abc import Callable

from shared.errors import MesofedError
from shared.program import command
from shared.progress import stage
from simulations.benchmarks.measurement import Bar, Figure, Finding, Settings
from simulations.benchmarks.own_process import MIB, STATUS, measured_apart

MEASURE = "simulations.benchmarks.federation"
MEMORY_GIB = 8
TINY, OTHERS = (30, 100, 300, 1000), (30, 300)
# Time of a device among many, over that among few; and memory in the end, all devices together.
CONSTANT = 1.25


def many_devices(settings: Settings, on_round: Callable[[], None]) -> Finding:
    """Run federations of more and more devices, each in a process of its own."""
    if not STATUS.exists():
        return Finding(skipped="peak memory is read from /proc, which only Linux has")
    runs: dict[int, dict[str, float]] = {}
    for devices in TINY if settings.model == "tiny" else OTHERS:
        with stage(f"  {devices} devices", 1, "federations"):
            runs[devices] = _measured(devices, settings)
    on_round()
    least, most = min(runs), max(runs)
    times = {devices: run["processor"] / devices for devices, run in runs.items()}
    return Finding(
        figures=(
            Figure(
                f"peak memory, {most} devices",
                f"{MEMORY_GIB} GiB",
                (runs[most]["peak_mib"] * MIB / (MEMORY_GIB << 30),),
                Bar(1.0, at_least=False),
                higher_is_better=False,
            ),
            Figure(
                f"time of a device, among {most}",
                f"among {least}",
                (times[most] / times[least],),
                Bar(CONSTANT, at_least=False),
                higher_is_better=False,
            ),
            Figure(
                f"memory kept after {most} devices",
                f"after {least}",
                (runs[most]["kept_mib"] / runs[least]["kept_mib"],),
                Bar(CONSTANT, at_least=False),
                higher_is_better=False,
            ),
        ),
        facts={"federations": {str(devices): run for devices, run in runs.items()}},
    )


def _measured(devices: int, settings: Settings) -> dict[str, float]:
    """Measure one federation.

    Raises
    ------
    MesofedError
        If a device has no result: then the federation was smaller than it should be.
    """
    arguments = (settings.model, str(devices), str(settings.threads))
    run = measured_apart(MEASURE, arguments, settings, f"{devices} devices", "scale")
    if run["results"] != devices:
        raise MesofedError(
            f"Expected a result of each of {devices} devices; got {run['results']:.0f}. Run "
            f"`{command('simulate')}` with as many devices to see which fail."
        )
    return run
