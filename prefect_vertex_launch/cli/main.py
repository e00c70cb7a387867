"""The command line, `vertex-launch`.

Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 something that is needed is not ready. Heavy imports
happen inside of the commands that need them, so that `--help` answers at once.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Coroutine
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from prefect_vertex_launch.cli import sandbox_options
from prefect_vertex_launch.cli.errors import (
    FAILED,
    INTERRUPTED,
    NOT_READY,
    OK,
    TERMINATED,
    USAGE,
    CommandError,
    as_command_error,
)
from prefect_vertex_launch.cli.sandbox_key import given_api_key
from prefect_vertex_launch.core.foreign_text import several_lines

app = typer.Typer(
    help="Run W&B Launch queues on Vertex AI with Prefect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
sandbox_app = typer.Typer(
    help="W&B's backend and Vertex AI as local servers, without any account.", no_args_is_help=True
)
app.add_typer(sandbox_app, name="sandbox")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything up until Ctrl-C.")] = False,
) -> None:
    """Eight runs from a W&B queue through Vertex AI and back, on local servers."""
    from prefect_vertex_launch.cli.demo.demo import run_demo

    raise typer.Exit(_run(run_demo(keep=keep)))


@sandbox_app.command("up")
def sandbox_up(
    wandb_port: sandbox_options.WandbPort = 0,
    vertex_rest_port: sandbox_options.VertexRestPort = 0,
    vertex_grpc_port: sandbox_options.VertexGrpcPort = 0,
    google_port: sandbox_options.GooglePort = 0,
    faults_port: sandbox_options.FaultsPort = 0,
    state: sandbox_options.State = None,
    entity: sandbox_options.Entity = "sandbox",
    api_key_file: sandbox_options.ApiKeyFile = None,
    image: sandbox_options.Image = None,
    lease_seconds: sandbox_options.LeaseSeconds = 60.0,
    queued_seconds: sandbox_options.QueuedSeconds = 0.2,
    pending_seconds: sandbox_options.PendingSeconds = 0.3,
    request_log: sandbox_options.RequestLog = None,
) -> None:
    """Start both servers; prints one JSON line with their URLs when they are ready."""
    images = dict(_image(mapping) for mapping in image or [])
    api_key = _given_api_key(api_key_file)
    # What it and the programs of its jobs write holds keys.
    os.umask(0o077)
    from prefect_vertex_launch.sandbox.server import Sandbox, serve

    make_sandbox = partial(
        Sandbox,
        wandb_port=wandb_port,
        vertex_rest_port=vertex_rest_port,
        vertex_grpc_port=vertex_grpc_port,
        google_port=google_port,
        faults_port=faults_port,
        state=state,
        entity=entity,
        api_key=api_key,
        images=images,
        lease_seconds=lease_seconds,
        queued_seconds=queued_seconds,
        pending_seconds=pending_seconds,
        request_log=request_log,
    )
    _run(_started(serve(make_sandbox)))


@app.command()
def agent(
    queue: Annotated[
        list[str], typer.Option(help="Name of a VertexLaunchQueue block; once for each queue to serve.")
    ],
    drain: Annotated[
        bool, typer.Option("--drain", help="End when the queue is empty and all launches have ended.")
    ] = False,
    max_runtime_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="End after this time; live launches go to the next agent. No end if unset."),
    ] = None,
) -> None:
    """Launch the runs of one or more queues, here and now."""
    state = _run(_serve_queues(queue, drain=drain, max_runtime_minutes=max_runtime_minutes))
    typer.echo(several_lines(f"{state.name}: {state.message}"))
    raise typer.Exit(OK if state.is_completed() else FAILED)


@app.command()
def deploy(
    queue: Annotated[str, typer.Option(help="Name of the VertexLaunchQueue block.")],
    pool: Annotated[str, typer.Option(help="Name of the work pool that runs the deployments.")],
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=24 * 60,
            help="Minutes between two starts of an agent; 5 if unset. One works at a time.",
        ),
    ] = None,
    no_schedule: Annotated[bool, typer.Option("--no-schedule", help="Start agents by hand only.")] = False,
    image: Annotated[
        str | None,
        typer.Option(
            help="Image with prefect-vertex-launch in it, for a pool that runs flows in containers."
        ),
    ] = None,
) -> None:
    """Deploy a queue's flows on a work pool: the agent, a launch by hand, and the form that pushes a run."""
    from prefect_vertex_launch.cli.deploy import DeployOptions
    from prefect_vertex_launch.cli.deploy import deploy as run_deploy

    options = DeployOptions(
        queue=queue,
        pool=pool,
        image=image,
        every=None if every is None else timedelta(minutes=every),
        is_scheduled=not no_schedule,
    )
    for line in _run(run_deploy(options)).lines():
        typer.echo(line)


