"""What a submitter can and cannot make of a queue whose block locks its jobs."""

from __future__ import annotations

from typing import Any

import pytest
from google.cloud.aiplatform_v1 import CustomJobSpec

from prefect_vertex_launch.jobspec import known_fields
from prefect_vertex_launch.jobspec.config.launch_options import LAUNCH_KEYS
from prefect_vertex_launch.jobspec.config.queue_config import QueueDefaults
from prefect_vertex_launch.jobspec.job_source import JobCode
from prefect_vertex_launch.jobspec.known_fields import HELD, OPEN
from prefect_vertex_launch.jobspec.locks import Locks
from tests.unit.named_tests import ROOT
from tests.unit.rendered_launch import IMAGE, POOL, launch, pool, refused, task_of

TEAM = "us-docker.pkg.dev/my-team/*"
DIGEST = "@sha256:" + "a" * 64
TRAIN = ["python", "train.py"]
IMAGE_PATH = f"{POOL}.container_spec.image_uri"
COMMAND_PATH = f"{POOL}.container_spec.command"
ARGS_PATH = f"{POOL}.container_spec.args"


def locks(*, secure_mode: bool = False, **sets: list[str]) -> dict[str, Any]:
    return {"locks": Locks.of(secure_mode=secure_mode, **sets)}


def block(*pools: dict[str, Any], **run: Any) -> dict[str, Any]:
    fallbacks = run.pop("fallbacks", [])
    defaults = QueueDefaults(
        spec={"worker_pool_specs": list(pools)}, run=run, launch={"fallbacks": fallbacks}
    )
    return {"block_defaults": defaults}


def package(*uris: str, module: str = "trainer.task", executor: str = "gcr.io/x/exec") -> dict[str, Any]:
    return {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "python_package_spec": {
            "executor_image_uri": executor,
            "python_module": module,
            "package_uris": list(uris),
        },
    }


def test_without_locks_nothing_is_refused() -> None:
    open_locks = Locks.of(secure_mode=False)
    assert open_locks == Locks()
    given = pool(command=["sh", "-c", "anything"], env=[{"name": "LD_PRELOAD", "value": "x.so"}])
    assert launch(given, run={"enable_web_access": True}, locks=open_locks)


# --- images


@pytest.mark.parametrize(
    "image",
    [
        "us-docker.pkg.dev/my-team/train",
        "us-docker.pkg.dev/my-team/vision/train:v1",
        f"us-docker.pkg.dev/my-team/train{DIGEST}",
        f"us-docker.pkg.dev/my-team/train:v1{DIGEST}",
    ],
)
def test_an_image_below_a_pattern_is_run(image: str) -> None:
    assert task_of(launch(pool(image), **locks(images=[TEAM]))).image_uri == image


@pytest.mark.parametrize(
    "image",
    [
        "us-docker.pkg.dev/my-team-evil/train",
        "us-docker.pkg.dev/my-team",
        "us-docker.pkg.dev/my-team/../evil/train",
        "us-docker.pkg.dev/my-team/..",
        "us-docker.pkg.dev/my-team//train",
        "us-docker.pkg.dev/my-team/%2e%2e/evil",
        "us-docker.pkg.dev/my-team/train\n",
        "us-docker.pkg.dev/my-team/train:v1 evil/train",
        "us-docker.pkg.dev/my-team/$(EVIL)",
        "us-docker.pkg.dev/my-team/Train",
        "us-docker.pkg.dev/my-team/tráin",
        "US-DOCKER.PKG.DEV/my-team/train",
        "evil.example/us-docker.pkg.dev/my-team/train",
        "xus-docker.pkg.dev/my-team/train",
        "us-docker_pkg.dev/my-team/train",
        " us-docker.pkg.dev/my-team/train",
        "https://us-docker.pkg.dev/my-team/train",
    ],
)
def test_an_image_beside_a_pattern_is_refused(image: str) -> None:
    found = refused(pool(image), **locks(images=[TEAM]))
    assert list(found) == [IMAGE_PATH]
    assert "the queue's block locks it" in found[IMAGE_PATH]
    assert (
        f"Use one of {TEAM}, or ask the queue's owner to allow it under Allowed images" in found[IMAGE_PATH]
    )


