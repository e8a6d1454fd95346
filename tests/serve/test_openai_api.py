"""The API as clients use it: OpenAI's own client, and the forms that others send."""

import base64
import io
from typing import Any

import numpy as np
import openai
import pytest
from conftest import EXACT, Running
from corpus import encoded, photograph
from PIL import Image

from codi_hub import Hub
from codi_hub.seeds import variant_seed


def file(width: int = 16, height: int = 16, kind: str = "PNG") -> tuple[str, bytes, str]:
    return f"a.{kind.lower()}", encoded(photograph(width, height), kind), f"image/{kind.lower()}"


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def levels(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_models_are_versions_and_tags(running: Running) -> None:
    models = {model.id: model for model in running.client.models.list()}
    assert {"depth", "depth:1", "depth:latest", "superres", "inpaint:1"} <= {*models}
    assert models["depth"].model_extra == {
        "version": "nano/depth:1",
        "kind": "residual",
        "method": "regression",
        "steps": 4,
    }
    assert running.client.models.retrieve("inpaint:1").id == "inpaint:1"
    with pytest.raises(openai.NotFoundError) as missing:
        running.client.models.retrieve("inpaint:7")
    assert missing.value.body["code"] == "model_not_found"  # type: ignore[index]


def test_an_edit_is_what_the_library_generates_with_the_seed_that_is_answered(running: Running) -> None:
    answer = running.client.images.edit(
        model="superres", image=file(), prompt="", extra_body={"seed": 11, "num_inference_steps": 2}
    )
    assert answer.model_extra == {"model": "superres:1"}
    (image,) = answer.data or []
    assert (answer.size, answer.output_format, image.seed) == ("64x64", "png", 11)  # type: ignore[attr-defined]
    with Hub.open(running.home) as hub:
        expected = hub.generate("superres:1", photograph(16, 16), seeds=11, steps=2, **EXACT)
    assert levels(opened(str(image.b64_json)), expected) <= 1


def test_variants_of_a_masked_image_have_seeds_of_their_own(running: Running) -> None:
    image = photograph(64, 64)
    mask = Image.new("RGBA", image.size, "black")
    mask.paste((0, 0, 0, 0), (20, 20, 40, 40))  # OpenAI's: transparent where the image is to be changed
    answer = running.client.images.edit(
        model="inpaint", image=("a.png", encoded(image, "PNG")), mask=("m.png", encoded(mask, "PNG")), prompt="",
        n=2, size="64x64", extra_body={"seed": 3, "num_inference_steps": 1},
    )  # fmt: skip
    white = Image.new("L", image.size)
    white.paste(255, (20, 20, 40, 40))
    seeds = [3, variant_seed(3, 1)]
    assert [entry.seed for entry in answer.data or []] == seeds  # type: ignore[attr-defined]
    with Hub.open(running.home) as hub:
        for seed, entry in zip(seeds, answer.data or [], strict=True):
            expected = hub.generate("inpaint", image, masks=white, seeds=seed, steps=1, **EXACT)
            assert levels(opened(str(entry.b64_json)), expected) <= 1
    first, second = (opened(str(entry.b64_json)) for entry in answer.data or [])
    assert levels(first, second) > 1
    assert np.array_equal(np.asarray(first)[:20], np.asarray(image)[:20])


def test_several_images_get_an_answer_each_and_one_seed_each(running: Running) -> None:
    answer = running.client.images.edit(
        model="deblur", image=[file(16, 16), file(24, 16)], prompt="", extra_body={"num_inference_steps": 1}
    )
    assert [opened(str(entry.b64_json)).size for entry in answer.data or []] == [(16, 16), (24, 16)]
    first, second = (entry.seed for entry in answer.data or [])  # type: ignore[attr-defined]
    assert first != second


@pytest.mark.parametrize("form", ["text", "list", "image_url", "images"])
def test_json_takes_data_uris(running: Running, form: str) -> None:
    text = uri(file()[1])
    image: dict[str, Any] = {
        "text": {"image": text},
        "list": {"image": [text]},
        "image_url": {"image": {"image_url": {"url": text}}},
        "images": {"images": [{"image_url": text}]},
    }[form]
    body = {"model": "deblur", "num_inference_steps": 1, "seed": 1, "quality": "high", "user": "me"}
    answer = running.post("/v1/images/edits", json=body | image)
    assert answer.status_code == 200, answer.text
    assert opened(answer.json()["data"][0]["b64_json"]).size == (16, 16)


def test_a_link_leads_to_the_image_in_its_format(running: Running) -> None:
    answer = running.client.images.edit(
        model="deblur:latest", image=file(kind="JPEG"), prompt="", response_format="url", output_format="webp",
        extra_body={"num_inference_steps": 1},
    )  # fmt: skip
    (image,) = answer.data or []
    found = running.get(str(image.url).removeprefix(running.url))
    assert (found.headers["content-type"], Image.open(io.BytesIO(found.content)).format) == ("image/webp", "WEBP")
    assert running.get("/v1/images/files/../../etc/passwd").status_code == 404
    assert running.get("/v1/images/files/x.png").json()["error"]["message"] == "no such image, or it has expired"


def test_a_map_is_drawn_at_the_size_that_is_asked_for(running: Running) -> None:
    answer = running.client.images.edit(
        model="depth", image=file(16, 24), prompt="a ball", size="48x32",  # type: ignore[arg-type]
        extra_body={"num_inference_steps": 1},
    )  # fmt: skip
    assert answer.size == "48x32"  # type: ignore[comparison-overlap]
    assert opened(str((answer.data or [])[0].b64_json)).size == (48, 32)


def test_options_of_a_task_are_json_in_a_form(running: Running) -> None:
    fields = {"model": "superres", "options": '{"scale": 2}', "num_inference_steps": "1"}
    answer = running.post("/v1/images/edits", data=fields, files={"image[]": file()})
    assert answer.json()["size"] == "32x32"


REFUSED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "no model": ({}, "model: missing", "model"),
    "unknown model": ({"model": "../x"}, "model '../x': base '..' is not served; see /v1/models", "model '../x'"),
    "other base": ({"model": "sdxl/depth"}, "model 'sdxl/depth': base 'sdxl' is not served; see /v1/models", None),
    "size": ({"size": "12"}, "size 12: auto, or WIDTHxHEIGHT such as 512x512", "size 12"),
    "another size": ({"size": "8x8"}, "size: the result of this image has 16x16 pixels; ask for that, or auto", "size"),
    "n": ({"n": 11}, "n 11: at most 10", None),
    "alike": ({"n": 2}, "n: variants 2: deblur:1 is a regression", "n"),
    "seed": ({"seed": -1}, "seed -1: at least 0", None),
    "steps": ({"num_inference_steps": 0}, "num_inference_steps 0: at least 1", None),
    "strength": ({"strength": 2}, "strength 2: at most 1", None),
    "format": ({"response_format": "gif"}, "response_format gif: one of b64_json, url", None),
    "options": ({"options": "{"}, 'options {: a JSON object, such as {"scale": 2}', None),
    "unknown option": ({"options": {"scale": 2}}, "task deblur: no option 'scale'", None),
    "prompt": ({"model": "edit"}, "prompt: task edit needs one", "prompt"),
    "no image": ({"image": []}, "image: at least one is needed, as a file of a form or a data URI", "image"),
    "a link": ({"image": "https://example.org/a.png"}, "image: links are not fetched; send the file", "image"),
    "a file": ({"image": "file:///etc/passwd"}, "image: links are not fetched; send the file", "image"),
    "no base64": ({"image": "data:image/png;base64,!"}, "image: neither a data URI nor Base64", "image"),
    "a number": ({"image": 5}, 'image: a data URI, or {"image_url": "data:..."}', "image"),
    "no picture": ({"image": "aGVsbG8="}, "image: not a readable image: the content is not in a known", "image"),
    "17 images": ({"image": [""] * 17}, "image: 17 images, and a request may have 16", "image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_has_openais_form_and_names_the_field(running: Running, case: str) -> None:
    change, message, param = REFUSED[case]
    body = {"model": "deblur", "image": uri(file()[1])} | change if change else {"image": uri(file()[1])}
    answer = running.post("/v1/images/edits", json=body)
    error = answer.json()["error"]
    assert error["message"].startswith(message)
    assert answer.status_code == (404 if error["code"] == "model_not_found" else 400)
    assert {*error} == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param


def test_generations_begin_with_nothing_where_a_task_can(running: Running) -> None:
    answer = running.client.images.generate(model="inpaint", prompt="a fox", size="96x64", n=2, extra_body={"seed": 5})  # type: ignore[arg-type]
    blank = Image.new("RGBA", (96, 64))
    with Hub.open(running.home) as hub:
        seeds = [variant_seed(5, k) for k in range(2)]
        expected = hub.generate("inpaint:1", [blank] * 2, prompts=["a fox"] * 2, seeds=seeds, **EXACT)
    assert len(answer.data or []) == 2
    for one, other in zip(answer.data or [], expected, strict=True):
        assert levels(opened(str(one.b64_json)).convert("RGB"), other.convert("RGB")) <= 1
    with pytest.raises(openai.BadRequestError, match="size: 1000x1000 pixels are over the limit"):
        running.client.images.generate(model="inpaint", prompt="a fox", size="1000x1000")  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_open_webuis_forms(running: Running, name: str) -> None:
    """Its client sends every field as text, an api-version where one is set, and reads `url` before `b64_json`."""
    headers = {"Authorization": "Bearer sk-any", "X-OpenWebUI-User-Name": "me"}
    fields = {"model": "edit", "prompt": "make it night", "n": "1", "response_format": "b64_json"}
    files = [(name, ("image.png", encoded(photograph(24, 16), "PNG"), "image/png"))]
    answer = running.post("/v1/images/edits?api-version=2024-02-01", headers=headers, data=fields, files=files)
    (image,) = answer.json()["data"]
    assert "url" not in image
    assert opened(image["b64_json"]).size == (24, 16)
    document = {"model": "inpaint", "prompt": "a fox", "n": 1, "size": "64x64", "response_format": "b64_json"}
    answer = running.post("/v1/images/generations?api-version=2024-02-01", headers=headers, json=document)
    assert opened(answer.json()["data"][0]["b64_json"]).size == (64, 64)


def test_generations_need_a_task_without_an_image(running: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="task depth needs an image; send it to /v1/images/edits"):
        running.client.images.generate(model="depth", prompt="a fox")


def test_new_adapters_moved_tags_and_removed_adapters_are_seen(running: Running) -> None:
    def version(name: str) -> Any:
        return (running.client.models.retrieve(name).model_extra or {})["version"]

    with Hub.open(running.home) as hub:
        hub.catalog.add_task("mine", "depth", {"invert": True})
        hub.catalog.copy("depth:1", "mine")
        hub.catalog.tag("mine:1", "prod")
        assert version("mine") == version("mine:prod") == "nano/mine:1"
        hub.catalog.tag("mine:1", "prod", remove=True)
        with pytest.raises(openai.NotFoundError):
            version("mine:prod")
        hub.catalog.remove(["mine:1"])
    with pytest.raises(openai.NotFoundError):
        running.client.images.edit(model="mine", image=file(), prompt="")


def test_it_tells_how_it_does(running: Running) -> None:
    assert running.get("/health").json()["status"] == "ok"
    running.client.images.edit(model="deblur", image=file(), prompt="", extra_body={"num_inference_steps": 1})
    lines = running.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['codi_images_total{adapter="deblur:1"}']) >= 1
    assert float(values['codi_requests_total{route="/v1/images/edits",status="200"}']) >= 1
    assert float(values["codi_waiting_images"]) == 0


def test_the_description_loads_nothing_from_other_hosts(running: Running) -> None:
    page = running.get("/docs").text
    assert "https://" not in page
    document = running.get("/openapi.json").json()
    body = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert {*body} == {"multipart/form-data", "application/json"}
    assert {"model", "image", "mask", "seed"} <= {*body["multipart/form-data"]["schema"]["properties"]}
