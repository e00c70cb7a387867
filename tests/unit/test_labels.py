"""Labels keep to Vertex AI's rules, and the launch's own are always there."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.labels import (
    MAX_LABELS,
    job_labels,
    label_key,
    label_value,
)

RUN = {"wandb-run-id": "My.Run-ID_1"}


def test_good_labels_stay_without_a_word() -> None:
    findings = Findings()
    assert job_labels({"team": "a-b_1"}, RUN, "labels", findings) == {
        "team": "a-b_1", "wandb-run-id": "my_run-id_1",
    }  # fmt: skip
    assert (findings.problems, findings.warnings) == ([], ())


def test_other_labels_are_put_into_form_and_said_so() -> None:
    findings = Findings()
    assert job_labels({"Cost Center": "A/B", "1st": "größe"}, {}, "labels", findings) == {
        "cost_center": "a_b", "l1st": "größe",
    }  # fmt: skip
    assert len(findings.warnings) == 3


def test_two_labels_that_become_one_are_refused() -> None:
    findings = Findings()
    job_labels({"a b": "1", "a_b": "2"}, {}, "labels", findings)
    assert [problem.where for problem in findings.problems] == ["labels.a_b"]


def test_the_launchs_own_label_wins_and_says_so() -> None:
    findings = Findings()
    assert job_labels({"wandb-run-id": "x"}, RUN, "labels", findings)["wandb-run-id"] == "my_run-id_1"
    assert "its own value is used" in findings.warnings[0]


def test_too_many_labels_are_refused() -> None:
    for count, refused in ((MAX_LABELS - 1, False), (MAX_LABELS, True)):
        findings = Findings()
        job_labels({f"a{number}": "x" for number in range(count)}, RUN, "labels", findings)
        assert bool(findings.problems) is refused


@settings(max_examples=150)
@given(st.text(st.characters(codec="utf-8"), max_size=90))
def test_any_text_becomes_a_label(text: str) -> None:
    value, key = label_value(text), label_key(text)
    assert label_value(value) == value
    assert label_key(key) == key
    assert key[0].isalpha()
    for part in (value, key):
        assert len(part) <= 63
        assert len(part.encode()) < 128
        assert all(character in "_-" or character.isalnum() for character in part)
        assert part == part.lower()