@pytest.mark.parametrize(
    ("pattern", "image", "is_allowed"),
    [
        ("reg.example/train:v1", "reg.example/train:v1", True),
        ("reg.example/train:v1", "reg.example/train:v10", False),
        ("reg.example/train:v1", "reg.example/train", False),
        # A digest beside the tag is what is pulled, whatever the tag says.
        ("reg.example/train:v*", f"reg.example/train:v1{DIGEST}", False),
        ("reg.example/train:*", f"reg.example/train:v1{DIGEST}", False),
        (f"reg.example/train:v1{DIGEST}", f"reg.example/train:v1{DIGEST}", True),
        (f"reg.example/train{DIGEST}", f"reg.example/train:any{DIGEST}", True),
        ("reg.example/train@*", f"reg.example/train:v1{DIGEST}", True),
        ("  reg.example/train:v1 ", "reg.example/train:v1", True),
        ("reg.example/tr?in:v1", "reg.example/train:v1", False),
        ("*", "evil.example/train", True),
    ],
)
def test_tags_and_digests_are_told_apart(pattern: str, image: str, is_allowed: bool) -> None:
    given = locks(images=[pattern])
    if is_allowed:
        assert launch(pool(image), **given)
    else:
        assert list(refused(pool(image), **given)) == [IMAGE_PATH]


def test_the_launchs_own_image_counts_after_the_macro_is_filled_in() -> None:
    own = block(pool("${image_uri}"))
    assert list(refused(pool("${image_uri}"), **own, **locks(secure_mode=False, images=[]))) == [IMAGE_PATH]
    assert launch(pool("${image_uri}"), **own, **locks(images=[IMAGE]))


def test_every_pool_and_the_executor_of_a_package_count() -> None:
    pools = [
        pool(IMAGE),
        {},
        pool("evil.example/x", count=2),
        package("gs://b/p.zip", executor="evil.example/y"),
    ]
    path = "resource_args.vertex.spec.worker_pool_specs"
    assert set(refused(*pools, **locks(images=[IMAGE]))) == {
        f"{path}[2].container_spec.image_uri",
        f"{path}[3].python_package_spec.executor_image_uri",
    }


def test_a_macro_in_the_image_is_the_blocks_only_if_the_block_allows_the_macro() -> None:
    own = block(pool("reg.example/${TEAM}:1"))
    known = {"macros": {"TEAM": "train"}}
    assert launch(pool("reg.example/train:1"), **own, **known, **locks(images=[]))
    assert list(refused(pool("reg.example/evil:1"), **own, **known, **locks(images=[]))) == [IMAGE_PATH]


@pytest.mark.parametrize("name", ["run_name", "author", "project_name"])
def test_a_macro_that_the_launch_fills_in_is_never_the_blocks_own_word(name: str) -> None:
    """Not even where the block allows a variable of the worker that has the same name."""
    given = pool(f"reg.example/${{{name}}}:1")
    item = {"name": "evil", "author": "evil", "project": "evil"}
    for macros in ({}, {name: "evil"}):
        found = refused(given, item=item, macros=macros, **block(given), **locks(images=[]))
        assert list(found) == [IMAGE_PATH]
        assert "Ask the queue's owner" in found[IMAGE_PATH]


def test_macros_come_from_the_allow_list_only_and_bring_no_further_ones(monkeypatch) -> None:
    monkeypatch.setenv("SECRET_IMAGE", "reg.example/train:1")
    assert "SECRET_IMAGE" in refused(pool("${SECRET_IMAGE}"), **locks(images=["*"]))[IMAGE_PATH]
    macros = {"A": "reg.example/${B}", "B": "train"}
    assert list(refused(pool("${A}"), macros=macros, **locks(images=["reg.example/train"]))) == [IMAGE_PATH]


# --- entry points and commands


def test_an_entry_point_is_held_against_its_lock() -> None:
    given = locks(entry_points=["python train.py *"])
    assert launch(item={"overrides": {"entry_point": ["python", "train.py", "--lr", "1"]}}, **given)
    found = refused(item={"overrides": {"entry_point": ["python", "evil.py"]}}, **given)
    assert "Allowed entry points" in found["overrides.entry_point"]


