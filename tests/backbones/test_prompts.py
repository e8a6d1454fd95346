"""Prompts are embedded as diffusers' pipelines do, and what of them is not read is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from families import LONGEST, flux, sd3, sdxl, z_image
from tiny import TOKENS, save_base, scheduler_config
from transformers import CLIPTextModel, CLIPTokenizer

from codi_hub import backbones
from codi_hub.adapters.base_only import BaseOnly
from codi_hub.backbones import backbone
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.prompts import PromptWarnings
from codi_hub.inference.engine import Engine, Request, Sampling
from codi_hub.training.prompts import PromptStore

LONG = "abc defghijklmnopqrstuvwxyz"  # a token per letter
PROMPTS = ["a red ball", "", LONG, "a <cat> <dog>"]


@pytest.fixture(scope="module")
def inverted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with two learned words, one of three vectors, and a text encoder that is given a mask."""
    folder = save_base(
        tmp_path_factory.mktemp("inverted") / "base", scheduler_config("epsilon"), addition_embed_type=None
    )
    words: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder: Any = CLIPTextModel.from_pretrained(folder / "text_encoder")
    words.add_tokens(["<cat>", "<cat>_1", "<cat>_2", "<dog>"])
    torch.manual_seed(0)
    encoder.resize_token_embeddings(len(words))
    encoder.config.use_attention_mask = True
    words.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "text_encoder")
    return folder


def pipeline(base: Any) -> StableDiffusionPipeline:
    parts = {"vae": base.vae, "unet": base.unet, "scheduler": None, "safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(
        text_encoder=base.text_encoders[0], tokenizer=base.tokenizers[0], requires_safety_checker=False, **parts
    )


@pytest.mark.parametrize("text", PROMPTS)
def test_prompts_are_embedded_as_the_pipeline_does(inverted: Path, text: str) -> None:
    base: Any = backbones.load(str(inverted))
    expected, _ = pipeline(base).encode_prompt(text, "cpu", 1, False)
    assert torch.equal(base.embed([text])["context"], expected)


def test_the_mask_is_passed_where_the_text_encoder_wants_one(inverted: Path) -> None:
    base: Any = backbones.load(str(inverted))
    masked = base.embed(["a red ball"])["context"]
    base.text_encoders[0].config.use_attention_mask = False
    assert not torch.equal(base.embed_texts(["a red ball"])["context"], masked)


def test_a_word_of_several_vectors_is_all_of_them(inverted: Path) -> None:
    base: Any = backbones.load(str(inverted))
    context = base.embed(["a <cat>"])["context"]  # which also sets the tokenizer's limit
    inputs = base.tokenizers[0]("a <cat> <cat>_1 <cat>_2", padding="max_length", return_tensors="pt")
    assert inputs.attention_mask.sum() == 6  # start, a, three vectors, end
    with torch.no_grad():
        assert torch.equal(context, base.text_encoders[0](inputs.input_ids, inputs.attention_mask)[0])
    assert base.unread_text("abcdefghijk <cat>") == ""  # 11 letters, 3 vectors, 2 ends: 16 tokens
    assert base.unread_text("abcdefghijkl <cat>") == "<cat>_2"


@pytest.mark.slow
@pytest.mark.parametrize("model", [sdxl, sd3, flux, z_image], ids=lambda model: model.__name__)
def test_every_family_says_what_it_does_not_read(tmp_path: Path, model: Callable[[Path], Path]) -> None:
    base: Backbone = backbones.load(str(model(tmp_path)))
    assert base.unread_text("ab") == ""
    assert base.unread_text("abcdefg " * 600)


@pytest.mark.slow
@pytest.mark.parametrize("t5", [True, False], ids=["T5", "no T5"])
def test_sd3_reads_what_its_longest_text_encoder_reads(tmp_path: Path, t5: bool) -> None:
    base: Backbone = backbones.load(str(sd3(tmp_path, t5_encoder=t5)))
    read = LONGEST - 2 if t5 else TOKENS - 2  # T5's first piece is a space and its last an end; CLIP has two ends
    assert base.unread_text("a" * read) == ""
    assert base.unread_text("a" * read + "bc") == "bc"


def test_a_cut_prompt_is_said_once_in_a_run(base: Backbone) -> None:
    said: list[str] = []
    engine = Engine(base, on_message=said.append)
    image = np.zeros((16, 16, 3), np.float32)
    requests = [Request(image, BaseOnly(base), prompt, k) for k, prompt in enumerate((LONG, "short", LONG))]
    for _ in range(2):
        engine.generate(requests, Sampling(1), batch=1)
    assert said == [f"prompt '{LONG}' is too long for the text encoder: it does not read 'opqrstuvwxyz'"]
    assert len("abcdefghijklmn") == TOKENS - 2


def test_a_training_names_a_few_cut_prompts(base: Backbone, tmp_path: Path) -> None:
    said: list[str] = []
    store = PromptStore(base, tmp_path)
    store.on_message = said.append
    store.prepare([f"{LONG} {k}" for k in range(9)])
    store.prepare([f"{LONG} {k}" for k in range(12)])
    assert [line.partition(" is too long")[0] for line in said] == [
        *(f"prompt '{LONG} {k}'" for k in range(3)),
        "more prompts are too long or contain weights",
    ]


def test_warnings_do_not_repeat(base: Backbone) -> None:
    said: list[str] = []
    warnings = PromptWarnings(base, said.append)
    for _ in range(2):
        warnings.check([LONG, None, "", "short"])
    assert len(said) == 1


def test_embeddings_are_kept_up_to_a_number_of_bytes(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    monkeypatch.setattr(base, "embed_texts", lambda texts, own=base.embed_texts: encoded.extend(texts) or own(texts))
    row = base.embed(["kept once"])
    monkeypatch.setattr(backbone, "PROMPT_CACHE", 2 * row.nbytes)
    for text in ("b", "c", "d", "d", "c", "b"):
        base.embed([text])
    assert encoded == ["kept once", "b", "c", "d", "b"]  # the last two stay
    assert len(base.embed(["e", "f", "g"])) == 3  # more than are kept
