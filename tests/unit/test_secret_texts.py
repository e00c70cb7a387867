"""What looks like a secret in a run spec is not kept with it; everything else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefect_vertex_launch.core.secrets import MASK
from prefect_vertex_launch.jobspec.withheld import Withheld

SECRET = "nobody-may-read-this"


def variable(name: str, value: str = SECRET) -> dict[str, Any]:
    env = [{"name": name, "value": value}]
    pools = [{"container_spec": {"image_uri": "i", "env": env}}]
    return {"resource_args": {"gcp-vertex": {"spec": {"worker_pool_specs": pools}}}}


@pytest.mark.parametrize(
    "payload",
    [
        variable("HF_TOKEN"),
        variable("AWS_SECRET_ACCESS_KEY"),
        variable("db_password"),
        {"overrides": {"run_config": {"openai": {"api_key": SECRET}}}},
        {"overrides": {"run_config": {"authToken": SECRET}}},
        {"overrides": {"args": ["--api-key", SECRET, "--lr", "0.1"]}},
        {"overrides": {"args": [f"--hub-token={SECRET}"]}},
        {"overrides": {"args": [f"postgres://user:{SECRET}@host/db"]}},
        variable("SETTINGS", f'{{"pem": "-----BEGIN RSA PRIVATE KEY-----{SECRET}"}}'),
        variable("HARMLESS", f"hf_abcdefghijklmnopqrstuvwxyz{SECRET}"),
    ],
)
def test_what_looks_secret_is_withheld_with_its_place(payload: Any) -> None:
    withheld = Withheld(payload)
    text = json.dumps(withheld.payload)
    assert SECRET not in text
    assert MASK in text
    assert len(withheld.paths) == 1
    assert SECRET in next(iter(withheld.secrets))


def test_a_secret_is_withheld_wherever_else_it_stands() -> None:
    payload = variable("HF_TOKEN") | {"overrides": {"args": [f"login {SECRET} now", "stays"]}}
    withheld = Withheld(payload)
    assert withheld.payload["overrides"] == {"args": [MASK, "stays"]}
    assert withheld.paths[-1] == "overrides.args[0]"


def test_very_many_secrets_that_begin_alike_cost_no_more_than_one() -> None:
    env = [{"name": f"TOKEN_{number}", "value": f"secret-{number}"} for number in range(5000)]
    withheld = Withheld({"env": env, "args": ["secret-4711"] * 20_000})
    assert set(withheld.payload["args"]) == {MASK}


@pytest.mark.parametrize(
    "payload",
    [
        {
            "overrides": {
                "run_config": {"tokenizer": "bert-base-uncased", "max_tokens": 4096, "key": "accuracy"}
            }
        },
        {"overrides": {"args": ["--tokenizer=bert-base-uncased", "--sort-key", "accuracy"]}},
        {
            "resource_args": {
                "gcp-vertex": {"spec": {"encryption_spec_key_name": "projects/p/locations/l/keyRings/r"}}
            }
        },
        variable("HF_TOKEN", "${HF_TOKEN}"),
        variable("HF_TOKEN", "$(OTHER)"),
        variable("HF_TOKEN", ""),
        variable("DATA", "https://example.com:8080/data?user=a@b.c"),
        {"docker": {"docker_image": "us-docker.pkg.dev/p/r/i:tag"}, "author": "a@example.com"},
        [None, 1, 0.5, True, {"a": []}],
    ],
)
def test_what_only_sounds_like_a_secret_is_kept(payload: Any) -> None:
    withheld = Withheld(payload)
    assert withheld.payload == payload
    assert not withheld.paths
