"""The fields of a job that no argument of the SDK's CustomJob reaches: in `spec` or `run`, checked alike."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.checked_config import NETWORK, only, parse, refused

MODEL = "projects/p/locations/l/models/7@golden"
EXTRAS = {
    "reserved_ip_ranges": ["vertex-ai-ip-range"],
    "enable_dashboard_access": True,
    "protected_artifact_location_id": "europe-west4",
    "models": [MODEL, "projects/p/locations/l/models/8"],
}
OTHERS = {
    "reserved_ip_ranges": ["other"],
    "enable_dashboard_access": False,
    "protected_artifact_location_id": "us-east1",
    "models": [MODEL],
}


@pytest.mark.parametrize("name", EXTRAS)
def test_what_the_sdk_does_not_reach_may_stand_in_either_section(name: str) -> None:
    value = EXTRAS[name]
    network = {"network": NETWORK}
    assert parse({name: value}, network).run == {name: value, **network}
    assert parse(run={name: value, **network}).run == {name: value, **network}
    assert parse({name: value}, {name: value, **network}).run == {name: value, **network}
    assert f"another {name} than in run" in only(
        refused({name: value}, {**network, name: OTHERS[name]}),
        f"resource_args.vertex.spec.{name}",
    )


@pytest.mark.parametrize(
    ("name", "value", "where", "words"),
    [
        ("reserved_ip_ranges", "vertex-ai-ip-range", "", "Put it into a list"),
        ("reserved_ip_ranges", ["10.0.0.0/8"], "[0]", "Write it like vertex-ai-ip-range"),
        ("reserved_ip_ranges", ["a", 5], "[1]", "a string"),
        ("reserved_ip_ranges", [None], "[0]", "a string"),
        ("reserved_ip_ranges", [""], "[0]", "empty"),
        ("enable_dashboard_access", "yes", "", "true or false"),
        ("protected_artifact_location_id", "Frankfurt", "", "us-central1"),
        ("protected_artifact_location_id", ["us-central1"], "", "a string"),
        ("models", MODEL, "", "Put it into a list"),
        ("models", [MODEL, "my-model"], "[1]", "models/123@2"),
        ("models", {"a": MODEL}, "", "a list of strings"),
    ],
)
@pytest.mark.parametrize("section", ["spec", "run"])
def test_a_wrong_value_of_what_the_sdk_does_not_reach_is_refused(
    section: str, name: str, value: Any, where: str, words: str
) -> None:
    found = refused(**{section: {name: value}}, **({"run": {}} if section == "spec" else {}))
    assert words in only(found, f"resource_args.vertex.{section}.{name}{where}")


@pytest.mark.parametrize("typo", ["reservedIpRanges", "enable_dashbord_access", "model"])
@pytest.mark.parametrize("section", ["spec", "run"])
def test_a_mistyped_name_of_what_the_sdk_does_not_reach_is_refused(section: str, typo: str) -> None:
    assert "Did you mean" in str(*refused(**{section: {typo: None}}).values())
