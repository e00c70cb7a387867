"""What a command says when it cannot go on: one line with the fact, one with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_vertex_launch.core.foreign_text import several_lines

if TYPE_CHECKING:
    from prefect_vertex_launch.core.errors import LaunchError

OK, FAILED, USAGE, NOT_READY, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143


class CommandError(Exception):
    """An end that was to be expected: printed as `error:` and `hint:`, without a traceback."""

    def __init__(self, what: str, hint: str, *, code: int = FAILED) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return several_lines(f"error: {self.what}\nhint: {self.hint}")


def as_command_error(error: BaseException) -> CommandError | None:
    """Return how a command ends for an error that can be expected, None for one that cannot.

    Such errors are those of the core and of the Prefect API.
    """
    if isinstance(error, BaseExceptionGroup):
        return as_command_error(error.exceptions[0])
    if isinstance(error, CommandError):
        return error

    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    from prefect_vertex_launch.core import errors

    if isinstance(error, PrefectHTTPStatusError):
        return CommandError(
            f"Prefect at {prefect_url()} refused: {error}".splitlines()[0],
            "check PREFECT_API_URL and PREFECT_API_KEY, and that client and server are of one version",
            code=NOT_READY,
        )
    if isinstance(error, httpx.TransportError):
        return _prefect_unreachable(error)
    return _of_core(error) if isinstance(error, errors.LaunchError) else None


def _of_core(error: LaunchError) -> CommandError:
    from prefect_vertex_launch.coordination.prefect_api import NoSuchBlock, PrefectUnreachable
    from prefect_vertex_launch.core.errors import AuthenticationFailed, NotFound, PermissionDenied, Transient

    if isinstance(error, PrefectUnreachable):
        return _prefect_unreachable(error)
    if isinstance(error, NoSuchBlock):
        [problem] = error.problems
        return CommandError(problem.what, problem.fix[:1].lower() + problem.fix[1:], code=NOT_READY)
    if isinstance(error, AuthenticationFailed | PermissionDenied | NotFound):
        return CommandError(str(error), "correct the block and run the command again", code=NOT_READY)
    if isinstance(error, Transient):
        return CommandError(str(error), "try again when the other side answers", code=NOT_READY)
    return CommandError(str(error), "correct it and run the command again")


def _prefect_unreachable(error: BaseException) -> CommandError:
    """Return the error for a Prefect API that does not answer."""
    return CommandError(
        f"Prefect cannot be reached at {prefect_url()} ({error or type(error).__name__})",
        "start it with `prefect server start`, or name another one with "
        "`prefect config set PREFECT_API_URL=http://HOST:4200/api`",
        code=NOT_READY,
    )


def prefect_url() -> str:
    """Return the URL of the Prefect API that is configured."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or "the temporary server of this process"
