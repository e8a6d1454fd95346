"""The requests of the images API: OpenAI's fields, and those of few-step adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from codi_hub.errors import UsageError
from codi_hub.validation import problem

MAX_VARIANTS = 10
MAX_PROMPT = 32_000  # characters, as of OpenAI
SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


def _mapping(value: Any) -> Any:
    """Return a mapping of JSON text: in a form every value is text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise ValueError('a JSON object, such as {"scale": 2}') from None


def _size(value: Any) -> Any:
    if value != "auto" and not SIZE.fullmatch(str(value)):
        raise ValueError("auto, or WIDTHxHEIGHT such as 512x512")
    return value


def json_object(body: bytes) -> dict[str, Any]:
    """Return the object of a body in JSON. Raises UsageError."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("the body is not JSON") from None
    if not isinstance(document, dict):
        raise UsageError("the body is not a JSON object")
    return document


class ImagesRequest(BaseModel):
    """What both kinds of requests have. Fields of OpenAI without a meaning here, such as quality, are ignored."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    model: str = Field(min_length=1, max_length=200)
    """Adapter such as depth, depth:2 or depth:prod, with its base as BASE/depth:2."""
    prompt: str = Field("", max_length=MAX_PROMPT)
    """Text; may be empty where the task needs none."""
    n: int = Field(1, ge=1, le=MAX_VARIANTS)
    """Number of variants of every image."""
    size: Annotated[str, BeforeValidator(_size)] = "auto"
    """Size of the result. Tasks that draw a map, such as depth, take any; others that of their result, or auto."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """Images as Base64, or as links to this server that expire."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    """Type of the files."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Seed of the first image; further ones derive theirs from it. Default: a random one, which the answer states."""
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    """Sampling steps (default: the adapter's)."""
    strength: float = Field(1.0, ge=0, le=1)
    """Scale of what the adapter adds."""
    options: Annotated[Mapping[str, Any], BeforeValidator(_mapping)] = Field(default_factory=dict)
    """Options of the task, as with `codi run --set`; in a form as JSON text."""

    @property
    def pixels(self) -> tuple[int, int] | None:
        """`size` as (width, height); None for auto."""
        match = SIZE.fullmatch(self.size)
        return (int(match[1]), int(match[2])) if match else None


def parsed(values: Mapping[str, Any]) -> ImagesRequest:
    """Return a request of its fields, text or JSON. Raises UsageError, which begins with the field's name."""
    try:
        return ImagesRequest(**values)
    except ValidationError as error:
        raise UsageError(problem(error, ImagesRequest)) from None


def body(*, edits: bool) -> dict[str, Any]:
    """Return the OpenAPI description of a request's body: a form or JSON, which the routes read themselves."""
    own = ImagesRequest.model_json_schema()
    file, uri = {"type": "string", "format": "binary"}, {"type": "string", "description": "A data URI"}
    contents = {}
    for kind, image in (
        (("multipart/form-data", file), ("application/json", uri)) if edits else (("application/json", {}),)
    ):
        images = {"image": {"type": "array", "items": image, "maxItems": 16}, "mask": image} if edits else {}
        required = ["model", *["image"] * edits]
        contents[kind] = {"schema": own | {"properties": own["properties"] | images, "required": required}}
    return {"requestBody": {"required": True, "content": contents}}
