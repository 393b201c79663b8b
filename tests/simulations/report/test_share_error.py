"""The error of the group shares under noise, against the standard deviation of a Gaussian mean."""

import math
from dataclasses import replace

import pytest

from shared.config import PrivacyConfig
from shared.privacy import calibrate
from shared.statistic_vector import SQUARED_SENSITIVITY, UNITS
from simulations.report.run import RouterUse
from simulations.report.share_error import Federation, share_error

DEVICES, EXPERTS = 100, 4
USE = RouterUse((0.25, 0.25, 0.25, 0.25), (0.5, 0.5), 0.5, 1.0)
FEDERATION = Federation(
    statistics=(USE,) * DEVICES,
    mean=USE.expert_weights,
    devices=DEVICES,
    needed=DEVICES,
    rounds=1,
    privacy=PrivacyConfig(mode="local", epsilon=32.0, delta=1e-5, honest_share=1.0),
)


def expected(epsilon: float, noises: int) -> float:
    """Mean absolute error of a share: Gaussian, of ``noises`` whole noises in the sum.

    The nearest point of the simplex takes the mean of the four errors away, as long as no share
    comes near to zero: a quarter of the variance goes.
    """
    sigma = calibrate(epsilon, 1e-5, 1) * math.sqrt(SQUARED_SENSITIVITY * noises) / UNITS / DEVICES
    return sigma * math.sqrt(1 - 1 / EXPERTS) * math.sqrt(2 / math.pi)


@pytest.mark.parametrize(("mode", "noises"), [("local", DEVICES), ("central", 1)])
@pytest.mark.parametrize("known", [True, False])
def test_the_error_is_that_of_a_gaussian_mean(mode: str, noises: int, known: bool) -> None:
    federation = FEDERATION if known else replace(FEDERATION, statistics=())
    found = share_error(federation, mode, 32.0)
    # Twenty-five rounds of four shares: their mean error is within a quarter of what it tends to.
    assert found == pytest.approx(expected(32.0, noises), rel=0.25)


def test_central_needs_less_noise_by_the_root_of_the_devices() -> None:
    local, central = (share_error(FEDERATION, mode, 32.0) for mode in ("local", "central"))
    assert local / central == pytest.approx(math.sqrt(DEVICES), rel=0.35)


def test_too_few_devices_for_a_secure_sum_leave_local_noise_alone() -> None:
    assert FEDERATION.modes == ("local", "central")
    assert replace(FEDERATION, devices=2, needed=3).modes == ("local",)