@app.command()
def init(
    force: Annotated[bool, typer.Option("--force", help="Write over the one that is there.")] = False,
    print_only: Annotated[bool, typer.Option("--print", help="Print it and write nothing.")] = False,
) -> None:
    """Write a prefect.yaml with a queue's deployments into this folder, for `prefect deploy`."""
    from prefect_vertex_launch.cli.init import next_steps, write_prefect_yaml
    from prefect_vertex_launch.cli.prefect_yaml import read_prefect_yaml

    if print_only:
        typer.echo(read_prefect_yaml(), nl=False)
        return
    try:
        path = write_prefect_yaml(Path.cwd(), force=force)
    except CommandError as error:
        _fail(error)
    for line in (f"written: {path}", *next_steps()):
        typer.echo(line)


@app.command()
def status(
    queue: Annotated[str | None, typer.Option(help="Only this VertexLaunchQueue block.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many ended launches to show per queue.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What is queued and under way: state, why, age, job and links."""
    from prefect_vertex_launch.cli.status.table import show_status

    complete = _run(show_status(queue, ended_limit=limit, as_json=as_json))
    raise typer.Exit(OK if complete else FAILED)


@app.command()
def migrate(
    path: Annotated[Path, typer.Argument(help="The configuration of W&B's launch agent.")] = Path(
        "~/.config/wandb/launch-config.yaml"
    ),
    apply: Annotated[bool, typer.Option("--apply", help="Write the blocks and limits.")] = False,
    project: Annotated[str | None, typer.Option(help="Google Cloud project of the jobs.")] = None,
    gcp_credentials: Annotated[
        str | None, typer.Option(help="A GcpCredentials block that exists, instead of a new one.")
    ] = None,
    wandb_credentials: Annotated[
        str | None, typer.Option(help="A WandbCredentials block that exists, instead of a new one.")
    ] = None,
    staging_bucket: Annotated[
        str | None, typer.Option(help="gs:// bucket for queues that name none themselves.")
    ] = None,
    allow_macros: Annotated[
        bool,
        typer.Option("--allow-macros", help="Allow the variables that the queues use, but for secrets."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="With --apply: file for the commands that deploy the queues.")
    ] = None,
) -> None:
    """From W&B's launch agent to here: say what becomes of each field, and with --apply write it."""
    from prefect_vertex_launch.cli.migrate.migrate import MigrateOptions
    from prefect_vertex_launch.cli.migrate.migrate import migrate as run_migrate

    options = MigrateOptions(
        path=path,
        apply=apply,
        project=project,
        gcp_credentials=gcp_credentials,
        wandb_credentials=wandb_credentials,
        staging_bucket=staging_bucket,
        allow_macros=allow_macros,
        output=output,
    )
    _run(run_migrate(options))


@app.command()
def adopt(
    queue: Annotated[str, typer.Option(help="Name of the VertexLaunchQueue block.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
) -> None:
    """Take over the live jobs of a queue that W&B's own agent left running."""
    from prefect_vertex_launch.cli.adopt import adopt as run_adopt
    from prefect_vertex_launch.cli.migrate.report import print_adoptions

    print_adoptions(queue, _run(run_adopt(queue, dry_run=dry_run)))


def main() -> None:
    """Run the command line."""
    app()


async def _serve_queues(queues: list[str], *, drain: bool, max_runtime_minutes: float | None) -> Any:
    from prefect_vertex_launch.coordination.prefect_api import open_prefect, require_block
    from prefect_vertex_launch.flows.agent import agent as agent_flow

    async with open_prefect() as client:
        for queue in queues:
            await require_block(client, queue)
    state = await agent_flow(  # pyright: ignore[reportGeneralTypeIssues] - Prefect types an async flow as its result
        queues=queues, drain=drain, max_runtime_minutes=max_runtime_minutes, return_state=True
    )
    if state.is_failed() or state.is_crashed():
        # A wrong key or a missing queue ends the agent: its own words, not the state's traceback.
        await state.aresult(raise_on_failure=True)
    return state


def _image(mapping: str) -> tuple[str, list[str]]:
    name, _, command = mapping.partition("=")
    if not (name and command.strip()):
        _fail(
            CommandError(
                f"{mapping!r} is not NAME=COMMAND", "write --image 'my/image=python train.py'", code=USAGE
            )
        )
    return name, shlex.split(command)


def _given_api_key(file: Path | None) -> str:
    try:
        return given_api_key(file)
    except CommandError as error:
        _fail(error)


async def _started(serving: Coroutine[Any, Any, None]) -> None:
    from prefect_vertex_launch.sandbox.start_refusal import StartRefusal

    try:
        await serving
    except StartRefusal as refusal:
        raise CommandError(refusal.what, refusal.fix, code=NOT_READY) from refusal


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a command's coroutine; what can be expected to go wrong becomes two lines, not a trace."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        expected = as_command_error(error)
        if expected is None:
            raise
        _fail(expected)
    except BaseException as error:
        from prefect.exceptions import TerminationSignal

        # Prefect's engine turns SIGTERM into this, in whatever runs at that moment; it comes in a group if
        # that was one of several tasks. The launches are marked for the next agent by then.
        signals = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
        if signals.subgroup(TerminationSignal) is not None:
            raise typer.Exit(TERMINATED) from None
        raise


def _fail(error: CommandError) -> NoReturn:
    sys.stderr.write(f"{error}\n")
    raise typer.Exit(error.code)


if __name__ == "__main__":
    main()
