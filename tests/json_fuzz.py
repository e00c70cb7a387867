"""Any JSON, some that is hardly JSON, and good JSON with something wrong at one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

KEYS = [
    "container_spec", "python_package_spec", "machine_spec", "replica_count", "nfs_mounts", "lustre_mounts",
    "disk_spec", "image_uri", "command", "args", "env", "name", "value", "machine_type", "accelerator_type",
    "accelerator_count", "reservation_affinity", "boot_disk_size_gb", "machineType", "path", "location",
    "fallbacks", "spec", "run", "labels", "service_account", "models", "timeout", "scheduling_strategy",
]  # fmt: skip
WORDS = [
    "gs://bucket-1", "n1-standard-4", "a2-highgpu-1g", "NVIDIA_TESLA_A100", "SPOT", "", "all", "1",
    "us-east1", "Ä Ö/ß", "-",
    "x" * 64, "x" * 200, "a\0b", "\ud800", "\N{GRINNING FACE}" * 70, "$(WANDB_API_KEY)", "$$(A)", "$" * 99,
]  # fmt: skip
MACROS = [
    "${image_uri}", "${run_id}", "${NUMBER}", "${A_TOKEN}", "${UNSET}", "${HOME}", "${}", "${a b}",
    "$${run_id}",
    "x${A_TOKEN}y", "${" * 200 + "run_id" + "}" * 200, "${${run_id}}", "${run_name}", "${run_id}" * 2000,
    "${" + "n" * 5000 + "}",
]  # fmt: skip


def nested(levels: int) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = [value]
    return value


NUMBERS = [0, -1, 1 << 62, 1 << 63, 1 << 14_000, 0.5, 1e308, float("nan"), float("inf"), float("-inf")]
LARGE: dict[str, Callable[[], Any]] = {
    "deep": lambda: nested(99),
    "deeper": lambda: nested(101),
    "deepest": lambda: nested(9_000),
    "long text": lambda: "x" * 600_000,
    "long list": lambda: [{} for _ in range(3_000)],
    "wide": lambda: dict.fromkeys(map(str, range(300))),
}

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.sampled_from(NUMBERS)
    | st.sampled_from(WORDS)
    | st.text(st.characters(), max_size=6)
    | st.sampled_from(MACROS)
    | st.sampled_from(sorted(LARGE)).map(lambda name: LARGE[name]())
)
keys = st.sampled_from(KEYS) | st.text(st.characters(), max_size=6) | st.sampled_from(WORDS)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
macros = st.sampled_from(MACROS)
# What is often right where it did not stand, or says nothing.
mild = st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["", "abc", "gs://bucket-1"])
CHANGES = ("replace", "replace", "remove", "wrap", "double", "rename")


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every member of a JSON value as its container and its key or index."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        item = todo.pop()
        members = list(item.items() if isinstance(item, dict) else enumerate(item))
        found += [(item, key) for key, _member in members]
        todo += [member for _key, member in members if isinstance(member, dict | list)]
    return found


def leaf_places(value: Any) -> list[tuple[Any, Any]]:
    return [(item, key) for item, key in places(value) if not isinstance(item[key], dict | list)]


def _copy(value: Any) -> Any:
    """Copy JSON that is deeper than Python's stack, on which `copy.deepcopy` would end."""
    whole = [value]
    containers: list[Any] = [whole]
    while containers:
        container = containers.pop()
        members = container.items() if isinstance(container, dict) else enumerate(container)
        for key, member in [*members]:
            if isinstance(member, dict | list):
                container[key] = member.copy()
                containers.append(container[key])
    return whole[0]


@st.composite
def mutated(
    draw: st.DrawFn,
    good: st.SearchStrategy[Any],
    values: st.SearchStrategy[Any] = anything,
    changes: tuple[str, ...] = CHANGES,
    where: Callable[[Any], list[tuple[Any, Any]]] = places,
) -> Any:
    """Draw a good value in which one or two members are other ones, gone, doubled, or go by another name."""
    value = _copy(draw(good))
    for _ in range(draw(st.integers(1, 2))):
        found = where(value)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        member, change = container[key], draw(st.sampled_from(changes))
        if change == "replace":
            container[key] = draw(values)
        elif change == "wrap":
            container[key] = [member]
        elif change == "remove":
            del container[key]
        elif isinstance(container, list):
            container.insert(key, _copy(member))
        else:
            container[draw(keys)] = member if change == "double" else container.pop(key)
    return value
