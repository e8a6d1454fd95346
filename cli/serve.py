"""codi serve: the adapters behind an HTTP API and a page."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Any

import typer

from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output
from codi_hub.config.serve import ServeOptions
from codi_hub.errors import UsageError

PACKAGES = ("fastapi", "fastapi_offline", "gradio", "prometheus_client", "python_multipart", "uvicorn")


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


@options_from(ServeOptions, with_task_flags=False)
def serve(given: dict[str, Any], json: Json = False, quiet: Quiet = False) -> None:
    """Serve the adapters by a page and an OpenAI-compatible API, until Ctrl-C.

    What is being generated then is finished.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UsageError(f"codi serve: {missing[0]} is not installed; pip install 'codi-hub[serve]'")
    if "token" not in given and (token := os.environ.get("CODI_SERVE_TOKEN")):
        given["token"] = token
    options = ServeOptions(**given)
    from codi_hub.serve.server import serve as run

    def listening(url: str, server: object) -> None:
        page = "the page itself, " if options.page else ""
        text = f"Serving on {url}: {page}API {url}/v1, its description {url}/docs. Ctrl-C stops."
        Output(json, quiet).result({"url": url}, text, url)
        sys.stdout.flush()

    run(options, listening)
