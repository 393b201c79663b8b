"""The error of the group shares is that of a Gaussian mean, by theory."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.config import PrivacyConfig
from shared.privacy import calibrate
from simulations.report.page import write_report
from simulations.report.read import read_run
from simulations.report.run import RouterUse
from simulations.report.share_error import (
    EPSILONS,
    Federation,
    federation_of,
    measured,
    share_error,
    share_errors,
)

Writer = Callable[..., Path]
SHARES, EXPERTS = (0.4, 0.3, 0.2, 0.1), 4


def federation(
    devices: int, *, known: bool, needed: int = 3, honest_share: float = 0.5
) -> Federation:
    use = RouterUse(SHARES, (0.5, 0.5), 0.3, 0.9)
    return Federation(
        statistics=(use,) * devices if known else (),
        mean=SHARES,
        devices=devices,
        needed=needed,
        joined=devices,
        rounds=2,
        privacy=PrivacyConfig(honest_share=honest_share),
    )


def expected(deviation: float) -> float:
    """Return the mean absolute value of a share's noise, by theory.

    Within the simplex the nearest point takes the noise's mean off, which leaves a Gaussian of
    1 - 1 / E of the variance; the mean absolute value of a Gaussian is sqrt(2 / pi) deviations.
    """
    return deviation * math.sqrt((1 - 1 / EXPERTS) * 2 / math.pi)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("mode", ["local", "central"])
def test_the_error_is_that_of_a_gaussian_mean(known: bool, mode: str) -> None:
    devices, needed, epsilon = 400, 300, 32.0
    # One device's deviation, in shares: the sensitivity is sqrt(21 / 4) of a whole.
    one = calibrate(epsilon, 1e-5, 2) * math.sqrt(21 / 4)
    # A device adds a share of the noise of 100: of the 300 needed, 200 may be dishonest.
    own = one if mode == "local" else one / math.sqrt(100)
    found = [
        share_error(federation(devices, known=known, needed=needed), mode, e)
        for e in (epsilon, epsilon * 1.001, epsilon * 0.999)  # independent draws
    ]
    deviation = own / math.sqrt(devices)
    assert deviation < 0.06  # so that the simplex's borders are far
    # Of 75 rounds of four shares, three of which are free, the mean error deviates by a twentieth.
    assert sum(found) / 3 == pytest.approx(expected(deviation), rel=0.15)


@pytest.mark.parametrize("known", [True, False])
def test_central_needs_less_noise_by_the_root_of_the_devices(known: bool) -> None:
    """Where all are needed and all are honest, one device's noise is divided among all of them."""
    devices = 100
    everyone = federation(devices, known=known, needed=devices, honest_share=1.0)
    local, central = (share_error(everyone, mode, 32.0) for mode in ("local", "central"))
    assert local / central == pytest.approx(math.sqrt(devices), rel=0.3)


def test_too_few_devices_for_a_secure_sum_leave_local_noise_alone() -> None:
    assert federation(3, known=True).modes == ("local", "central")
    few = federation(2, known=True)
    assert few.modes == ("local",)
    asked = replace(few, privacy=PrivacyConfig(mode="central"))
    found = measured(asked)
    assert set(found.lines) == {"local"}
    assert found.own is None


def test_with_few_needed_of_many_central_is_as_far_off_as_local() -> None:
    """Of the three that are needed all may be dishonest: every device adds the whole noise."""
    few = federation(100, known=False, needed=3)
    local, central = (share_error(few, mode, 32.0) for mode in ("local", "central"))
    assert central == pytest.approx(local, rel=0.3)


def test_more_devices_and_central_noise_and_larger_budgets_are_more_exact() -> None:
    small, large = federation(8, known=True), federation(200, known=True, needed=150)
    assert share_error(large, "local", 8.0) < share_error(small, "local", 8.0)
    assert share_error(large, "central", 8.0) < share_error(large, "local", 8.0)
    assert share_error(large, "central", 32.0) < share_error(large, "central", 0.5)


def configured(folder: Path, text: str) -> Path:
    (folder / "config.toml").write_text(text)
    return folder


