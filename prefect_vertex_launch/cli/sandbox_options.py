"""The options of `vertex-launch sandbox up`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WandbPort = Annotated[int, typer.Option(min=0, max=65535, help="Port of W&B's backend; 0 picks one.")]
VertexRestPort = Annotated[
    int, typer.Option(min=0, max=65535, help="Port of Vertex AI over REST; 0 picks one.")
]
VertexGrpcPort = Annotated[
    int, typer.Option(min=0, max=65535, help="Port of Vertex AI over gRPC; 0 picks one.")
]
GooglePort = Annotated[
    int, typer.Option(min=0, max=65535, help="Port of Google's access tokens and secrets; 0 picks one.")
]
FaultsPort = Annotated[
    int, typer.Option(min=0, max=65535, help="Port where faults are switched; 0 picks one.")
]
State = Annotated[Path | None, typer.Option(help="File that keeps the state over a restart.")]
Entity = Annotated[str, typer.Option(help="The W&B entity there is.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the API key that W&B's backend accepts; else in SANDBOX_API_KEY, else one is made."
    ),
]
Image = Annotated[
    list[str] | None, typer.Option(help="NAME=COMMAND: the local program of a container image.")
]
LeaseSeconds = Annotated[
    float, typer.Option(min=0, help="How long a popped item waits for its ack before it is queued again.")
]
QueuedSeconds = Annotated[float, typer.Option(min=0, help="How long a job is QUEUED.")]
PendingSeconds = Annotated[float, typer.Option(min=0, help="How long a job is PENDING after that.")]
RequestLog = Annotated[Path | None, typer.Option(help="File that gets a line of JSON for each request.")]
