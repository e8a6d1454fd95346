"""Reading of each image's own prompt: from the folder's metadata.jsonl, or from the text file beside the image."""

import posixpath
import stat
from pathlib import Path

from codi_hub import jsonl
from codi_hub.errors import InvalidInput
from codi_hub.paths import display_path

METADATA = "metadata.jsonl"
KEYS = ("prompt", "edit_prompt", "instruction", "text", "caption")  # in this order of precedence
MAX_BYTES = 1 << 14  # of one prompt; text encoders read about seventy words


def read_metadata(folder: Path) -> dict[str, str]:
    """Return the prompts by name relative to the folder, from the `file_name` and one of `KEYS` in metadata.jsonl.

    Raises:
        InvalidInput: a wrong line, by its number.
    """
    file = folder / METADATA
    found: dict[str, str] = {}
    if not file.is_file():
        return found
    for number, row in jsonl.objects(file):
        where = f"{display_path(file)} line {number}"
        name = row.get("file_name")
        if not isinstance(name, str):
            raise InvalidInput(f'{where} has no file_name: write {{"file_name": "a.png", "prompt": "..."}}')
        key = next((key for key in KEYS if row.get(key) is not None), None)
        if key is None:
            continue
        if not isinstance(row[key], str):
            raise InvalidInput(f"{where}: {key} is {row[key]!r:.60}, not text")
        prompt = clean_prompt(row[key], f"{where}: {key}")
        name = posixpath.normpath(name)
        if prompt and found.setdefault(name, prompt) != prompt:
            raise InvalidInput(f"{where} gives {display_path(Path(name))} a second prompt: keep one line for it")
    return found


def read_sidecar(image: Path) -> str | None:
    """Return the text of NAME.txt beside NAME.png; None if it does not exist or is empty.

    Raises:
        InvalidInput: the file cannot be read, is too long or is not UTF-8 text.
    """
    path = image.with_suffix(".txt")
    where = f"the prompt beside it, {display_path(Path(path.name))},"
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise InvalidInput(f"{where} is not a regular file")
        _check_size(info.st_size, where)
        return clean_prompt(path.read_text("utf-8-sig"), where)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where} is not UTF-8 text") from error
    except OSError as error:
        raise InvalidInput(f"{where} cannot be read: {error.strerror}") from error


def clean_prompt(prompt: str, where: str) -> str | None:
    """Return the prompt without white space around it, None if it is empty. Raises InvalidInput if it is not text."""
    try:
        _check_size(len(prompt.encode("utf-8")), where)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{where} is not UTF-8 text") from error
    if "\0" in prompt:
        raise InvalidInput(f"{where} is not text: it contains zero bytes")
    return prompt.strip() or None


def _check_size(size: int, where: str) -> None:
    if size > MAX_BYTES:
        raise InvalidInput(f"{where} has {size} bytes, over the limit of {MAX_BYTES}: a prompt is a sentence or two")