@pytest.mark.parametrize(
    "words",
    [
        ["python train.py"],  # one word is not two
        ["python", "train.py", "x"],
        ["python", "train.py "],
        ["python", "./train.py"],
        ["Python", "train.py"],
        ["python", "train.py\n"],
        ["sh", "-c", "python train.py"],
    ],
)
def test_an_entry_point_is_matched_word_by_word(words: list[str]) -> None:
    found = refused(item={"overrides": {"entry_point": words}}, **locks(entry_points=["python train.py"]))
    assert list(found) == ["overrides.entry_point"]


def test_the_entry_point_of_a_job_counts_if_it_is_what_runs() -> None:
    given = {"job_entry_point": ("python", "evil.py"), **locks(entry_points=["python train.py"])}
    assert list(refused(pool(), **given)) == ["job"]
    assert task_of(launch(pool(command=TRAIN), **given)).command == TRAIN


def test_a_command_is_held_against_its_lock() -> None:
    given = locks(commands=["python train.py", "torchrun *"])
    assert launch(pool(command=TRAIN, args=["--lr", "1"]), **given)
    assert launch(pool(command=["torchrun", "--nnodes", "2", "x.py"]), **given)
    found = refused(pool(command=["sh", "-c", "python train.py"]), **given)
    assert "Use one of python train.py, torchrun *, or ask" in found[COMMAND_PATH]
    assert "Allowed commands" in found[COMMAND_PATH]


def test_an_entry_point_is_no_way_round_the_lock_of_commands() -> None:
    item = {"overrides": {"entry_point": ["python", "evil.py"]}}
    assert list(refused(item=item, **locks(commands=["python train.py"]))) == [COMMAND_PATH]
    assert launch(item=item, **locks(commands=[], entry_points=["python *"]))


@pytest.mark.parametrize("args", [["sh", "-c", "evil"], ["--lr", "1"]])
def test_args_without_a_command_may_be_one(args: list[str]) -> None:
    own = block(pool("${image_uri}"))
    found = refused(item={"overrides": {"args": args}}, **own, **locks(commands=[]))
    assert list(found) == [ARGS_PATH]
    allowed = locks(commands=["--*"])
    if args[0] == "--lr":
        assert launch(item={"overrides": {"args": args}}, **own, **allowed)
    else:
        assert refused(item={"overrides": {"args": args}}, **own, **allowed)


def test_leaving_the_command_out_is_refused_unless_the_block_does_so() -> None:
    assert list(refused(pool(), **block(pool(command=TRAIN)), **locks(commands=[]))) == [COMMAND_PATH]
    assert launch(pool(), **block(pool()), **locks(commands=[]))


def test_a_python_package_is_held_against_the_lock_of_commands() -> None:
    given = locks(commands=["trainer.task gs://team/*"])
    assert launch(package("gs://team/trainer.tar.gz"), **given)
    path = f"{POOL}.python_package_spec.python_module"
    assert list(refused(package("gs://evil/trainer.tar.gz"), **given)) == [path]
    assert list(refused(package("gs://team/trainer.tar.gz", module="evil"), **given)) == [path]


def test_what_the_blocks_macros_bring_into_its_command_has_to_be_plain() -> None:
    command = ["sh", "-c", "train --name ${run_name}"]
    own = {**block(pool(command=command)), **locks(secure_mode=True, images=["*"])}
    given = pool(command=command)
    assert launch(given, item={"name": "try-1"}, **own)
    for name in ("x; evil", "x $(evil)", "x\nevil", "`evil`"):
        assert list(refused(given, item={"name": name}, **own)) == [COMMAND_PATH]


def test_code_of_a_job_is_no_way_round_the_lock_of_commands() -> None:
    given = {"code": JobCode("job", artifact_id="a"), "job_entry_point": tuple(TRAIN)}
    found = refused(pool(), **given, **locks(commands=["python train.py"]))
    assert list(found) == ["job"]
    assert launch(pool(), **given, **locks(commands=["*"]))


