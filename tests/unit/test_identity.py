"""Queues and items of several W&B servers in one project and one workspace: no name is two queues'."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.types.names import WITHOUT_BANNED_CHARACTERS

from prefect_vertex_launch.core.identity import QueueIdentity, name_part, server_name
from prefect_vertex_launch.core.labels import label_value

GPU = QueueIdentity("api.wandb.ai", "acme", "gpu")
NEIGHBOURS = [
    GPU,
    QueueIdentity("wandb.example.com", "acme", "gpu"),
    QueueIdentity("api.wandb.ai", "acme", "Gpu"),
    QueueIdentity("api.wandb.ai", "acme", "gpu:schedulers"),
    QueueIdentity("api.wandb.ai", "acme/gpu", ""),
    QueueIdentity("api.wandb.ai", "acme:gpu", ""),
    QueueIdentity("api.wandb.ai:acme", "gpu", ""),
    QueueIdentity("api.wandb.ai", "acme", "gpu "),
    QueueIdentity("api.wandb.ai", "acme", "gpu~20"),
    QueueIdentity("api.wandb.ai", "acme", "R&D"),
]
names = st.text(st.characters(), max_size=80)
queues = st.builds(QueueIdentity, names, names, names)


def test_no_two_queues_have_a_name_in_common() -> None:
    for names in (
        {queue.key for queue in NEIGHBOURS},
        {queue.tag for queue in NEIGHBOURS},
        {queue.item_key("UnVuUXVldWVJdGVtOjE=") for queue in NEIGHBOURS},
    ):
        assert len(names) == len(NEIGHBOURS)
    limits = {name for queue in NEIGHBOURS for name in (queue.limit_name, queue.scheduler_limit_name)}
    assert len(limits) == 2 * len(NEIGHBOURS)


def test_the_names_say_whose_they_are() -> None:
    assert GPU.tag == "queue:api.wandb.ai/acme/gpu"
    assert GPU.limit_name == "vertex-launch:api.wandb.ai:acme:gpu"
    assert GPU.scheduler_limit_name == "vertex-launch:api.wandb.ai:acme:gpu:schedulers"
    assert GPU.key.startswith("acme-gpu-")
    assert str(GPU) == "acme/gpu at api.wandb.ai"


@settings(max_examples=80)
@given(queues, names)
def test_whatever_a_queue_is_called_its_names_are_taken(queue: QueueIdentity, item_id: str) -> None:
    assert label_value(queue.key) == queue.key
    assert re.fullmatch(r"[0-9a-f]{40}", queue.item_key(item_id))
    for limit in (queue.limit_name, queue.scheduler_limit_name):
        assert re.match(WITHOUT_BANNED_CHARACTERS, limit)


@settings(max_examples=80)
@given(names, names)
def test_two_texts_never_become_the_same_part_of_a_name(one: str, other: str) -> None:
    assert (name_part(one) == name_part(other)) is (one == other)


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.wandb.ai", "api.wandb.ai"),
        ("https://API.wandb.ai:443/", "api.wandb.ai"),
        ("http://wandb.local:80", "wandb.local"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("https://example.com/wandb/", "example.com/wandb"),
        ("https://user:password@example.com", "example.com"),
        ("http://[::1]:8080", "::1:8080"),
    ],
)
def test_a_server_is_its_host_port_and_path(base_url: str, name: str) -> None:
    assert server_name(base_url) == name