def test_the_report_marks_the_run_s_own_budget(fake_run: Writer) -> None:
    folder = configured(
        fake_run(tasks=("rating",)), '[privacy]\nmode = "central"\nepsilon = 6.0\nrounds = 3\n'
    )
    found = share_errors(read_run(folder))
    assert found is not None
    assert found.known
    assert (found.devices, found.rounds) == (12, 3)
    assert [epsilon for epsilon, _ in found.lines["local"]] == list(EPSILONS)
    assert set(found.lines) == {"local", "central"}
    assert found.own is not None
    assert found.own[:2] == ("central", 6.0)
    central = dict(found.lines["central"])
    assert central[16.0] < found.own[2] < central[1.0]
    html = write_report(folder).read_text(encoding="utf-8")
    chart = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    (chart,) = [svg for svg in chart if "share-error-t" in svg]
    for word in ("local", "central", f"this run: {found.own[2]:.3f}"):
        assert f">{word}<" in chart
    assert "own budget is epsilon 6 in mode central" in html
    # Told apart without colour: one of the lines is dashed.
    assert "stroke-dasharray" in chart


def test_without_noise_nothing_is_marked(fake_run: Writer) -> None:
    folder = fake_run(tasks=("rating",))
    found = share_errors(read_run(folder))
    assert found is not None
    assert found.own is None
    assert "This run added no noise." in write_report(folder).read_text(encoding="utf-8")


def test_where_only_a_sum_is_known_its_mean_and_the_noise_s_deviation_are_used(
    fake_run: Writer,
) -> None:
    folder = configured(fake_run(devices=0), '[privacy]\nmode = "central"\n')
    path = folder / "statistics/r1.json"
    data: dict[str, Any] = json.loads(path.read_text())
    nodes = [{"node": n, "bytes_down": 1, "bytes_up": 1} for n in range(20)]
    mean = {"expert_weights": list(SHARES), "anchor_weights": [1.0]}
    path.write_text(
        json.dumps({**data, "asked": 20, "answered": 20, "devices": nodes, "mean": mean})
    )
    found = federation_of(read_run(folder))
    assert found is not None
    assert (found.statistics, found.mean, found.devices, found.needed) == ((), SHARES, 20, 10)
    assert "the known standard deviation" in write_report(folder).read_text(encoding="utf-8")
    path.write_text(json.dumps({**data, "asked": 20, "answered": 20, "devices": [], "mean": None}))
    assert federation_of(read_run(folder)) is None


@pytest.mark.parametrize("looked_up", [0, 20])
def test_the_noise_is_that_of_a_sum_of_those_that_joined_and_the_mean_of_those_in_it(
    fake_run: Writer, looked_up: int
) -> None:
    """Of 20 asked, 12 joined the sum and 10 are in it; a simulation has looked into all vaults."""
    text = '[privacy]\nmode = "central"\nepsilon = 32.0\nrounds = 1\nhonest_share = 0.5\n'
    folder = configured(fake_run(devices=looked_up), text)
    path = folder / "statistics/r1.json"
    data: dict[str, Any] = json.loads(path.read_text())
    nodes = [{"node": n, "bytes_down": 1, "bytes_up": 1} for n in range(10)]
    mean = {"expert_weights": list(SHARES), "anchor_weights": [1.0]}
    counts = {"asked": 20, "joined": 12, "answered": 10}
    path.write_text(json.dumps({**data, **counts, "devices": nodes, "mean": mean}))
    found = federation_of(read_run(folder))
    assert found is not None
    assert len(found.statistics) == looked_up
    assert (found.devices, found.needed, found.joined) == (10, 10, 12)
    # Of the 10 that are needed 6 of the 12 may be dishonest, so each adds a fourth of the noise.
    deviation = calibrate(32.0, 1e-5, 1) * math.sqrt(21 / 4) / math.sqrt(4) / math.sqrt(10)
    errors = [share_error(found, "central", e) for e in (32.0, 32.01, 31.99, 32.02)]
    assert sum(errors) / 4 == pytest.approx(expected(deviation), rel=0.12)


@pytest.mark.parametrize("text", ["", "seed = ", "no_such_setting = 1\n"])
def test_a_configuration_that_says_nothing_here_costs_no_more_than_the_chart(
    fake_run: Writer, text: str
) -> None:
    folder = configured(fake_run(devices=1, tasks=("rating",)), text)
    assert share_errors(read_run(folder)) is None
    assert "under privacy" not in write_report(folder).read_text(encoding="utf-8")
