"""The methods under comparison: each declared once, in the order of tables."""

from dataclasses import replace

from shared.tasks import ALIKE
from simulations.baselines.federated_averaging import FEDERATED
from simulations.baselines.majority import MAJORITIES
from simulations.baselines.mta import MTA
from simulations.baselines.per_pcs import PER_PCS
from simulations.baselines.proper import PROPERS
from simulations.baselines.retrieval import RETRIEVALS
from simulations.comparison.contender import Contender, of_devices

# ALIKE: an own item helped on headlines, where it shows how such a text was answered before;
# elsewhere it gained nothing or did harm (docs/research-log.md).
CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        of_devices("base"),
        of_devices("population"),
        of_devices("population-prior"),
        *MAJORITIES,
        *RETRIEVALS,
        of_devices("oppu"),
        of_devices("oppu-qv"),
        of_devices("oppu", 1, "oppu-rag-1", ALIKE),
        *PROPERS,
        of_devices("proper-folded"),
        PER_PCS,
        MTA,
        of_devices("mta-exact"),
        *FEDERATED,
        of_devices("experts"),
        of_devices("anchors"),
        of_devices("meso-code"),
        of_devices("meso-no-prior"),
        # Centralized, the server has trained on the very history that the gate reads.
        replace(of_devices("meso-gated"), settings=("federated",)),
        of_devices("meso-no-release"),
        of_devices("meso-r1"),
        of_devices("meso"),
        of_devices("meso-no-release", 1, "meso-rag-1-no-release", ALIKE),
        of_devices("meso", 1, "meso-rag-1", ALIKE),
        of_devices("meso-tuned"),
        of_devices("meso-r4"),
    )
}
