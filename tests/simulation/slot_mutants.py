"""How the agent counts its jobs and keeps its slots, broken on purpose: mutants as in `mutants`."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun

from prefect_vertex_launch.agent.adoption import Adoption
from prefect_vertex_launch.agent.supervisor import Supervisor
from prefect_vertex_launch.coordination import slots
from prefect_vertex_launch.coordination.launch_record import lease_of
from prefect_vertex_launch.coordination.launch_store import LaunchStore
from prefect_vertex_launch.coordination.slot import Slot
from prefect_vertex_launch.coordination.slots import Slots
from prefect_vertex_launch.launch import submit
from prefect_vertex_launch.launch.launch import Launch
from tests.simulation.mutant import Gaps, Seed, do_nothing, noticed_by


@noticed_by(Seed(1), 3, 4)
def limit_ignored(patch: pytest.MonkeyPatch) -> None:
    """A slot is granted whether or not there is one."""

    async def granted(self: Slots) -> Slot:
        slot = self.owe()
        slot.is_counted = True
        return slot

    patch.setattr(Slots, "try_take", granted)


@noticed_by(Seed(2), 3)
def slot_freed_at_submission(patch: pytest.MonkeyPatch) -> None:
    """A slot is given back once the job is created."""
    submit_job = submit.submit

    async def submit_and_free(launch: Launch, *, may_create: bool = True) -> str:
        name = await submit_job(launch, may_create=may_create)
        launch.job_ended.set()
        return name

    patch.setattr(submit, "submit", submit_and_free)


@noticed_by(Seed(17), 3, 4)
def slot_freed_at_hand_over(patch: pytest.MonkeyPatch) -> None:
    """The slot of a launch that is left to another agent is given back though its job runs on."""
    leave = Supervisor._leave

    async def leave_without(self: Supervisor, flow_run: FlowRun, launch: Launch) -> None:
        if lease_id := lease_of(flow_run.labels):
            await self._store._client.release_concurrency_slots_with_lease(lease_id=lease_id)
        await leave(self, flow_run, launch)

    patch.setattr(Supervisor, "_leave", leave_without)


@noticed_by(Seed(4), 4)
def slot_never_freed(patch: pytest.MonkeyPatch) -> None:
    """The slot of a launch that is over is neither given back nor left: it is renewed for ever."""
    patch.setattr(Slots, "release", do_nothing)
    patch.setattr(Slots, "forget", lambda *_: None)


@noticed_by(Seed(1), 4)
def lease_not_noted(patch: pytest.MonkeyPatch) -> None:
    """A launch does not say which slot is its own, so that whoever adopts it has none."""
    patch.setattr(Slots, "labels_of", lambda *_: {})
    patch.setattr(Slots, "_note", do_nothing)


@noticed_by(Seed(7), 3, 4)
def live_slots_mended_away(patch: pytest.MonkeyPatch) -> None:
    """Slots that live launches hold are taken for nobody's and freed."""

    async def none_noted(*_: Any) -> set[UUID]:
        return set()

    patch.setattr(LaunchStore, "with_slot", none_noted)


@noticed_by(Seed(1), 4, 10)
def lost_slots_not_mended(patch: pytest.MonkeyPatch) -> None:
    """Slots that a restarted server counts and nobody holds stay counted."""
    patch.setattr(Slots, "mend", do_nothing)


@noticed_by(Seed(54), 4, 10)
def lost_slots_of_shared_limits_not_mended(patch: pytest.MonkeyPatch) -> None:
    """Slots that a restarted server counts under a shared limit and nobody holds stay counted."""
    patch.setattr(slots, "SHARED_LIMIT_PREFIX", "there is none")


@noticed_by(Gaps("more than there are slots"), 3, 4)
def slot_given_back_by_who_had_it_before(patch: pytest.MonkeyPatch) -> None:
    """An agent gives back a slot that went to another one with its launch, and counts one that is gone."""

    async def give_back(_self: Supervisor, launch: Launch, slots: Slots) -> None:
        await slots.release(launch.slot)

    async def is_own(_self: Slots, _slot: Slot) -> bool:
        return False

    patch.setattr(Supervisor, "_give_back", give_back)
    patch.setattr(Slots, "_is_taken", is_own)


@noticed_by(Seed(5), 3, 4)
def leases_never_renewed(patch: pytest.MonkeyPatch) -> None:
    """A slot ends while its job runs."""
    patch.setattr(Slots, "keep_renewed", do_nothing)
    patch.setattr(Slot, "may_have_ended", lambda *_: False)


@noticed_by(Seed(64), 4)
def slots_given_back_too_late(patch: pytest.MonkeyPatch) -> None:
    """A slot is left to its lease when its launch has ended."""
    patch.setattr(Supervisor, "_give_back", do_nothing)


@noticed_by(Seed(516), 3, 4)
def items_taken_before_adoption(patch: pytest.MonkeyPatch) -> None:
    """New items are taken while nobody knows what runs unattended, on slots that are not free."""
    patch.setattr(Adoption, "is_clear", lambda _: True)


@noticed_by(Seed(69), 3, 4)
def ended_lease_taken_for_a_forgotten_one(patch: pytest.MonkeyPatch) -> None:
    """A slot whose lease has ended, and which may be somebody else's by now, is taken for a counted one."""
    patch.setattr(Slots, "_has_ended", lambda *_: False)


@noticed_by(Seed(790), 3)
def job_created_though_its_slot_is_lost(patch: pytest.MonkeyPatch) -> None:
    """A launch that has lost its slot before it had a job creates that all the same."""
    patch.setattr(Launch, "has_slot", lambda *_: True)
