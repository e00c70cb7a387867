"""Which run queue, and which item of it: names that hold in the whole world of one project or workspace.

The ids of items are numbers of one W&B server. Production and staging may send their jobs to one Google
Cloud project, and keep their launches on one Prefect server.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"https": 443, "http": 80}
# What Prefect takes in no name, the separators of our own names, and what marks an escaped character.
_ESCAPED = re.compile(r"[/%&<>:~\s\x00-\x1f\x7f]")


def server_name(base_url: str) -> str:
    """Return the name of a W&B server: host, port if it is an unusual one, and path of its URL."""
    parts = urlsplit(base_url)
    host = (parts.hostname or "").lower()
    is_usual = parts.port in {None, _DEFAULT_PORTS.get(parts.scheme)}
    return f"{host}{'' if is_usual else f':{parts.port}'}{parts.path.rstrip('/')}"


def name_part(text: str) -> str:
    """Return a text as a part of a name that Prefect takes: no two texts become the same part."""
    return _ESCAPED.sub(lambda found: f"~{ord(found[0]):02X}", text)


@dataclass(frozen=True, slots=True)
class QueueIdentity:
    """A run queue: its W&B server by `server_name`, the entity that owns it, its own name."""

    server: str
    entity: str
    queue: str

    @property
    def key(self) -> str:
        """The value of its jobs' label: readable, at most 63 characters, and no other queue's."""
        name = re.sub(r"[^a-z0-9_-]+", "-", f"{self.entity}-{self.queue}".lower()).strip("-")
        return f"{name[:48].rstrip('-') or 'queue'}-{self._digest()[:12]}"

    @property
    def tag(self) -> str:
        """The tag of its launches."""
        return f"queue:{'/'.join(self._name_parts())}"

    @property
    def limit_name(self) -> str:
        """The global concurrency limit that stands for its `max_jobs`."""
        return ":".join(["vertex-launch", *self._name_parts()])

    @property
    def scheduler_limit_name(self) -> str:
        """The global concurrency limit that stands for its `max_schedulers`."""
        return f"{self.limit_name}:schedulers"

    def __str__(self) -> str:
        return f"{self.entity}/{self.queue} at {self.server}"

    def item_key(self, item_id: str) -> str:
        """Return what stands for an item of this queue everywhere: 40 hexadecimal digits."""
        return self._digest(item_id)[:40]

    def _name_parts(self) -> list[str]:
        return [name_part(part) for part in (self.server, self.entity, self.queue)]

    def _digest(self, *item_id: str) -> str:
        whole = json.dumps([self.server, self.entity, self.queue, *item_id])
        return hashlib.sha256(whole.encode()).hexdigest()
