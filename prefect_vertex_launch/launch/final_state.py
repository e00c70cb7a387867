"""The state in which the flow run of a launch ends, and the words that explain it."""

from __future__ import annotations

from typing import Any

from prefect import State
from prefect.states import Cancelled, Completed, Failed

from prefect_vertex_launch.coordination.launch_store import ELSEWHERE
from prefect_vertex_launch.core.diagnosis import (
    Category,
    Diagnosis,
    logs_url,
    no_run,
    refused,
    stopped,
    unforeseen_end,
)
from prefect_vertex_launch.core.errors import Permanent, Unforeseen
from prefect_vertex_launch.core.states import SUCCESS, Requester
from prefect_vertex_launch.launch.attempts import diagnose_attempt
from prefect_vertex_launch.launch.launch import Launch

CANCELLED = frozenset({Category.CANCELLED, Category.CANCELLED_ELSEWHERE})
_CATEGORY = " Category: "
_STATE_NAMES = {
    Category.REFUSED: "Refused",
    Category.UNFORESEEN: "Unforeseen",
    Category.EXPIRED: "Expired",
    Category.LOST: "Lost",
    Category.QUEUEING_TIMEOUT: "TimedOut",
    Category.START_TIMEOUT: "TimedOut",
}


def elsewhere_state(error: Permanent) -> State[Any]:
    """Return the state of a flow run whose item somebody else has."""
    return Cancelled(name=ELSEWHERE, message=str(error))


def final_state(launch: Launch) -> State[Any]:
    """Return the state in which the flow run of an ended launch ends."""
    diagnosis = diagnosis_of(launch)
    message = launch.clean(explain(launch, diagnosis))
    is_cancelled = launch.stop is not None and launch.stop.who is Requester.PREFECT
    if launch.refusal is None and (is_cancelled or diagnosis.category in CANCELLED):
        # Prefect takes no other end of a run that was cancelled there, however its job ended.
        return Cancelled(message=message)
    if diagnosis.category is Category.SUCCEEDED:
        return Completed(message=launch.clean(diagnosis.summary))
    return Failed(name=_STATE_NAMES.get(diagnosis.category, "Failed"), message=message)


def diagnosis_of(launch: Launch) -> Diagnosis:
    """Return why the launch ended as it did."""
    if launch.refusal is not None:
        say = unforeseen_end if isinstance(launch.refusal, Unforeseen) else refused
        return say(str(launch.refusal))
    if launch.job is None:
        assert launch.stop is not None
        return stopped(launch.stop)
    if launch.job.launch_state in SUCCESS and not launch.run_showed_up:
        return no_run(launch.job)
    return diagnose_attempt(launch, launch.job)


def explain(launch: Launch, diagnosis: Diagnosis) -> str:
    """Return what happened, why, who wanted it, and what to do; a refusal is all of that itself."""
    if launch.refusal is not None:
        return str(launch.refusal)
    job = launch.job
    what = "there was no job yet" if job is None else f"{job.name} {job.launch_state.value}"
    parts = [f"{diagnosis.summary}{_CATEGORY}{diagnosis.category.value} ({what})."]
    if launch.ended:
        parts.append(f"It was attempt {launch.attempt.number} of this run.")
    if diagnosis.detail:
        parts.append(f"Vertex AI said: {diagnosis.detail.rstrip('.')}.")
    if diagnosis.remedy:
        parts.append(diagnosis.remedy)
    if job is not None:
        parts.append(f"Logs: {logs_url(job.name)}")
    return " ".join(parts)


def summary_of(message: str) -> str:
    """Return what happened in one line, from what `explain` said of it."""
    return message.split(_CATEGORY, 1)[0].split("\n", 1)[0]
