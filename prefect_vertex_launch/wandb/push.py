"""Push one run to a W&B Launch queue with wandb's own `launch_add`, in a process of its own.

wandb keeps credentials and settings per process and prints the whole run spec; a process of its own
keeps both away from the flow. It reads the arguments of `launch_add` as JSON from standard input,
finds its key in WANDB_API_KEY, and prints the item's id as JSON on the last line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from typing import Any

from pydantic import SecretStr

from prefect_vertex_launch.core.errors import Problem, Refused, Transient

PUSH_TIMEOUT_SECONDS = 120.0


async def push(arguments: dict[str, Any], *, base_url: str, api_key: SecretStr) -> str:
    """Push a run and return its run queue item's id.

    `arguments` are those of `wandb.sdk.launch.launch_add`. Raises Refused with wandb's own words
    when it does not take the run, and Transient when it gives no answer within two minutes.
    """
    with tempfile.TemporaryDirectory(prefix="vertex-launch-push-") as scratch:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
            "WANDB_API_KEY": api_key.get_secret_value(),
            "WANDB_BASE_URL": base_url,
            "WANDB_CONFIG_DIR": scratch,
            "WANDB_CACHE_DIR": scratch,
            "WANDB_DIR": scratch,
            "WANDB_SILENT": "true",
        }
        process = await asyncio.create_subprocess_exec(
            # -P: no package of the user's, in the current directory, is taken for one that this needs.
            sys.executable, "-P", "-m", "prefect_vertex_launch.wandb.push",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=environment,
        )  # fmt: skip
        try:
            output, errors = await asyncio.wait_for(
                process.communicate(json.dumps(arguments).encode()), PUSH_TIMEOUT_SECONDS
            )
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise Transient(f"wandb did not push the run within {PUSH_TIMEOUT_SECONDS:.0f} s") from error
    if process.returncode != 0:
        last_words = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise Refused(
            Problem(
                where=f"queue {arguments.get('entity')}/{arguments.get('queue_name')}",
                what=f"wandb did not push the run: {last_words[0]}",
                fix="Check the queue's name, the image or job, and the template variables.",
            )
        )
    return json.loads(output.decode().strip().splitlines()[-1])["item_id"]


def main() -> None:
    """Push what standard input describes and print the item's id."""
    from wandb.sdk.launch import launch_add

    queued = launch_add(**json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps({"item_id": queued.id}) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # noqa: BLE001 - the parent process shows the last line to a person
        sys.stderr.write(f"\n{type(error).__name__}: {error}\n".replace("\n", " ").strip() + "\n")
        sys.exit(1)
