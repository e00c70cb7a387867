"""Labels of a CustomJob: Vertex AI's rules, and the keys under which a job names its queue and item."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, shown

RUN_ID_LABEL: Final = "wandb-run-id"
ITEM_LABEL: Final = "launch-item"
QUEUE_LABEL: Final = "launch-queue"
ATTEMPT_LABEL: Final = "launch-attempt"

MAX_LABELS: Final = 64
# The server wants fewer than 64 characters and fewer than 128 bytes.
_MAX_CHARACTERS: Final = 63
_MAX_BYTES: Final = 127
_NO_LABEL_CHARACTER: Final = re.compile(r"[^a-z0-9_-]")


def label_value(text: str) -> str:
    """Return `text` by the rules for label values.

    Lower-case letters of any language, digits, `_` and `-`; at most 63 characters and 127 bytes.
    """
    lower = text.lower()[:_MAX_CHARACTERS]
    if lower.isascii():
        return _NO_LABEL_CHARACTER.sub("_", lower)
    kept = "".join(
        character if character in "_-" or _is_label_character(character) else "_" for character in lower
    )
    while len(kept.encode()) > _MAX_BYTES:
        kept = kept[:-1]
    return kept


def label_key(text: str) -> str:
    """Return `text` by the rules for label keys: those for values, and it starts with a letter."""
    key = label_value(text)
    return key if key[:1].isalpha() else label_value(f"l{key}")


def job_labels(
    user: Mapping[str, str], launch: Mapping[str, str], where: str, findings: Findings
) -> dict[str, str]:
    """Return the user's labels, put into form with a warning, and over them the launch's own."""
    labels: dict[str, str] = {}
    for key, value in user.items():
        form, path = label_key(key), at(where, key)
        if form != key:
            findings.warn(path, f"the key became {shown(form)}: lower case, digits, _ and - only")
        if label_value(value) != value:
            findings.warn(
                path, f"the value became {shown(label_value(value))}: lower case, digits, _ and - only"
            )
        if form in launch:
            findings.warn(path, "the launch sets this label itself; its own value is used")
        elif form in labels:
            findings.refuse(path, f"becomes {shown(form)}, which is there already", fix="Rename one of them.")
        labels[form] = label_value(value)
    labels.update({key: label_value(value) for key, value in launch.items()})
    if len(labels) > MAX_LABELS:
        findings.refuse(
            where,
            f"{len(labels)} labels, {len(launch)} of them the launch's own",
            f"a job has at most {MAX_LABELS}",
            "Remove some.",
        )
    return labels


def _is_label_character(character: str) -> bool:
    if character.isascii():
        return character.isalnum()
    # Lower-case letters, and letters of scripts without case.
    return unicodedata.category(character) in {"Ll", "Lo"}
