"""A sweep scheduler as a run queue item: how it is told from a run, and which sweep it schedules.

It is what `wandb launch-sweep` leaves in a queue, beside the trials that it pushes there itself:

    uri          placeholder-uri-scheduler; nothing else marks one
    resource     local-process, with a scheduler job local-container, unless the sweep's `scheduler`
                 section names another; the resource_args, if any, are that section's or the queue's
    run_id       the sweep's id
    name         Scheduler.<sweep>
    overrides    without a scheduler job: entry_point [wandb, scheduler, <sweep>], args --queue,
                 --project, --author and --job or --image_uri with values in quotes for a shell
                 run_config: the sweep's `launch`, `scheduler` and `settings` sections, and for a
                 scheduler job its arguments as `sweep_args`, sweep_id and queue among them
    docker, job  the image or the job of the `scheduler` section; most often neither

`wandb` writes WANDB_SWEEP_ID for <sweep>, because the sweep has no id yet, and nothing of it fills that
in later: the backend must do so when it queues the item. What is left of it is filled in here. Source:
`launch_sweep` in `wandb/cli/cli.py`, `construct_scheduler_args`, `LaunchAgent._is_scheduler_job`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from prefect_vertex_launch.core.json_value import is_list, is_object

SCHEDULER_URI: Final = "placeholder-uri-scheduler"
SWEEP_PLACEHOLDER: Final = "WANDB_SWEEP_ID"
# It is filled in at any number of places, so that a long one would make much of a small item. W&B's run ids
# have at most 128 characters, and a scheduler's is that of its sweep.
_MAX_SWEEP_ID: Final = 128
_COMMAND: Final = ["wandb", "scheduler"]
_QUOTES: Final = ("'", '"')


def is_scheduler(payload: Mapping[str, Any]) -> bool:
    """Tell whether a run spec is that of a sweep scheduler."""
    uri = payload.get("uri")
    return isinstance(uri, str) and uri.startswith(SCHEDULER_URI)


def is_scheduler_command(entry_point: object) -> bool:
    """Tell whether an entry point is `wandb scheduler <sweep>`."""
    return is_list(entry_point) and entry_point[:2] == _COMMAND and len(entry_point) > len(_COMMAND)


def fill_in_sweep(payload: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return a scheduler's run spec with its sweep's id in every place, and that id; None if none is named.

    Its arguments lose the quotes around them, because there is no shell that would take them off. It
    is no trial of its sweep, so that its own `sweep_id` is none. Total for any JSON: what has another
    shape than `wandb` gives it is left as it is.
    """
    overrides: dict[str, Any] = given if is_object(given := payload.get("overrides")) else {}
    sweep_id = _named_sweep(payload, overrides)
    if sweep_id is None:
        return dict(payload), None
    filled = {**payload, "run_id": payload.get("run_id") or sweep_id, "sweep_id": None}
    filled["name"], filled["run_id"] = _filled_words([filled.get("name"), filled["run_id"]], sweep_id)
    if overrides:
        filled["overrides"] = _overrides_of_sweep(overrides, sweep_id)
    return filled, sweep_id


def _named_sweep(payload: Mapping[str, Any], overrides: Mapping[str, Any]) -> str | None:
    """Return the sweep that the command names, else the job's arguments, else the item itself."""
    entry_point = overrides.get("entry_point")
    candidates = (
        entry_point[2] if is_list(entry_point) and is_scheduler_command(entry_point) else None,
        _sweep_args(overrides).get("sweep_id"),
        payload.get("sweep_id"),
        payload.get("run_id"),
    )
    named = (name for name in candidates if isinstance(name, str) and 0 < len(name) <= _MAX_SWEEP_ID)
    return next((name for name in named if name != SWEEP_PLACEHOLDER), None)


def _overrides_of_sweep(overrides: Mapping[str, Any], sweep_id: str) -> dict[str, Any]:
    filled = dict(overrides)
    if is_list(words := overrides.get("entry_point")):
        filled["entry_point"] = _filled_words(words, sweep_id)
    if is_list(words := overrides.get("args")):
        # There may be a hundred thousand, and hardly any is in quotes.
        filled["args"] = [
            _unquoted(word) if isinstance(word, str) and word[:1] in _QUOTES else word
            for word in _filled_words(words, sweep_id)
        ]
    if sweep_args := _sweep_args(overrides):
        arguments = dict(zip(sweep_args, _filled_words(sweep_args.values(), sweep_id), strict=True))
        filled["run_config"] = {**overrides["run_config"], "sweep_args": arguments}
    return filled


def _sweep_args(overrides: Mapping[str, Any]) -> dict[str, Any]:
    run_config = overrides.get("run_config")
    sweep_args = run_config.get("sweep_args") if is_object(run_config) else None
    return sweep_args if is_object(sweep_args) else {}


def _filled_words(words: Iterable[Any], sweep_id: str) -> list[Any]:
    """Return the words with the sweep's id in them; what is no text stays as it is."""
    return [word.replace(SWEEP_PLACEHOLDER, sweep_id) if isinstance(word, str) else word for word in words]


def _unquoted(word: str) -> str:
    """Return a word that begins with a quote without it, if it ends with the same one."""
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] else word
