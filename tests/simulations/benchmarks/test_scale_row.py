"""Scale: a federation is counted whole, and what a device costs is compared."""

import pytest

from shared.errors import MesofedError
from simulations.benchmarks import scale
from simulations.benchmarks.catalogue import chosen
from simulations.benchmarks.federation import SERVER_USERS, run_config
from simulations.benchmarks.measurement import Settings
from simulations.benchmarks.own_process import MIB, STATUS, measured_apart

linux = pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")


def found(devices: int, **changed: float) -> dict[str, float]:
    """Return what a federation takes whose devices cost half a second each."""
    return {
        "processor": devices / 2,
        "results": devices,
        "peak_mib": 1024.0,
        "kept_mib": 600.0,
        **changed,
    }


def test_the_row_is_run_by_name_only() -> None:
    assert "scale" not in [row.name for row in chosen(())]
    assert [row.name for row in chosen(("scale",))] == ["scale"]


def test_the_server_does_the_same_for_any_number_of_devices() -> None:
    few, many = run_config("tiny", 30, 1), run_config("tiny", 1000, 1)
    assert (few.corpus.device_users, many.corpus.device_users) == (30, 1000)
    same = {"corpus": many.corpus.model_copy(update={"device_users": 30})}
    assert many.model_copy(update=same) == few
    assert few.corpus.server_users == SERVER_USERS


@linux
def test_time_per_device_and_memory_are_held_to_their_bars(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {1000: found(1000, processor=1000.0, peak_mib=12.0 * 1024, kept_mib=900.0)}
    monkeypatch.setattr(
        scale, "measured_apart", lambda _, a, *rest: slow.get(int(a[1]), found(int(a[1])))
    )
    memory, seconds, kept = scale.many_devices(settings, lambda: None).figures
    assert (memory.median, memory.met) == (1.5, False)
    assert (seconds.median, seconds.met) == (2.0, False)
    assert (kept.median, kept.met) == (1.5, False)
    slow.clear()
    memory, seconds, kept = scale.many_devices(settings, lambda: None).figures
    assert (kept.median, kept.met) == (1.0, True)
    assert (memory.median, memory.met) == (1024 * MIB / (8 << 30), True)
    assert (seconds.median, seconds.met) == (1.0, True)


@linux
def test_a_device_without_a_result_is_noticed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "measured_apart", lambda *_: found(30, results=29))
    with pytest.raises(MesofedError, match="result of each of 30 devices; got 29"):
        scale.many_devices(settings, lambda: None)


@linux
@pytest.mark.slow
def test_a_device_leaves_no_memory_behind(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.delenv(limit, raising=False)
    few, many = (
        measured_apart(scale.MEASURE, ("tiny", str(n), "1"), settings, f"{n} devices", "scale")
        for n in (30, 120)
    )
    # Of what is left 0.3 to 0.5 MiB, as more are at work at once. With a thousand kernels: 1.7.
    assert (many["kept_mib"] - few["kept_mib"]) / 90 < 1.0