@pytest.mark.parametrize("name", ["PYTHONPATH", "LD_PRELOAD", "PATH", "EPOCHS", "WANDB__EXECUTABLE"])
def test_variables_are_no_way_round_the_lock_of_commands(name: str) -> None:
    given = pool(command=TRAIN, env=[{"name": name, "value": "/gcs/evil"}])
    locked = locks(commands=["python train.py"])
    assert list(refused(given, **locked)) == [f"{POOL}.container_spec.env[0]"]
    other = pool(command=TRAIN, env=[{"name": name, "value": "/gcs/good"}])
    assert list(refused(given, **block(other), **locked)) == [f"{POOL}.container_spec.env[0]"]
    assert launch(given, **block(given), **locked)


def test_a_variable_of_the_block_may_have_macros_in_it() -> None:
    given = pool(command=TRAIN, env=[{"name": "RUN", "value": "${run_id} of ${author}"}])
    assert launch(given, item={"author": "$(x) y"}, **block(given), **locks(commands=[]))


@pytest.mark.parametrize("flag", ["enable_web_access", "enable_dashboard_access"])
def test_shells_are_no_way_round_the_lock_of_commands(flag: str) -> None:
    given, locked = pool(command=TRAIN), locks(commands=["python train.py"])
    assert list(refused(given, run={flag: True}, **locked)) == [f"resource_args.vertex.run.{flag}"]
    assert launch(given, run={flag: True}, **block(given, **{flag: True}), **locked)


# --- service accounts, networks, machine types

ACCOUNT = "trainer@p.iam.gserviceaccount.com"
NETWORK = "projects/1/global/networks/training"
ATTACHMENT = "projects/p/regions/us-central1/networkAttachments/a"


@pytest.mark.parametrize("section", ["spec", "run"])
def test_service_accounts(section: str) -> None:
    given, locked = {section: {"service_account": ACCOUNT}}, locks(service_accounts=[])
    path = f"resource_args.vertex.{section}.service_account"
    assert "Allowed service accounts" in refused(**given, **locked)[path]
    assert launch(**given, **locks(service_accounts=[ACCOUNT]))
    assert launch(**given, **block(service_account=ACCOUNT), **locked)
    assert launch(**locked)
    for wrong in (f"x{ACCOUNT}", f"{ACCOUNT}.evil.com", ACCOUNT.upper()):
        assert list(
            refused(**{section: {"service_account": wrong}}, **locks(service_accounts=[ACCOUNT]))
        ) == [path]


def test_an_account_named_after_the_author_is_the_submitters() -> None:
    account = "${author}@p.iam.gserviceaccount.com"
    item, run = {"author": "admin"}, {"service_account": account}
    assert refused(item=item, run=run, **block(**run), **locks(service_accounts=[]))


def test_networks() -> None:
    locked = locks(networks=[NETWORK, ATTACHMENT])
    assert launch(run={"network": NETWORK}, **locked)
    assert launch(run={"psc_interface_config": {"network_attachment": ATTACHMENT}}, **locked)
    assert list(refused(run={"network": f"{NETWORK}-evil"}, **locked)) == ["resource_args.vertex.run.network"]
    path = "resource_args.vertex.run.psc_interface_config.network_attachment"
    assert list(
        refused(run={"psc_interface_config": {"network_attachment": f"{ATTACHMENT}b"}}, **locked)
    ) == [path]
    peering = {"domain": "d.", "target_project": "evil", "target_network": "n"}
    psc = {"network_attachment": ATTACHMENT, "dns_peering_configs": [peering]}
    assert list(refused(run={"psc_interface_config": psc}, **locked)) == [path]
    assert launch(run={"psc_interface_config": psc}, **block(psc_interface_config=psc), **locks(networks=[]))


def test_machine_types_of_all_pools() -> None:
    big = pool(IMAGE, count=3)
    big["machine_spec"] = {"machine_type": "n1-highmem-96"}
    found = refused(pool(IMAGE), big, **locks(machine_types=["n1-standard-*"]))
    path = "resource_args.vertex.spec.worker_pool_specs[1].machine_spec.machine_type"
    assert "Use one of n1-standard-*, or ask" in found[path]
    assert launch(pool(IMAGE), big, **block(big), **locks(machine_types=["n1-standard-*"]))


