"""What a member can see of others in a release: of the devices' statistics, their mean alone."""

import json
import shutil
from pathlib import Path
from typing import Any

from server.training import train_release
from shared.release_files import read_release_files


def test_a_release_follows_from_the_mean_and_from_no_device_s_own_statistics(
    federation: Any, tmp_path: Path
) -> None:
    for part in ("keys", "training", "releases", "statistics"):
        shutil.copytree(federation.run_dir / part, tmp_path / part)
    for part in ("training", "releases"):
        shutil.rmtree(tmp_path / part / "r2")
    path = tmp_path / "statistics" / "r1.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert len(record["devices"]) > 1
    assert all(device["statistics"] for device in record["devices"])
    # Nothing of the single devices is there any more; the same bytes come of it.
    path.write_text(json.dumps({**record, "devices": []}), encoding="utf-8")
    folder = train_release(federation.config, tmp_path, 2, federation.people.server)
    assert read_release_files(folder) == federation.release_files(2)
