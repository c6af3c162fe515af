"""Machines of the running Ray, with what each job of Ray holds on them.

Ray itself says how much of a machine is free, but not who has the rest. Its tables of actors and of placement groups
say it for all that is held for long. Tasks are not in them: they end, and leave their room to whoever asks next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.packing import KINDS, Resources


@dataclass(frozen=True)
class Machine:
    """A live machine."""

    total: Resources
    """All that it has, whether in use or not."""
    held: Mapping[str, Sequence[Resources]]
    """The amounts that the actors and the placement groups of each job hold, by the id of the job in Ray."""


def look_at_machines() -> list[Machine]:
    """Return the live machines of the running Ray that have CPUs or GPUs."""
    import ray

    held = _held_by_node()
    return [
        Machine(node["Resources"], held.get(node["NodeID"], {}))
        for node in ray.nodes()
        if node["Alive"] and any(node["Resources"].get(kind, 0) for kind in KINDS)
    ]


def _held_by_node() -> dict[str, dict[str, list[Resources]]]:
    """Return the amounts that are held, by the ids of machine and job."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

    held: dict[str, dict[str, list[Resources]]] = defaultdict(lambda: defaultdict(list))

    def note(node: bytes, job: bytes, amounts: Mapping[str, float]) -> None:
        held[node.hex()][job.hex()].append({kind: amounts[kind] for kind in KINDS if kind in amounts})

    # The public lists lack the resources of actors, and the jobs of placement groups.
    tables: Any = state._connect_and_get_accessor()
    for data in tables.get_actor_table(None, "ALIVE"):
        actor = ActorTableData.FromString(data)
        if not actor.placement_group_id:  # such a group holds what its actors use
            note(actor.address.node_id, actor.job_id, actor.required_resources)
    for data in tables.get_placement_group_table():
        group = PlacementGroupTableData.FromString(data)
        if group.state != PlacementGroupTableData.REMOVED:
            for bundle in group.bundles:
                if bundle.node_id:  # it has been placed
                    note(bundle.node_id, group.creator_job_id, bundle.unit_resources)
    return held