def test_the_blocks_own_fallbacks_are_its_own_words() -> None:
    big = pool(IMAGE)
    big["machine_spec"] = {"machine_type": "n1-highmem-96"}
    own = block(pool(IMAGE), fallbacks=[{"spec": {"worker_pool_specs": [big]}}])
    assert launch(big, **own, **locks(machine_types=[]))


def test_a_persistent_resource_is_no_way_round_the_lock_of_machine_types() -> None:
    given, locked = {"spec": {"persistent_resource_id": "big"}}, locks(machine_types=["n1-standard-4"])
    assert refused(**given, **locked)
    assert launch(**given, **block(persistent_resource_id="big"), **locked)


# --- secure mode


def test_secure_mode_locks_everything_to_what_the_block_says_and_tells_all_at_once() -> None:
    evil = pool("evil.example/x", command=["evil"])
    evil["machine_spec"] = {"machine_type": "n1-highmem-96"}
    run = {"service_account": ACCOUNT, "network": NETWORK}
    item = {"overrides": {"entry_point": ["evil", "too"]}}
    found = refused(evil, run=run, item=item, **block(pool(IMAGE, command=TRAIN)), **locks(secure_mode=True))
    assert set(found) == {
        IMAGE_PATH,
        COMMAND_PATH,
        f"{POOL}.machine_spec.machine_type",
        "overrides.entry_point",
        "resource_args.vertex.run.service_account",
        "resource_args.vertex.run.network",
    }


def test_secure_mode_lets_the_blocks_own_job_pass_with_args() -> None:
    own = pool(IMAGE, command=TRAIN, env=[{"name": "EPOCHS", "value": "3"}])
    rendering = launch(
        own,
        run={"service_account": ACCOUNT},
        item={"overrides": {"args": ["--lr", "1"], "run_config": {"lr": 1}}},
        **block(own, service_account=ACCOUNT),
        **locks(secure_mode=True),
    )
    assert (task_of(rendering).command, task_of(rendering).args) == (TRAIN, ["--lr", "1"])


def test_a_list_beside_secure_mode_opens_only_its_own_lock() -> None:
    given = Locks.of(secure_mode=True, images=["*"])
    assert (given.images, given.commands, given.machine_types) == (("*",), (), ())


# --- texts that are long on purpose


@pytest.mark.parametrize("stars", [2, 3, 9])
def test_a_long_text_is_held_against_a_pattern_with_many_stars(stars: int) -> None:
    """With a regular expression this would take hours."""
    allowed = "x/" + "*/" * stars + "b"
    image = "x/" + "a/" * 100_000 + "a"
    assert list(refused(pool(image), **locks(images=[allowed]))) == [IMAGE_PATH]
    assert launch(pool(f"{image}/b"), **locks(images=[allowed]))


# --- what goes round the locks


def test_in_a_pool_where_the_launch_does_not_run_its_variables_are_the_submitters() -> None:
    train = {"image_uri": IMAGE, "command": TRAIN}
    given = block(pool(**train), pool(**train))
    theirs = [{"name": "WANDB_BASE_URL", "value": "https://theirs.example.com"}]
    problems = refused(
        pool(**train, env=theirs),
        pool(**train),
        options={"command_pools": [1]},
        **locks(commands=[]),
        **given,
    )
    assert "'WANDB_BASE_URL' may not be set by a launch" in problems[f"{POOL}.container_spec.env[0]"]


def test_where_the_launch_runs_its_variables_have_its_values() -> None:
    train = {"image_uri": IMAGE, "command": TRAIN}
    theirs = [{"name": "WANDB_BASE_URL", "value": "https://theirs.example.com"}]
    rendering = launch(pool(**train, env=theirs), **locks(commands=[]), **block(pool(**train)))
    [value] = [each.value for each in task_of(rendering).env if each.name == "WANDB_BASE_URL"]
    assert "theirs" not in value


