"""The key to a W&B server, as a Prefect block."""

from __future__ import annotations

from typing import Any, ClassVar

from prefect.blocks.abstract import CredentialsBlock
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from prefect_vertex_launch.blocks.field_names import refuse_unknown_fields
from prefect_vertex_launch.core.identity import server_name
from prefect_vertex_launch.wandb.endpoint import WandbEndpoint

# Prefect takes http(s) logos only; this one is served for its own Google Cloud blocks.
LOGO_URL = (
    "https://cdn.sanity.io/images/3ugk85nk/production/10424e311932e31c477ac2b9ef3d53cefbaad708-250x250.png"
)
DOCUMENTATION_URL = "https://docs.wandb.ai/guides/launch"


class WandbCredentials(CredentialsBlock):
    """Opens Weights & Biases: the server and an API key for it.

    Attributes:
        api_key: An API key of the user or service account that the agent acts as.
        base_url: The W&B server.

    Example:
        ```python
        from prefect_vertex_launch.blocks import WandbCredentials

        wandb_credentials = WandbCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str | None] = "Weights and Biases Credentials"
    _block_type_slug: ClassVar[str | None] = "wandb-credentials"
    _logo_url: ClassVar[Any] = LOGO_URL
    _documentation_url: ClassVar[Any] = DOCUMENTATION_URL

    # An error of pydantic quotes what it was given, and that may be the key.
    model_config = ConfigDict(hide_input_in_errors=True)

    api_key: SecretStr = Field(
        title="API key",
        description="An API key of the user or service account that the agent acts as.",
    )
    base_url: str = Field(
        default="https://api.wandb.ai",
        title="Server",
        description="The W&B server; change it for a dedicated or self-managed one.",
        examples=["https://api.wandb.ai", "https://wandb.example.com"],
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_fields(cls, values: Any) -> Any:
        return refuse_unknown_fields(cls.__name__, cls.model_fields, values)

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if not value.startswith(("https://", "http://")):
            raise ValueError(
                f"{value!r} is not a URL; it starts with https:// (or http:// for a local server)"
            )
        try:
            has_host = bool(server_name(value))
        except ValueError:  # a port that is no number
            has_host = False
        if not has_host:
            raise ValueError(f"{value!r} names no server; write it like https://wandb.example.com")
        return value.rstrip("/")

    def endpoint(self) -> WandbEndpoint:
        """Return server and key as the core takes them."""
        return WandbEndpoint(base_url=self.base_url, api_key=self.api_key)

    def get_client(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return a `wandb.Api` for this server and key."""
        import wandb

        return wandb.Api(overrides={"base_url": self.base_url}, api_key=self.api_key.get_secret_value())
