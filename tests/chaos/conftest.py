"""The Prefect server that the other tests have too."""

from tests.end_to_end.conftest import prefect_api, prefect_server

__all__ = ["prefect_api", "prefect_server"]