@pytest.mark.parametrize("word", ["--name=$(WANDB_API_KEY)", "$(TEAM_TOKEN)", "$$$(TEAM_TOKEN)"])
def test_a_launch_s_words_bring_no_variable_of_the_block_out(word: str) -> None:
    own = pool(command=TRAIN, env=[{"name": "TEAM_TOKEN", "value": "t"}])
    item = {"overrides": {"args": [word]}}
    problems = refused(own, item=item, **locks(commands=[]), **block(own))
    assert "may not be used by a launch" in problems[f"{ARGS_PATH}[0]"]


@pytest.mark.parametrize("word", ["$$(TEAM_TOKEN)", "$(NO_VARIABLE)", "$TEAM_TOKEN", "$()"])
def test_a_word_in_which_nothing_is_filled_in_is_taken(word: str) -> None:
    own = pool(command=TRAIN, env=[{"name": "TEAM_TOKEN", "value": "t"}])
    assert launch(own, item={"overrides": {"args": [word]}}, **locks(commands=[]), **block(own))


def test_the_block_s_own_words_may_use_variables_and_without_locks_everybody_s_may() -> None:
    own = pool(command=TRAIN, args=["$(WANDB_RUN_ID)"])
    assert launch(own, **locks(commands=[]), **block(own))
    assert launch(pool(command=TRAIN), item={"overrides": {"args": ["$(WANDB_RUN_ID)"]}})


NFS = {"server": "10.0.0.2", "path": "/exports", "mount_point": "data"}
LUSTRE = {
    "instance_ip": "10.0.0.3", "volume_handle": "p/l/i", "filesystem": "lustre", "mount_point": "data",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "mount"), [("nfs_mounts", NFS), ("lustre_mounts", LUSTRE)])
def test_mounts_are_no_way_round_the_lock_of_commands(kind: str, mount: dict[str, str]) -> None:
    given = {**pool(command=TRAIN), kind: [mount]}
    assert launch(given, **locks(commands=[]), **block(given))
    other = {**pool(command=TRAIN), kind: [{**mount, "mount_point": "others"}]}
    problems = refused(other, **locks(commands=[]), **block(given))
    assert "'others' may not be mounted by a launch" in problems[f"{POOL}.{kind}[0]"]


def test_ip_ranges_are_held_against_the_lock_of_networks() -> None:
    network = "projects/1/global/networks/n"
    run = {"network": network, "reserved_ip_ranges": ["ours"]}
    assert launch(pool(), run=run, **locks(networks=[]), **block(**run))
    theirs = {"network": network, "reserved_ip_ranges": ["theirs"]}
    problems = refused(pool(), run=theirs, **locks(networks=[]), **block(**run))
    assert ["'theirs' is not an allowed network" in problem for problem in problems.values()] == [True]


def fields_of(message: Any, path: str = "") -> set[str]:
    found: set[str] = set()
    for field in message.fields:
        where = f"{path}{field.name}"
        found |= fields_of(field.message_type, f"{where}.") if field.message_type else {where}
    return found


def test_each_field_of_a_job_is_held_by_a_lock_or_named_as_open() -> None:
    kind: Any = CustomJobSpec
    assert fields_of(kind.pb(kind()).DESCRIPTOR) == HELD | OPEN
    assert not HELD & OPEN


def test_a_field_that_google_has_added_is_locked_in_secure_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_fields, "OPEN", OPEN - {"worker_pool_specs.disk_spec.boot_disk_size_gb"})
    own, theirs = ({**pool(), "disk_spec": {"boot_disk_size_gb": size}} for size in (200, 900))
    given = {**locks(secure_mode=True, images=["*"], commands=["*"], machine_types=["*"]), **block(own)}
    (problem,) = refused(theirs, **given).values()
    assert "disk_spec.boot_disk_size_gb: may not be set by a launch" in problem
    assert launch(own, **given)
    assert launch(theirs, **locks(images=["*"]))


def test_each_option_of_how_a_launch_goes_into_its_job_is_named_in_the_documents() -> None:
    """A new one has to be locked, or named among what the locks do not hold."""
    text = (ROOT / "docs" / "security.md").read_text()
    (said,) = (line for line in text.splitlines() if line.startswith("What the locks do not hold:"))
    assert [name for name in LAUNCH_KEYS if f"`{name}`" not in said] == []
