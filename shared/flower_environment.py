"""Flower's and Ray's switches, set before either is imported: import this module first.

Flower reads its telemetry switch while it is being imported, so engines start with

    import shared.flower_environment  # noqa: F401
    # isort: split

and only then import ``flwr``. What a person has set in the environment stays as it is.
"""

import os

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Otherwise a SuperLink installs every dependency (torch too) anew for each run.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without a GPU to lend, Ray would hide all GPUs from its workers, and warn about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

for _name, _value in SWITCHES.items():
    os.environ.setdefault(_name, _value)
