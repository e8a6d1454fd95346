"""Adapters on the Hugging Face Hub, through the hub's own client, which reads HF_TOKEN, HF_ENDPOINT and the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.backbones.weights import PICKLES
from codi_hub.errors import CodiError, Conflict, InvalidInput, NotFound, one_line
from codi_hub.interop.package import CARD, LIMITS, WEIGHTS, check_size
from codi_hub.record import RECORD, AdapterRecord, read_record
from codi_hub.registry.store import sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # OWNER/NAME
EXAMPLES = "examples/"
GENERATED = ".gitattributes"  # which the hub puts into a new repository
Content = Path | bytes


class Repository:
    """The files of an adapter in a model repository.

    They are downloaded into the client's cache, at one commit. Without the network (HF_HUB_OFFLINE) they are taken from
    there.

    Raises:
        NotFound, InvalidInput, CodiError: it cannot be read, or is not an adapter's.
    """

    def __init__(self, repo: str, revision: str | None = None) -> None:
        from huggingface_hub import HfApi, constants

        self.name = f"{repo}@{revision}" if revision else repo
        self._repo, self._revision, self._api = repo, revision, HfApi()
        self._files: dict[str, Any] = {}
        if not constants.HF_HUB_OFFLINE:
            with hub_errors(self.name):
                info = self._api.model_info(repo, revision=revision, files_metadata=True)
            self._files = {one.rfilename: one for one in info.siblings or []}
            check_listing(self._files, self.name)

    def fetch(self, name: str) -> Path:
        entry = self._files.get(name)
        if entry and name in LIMITS and (entry.size or 0) > LIMITS[name]:
            raise InvalidInput(f"{self.name}: {name} has {entry.size} bytes, which no such file of an adapter has")
        path = self._download(name)
        stored = entry.lfs.sha256 if entry and entry.lfs else None
        if stored and sha256(path) != stored:  # damaged in the cache
            path = self._download(name, force_download=True)
        return check_size(path)

    def _download(self, name: str, **options: Any) -> Path:
        with hub_errors(self.name):
            path = Path(self._api.hf_hub_download(self._repo, name, revision=self._revision, **options))
        self._revision = path.parent.name  # the commit: the other files are of the same one
        return path


def check_listing(names: Mapping[str, Any], where: str) -> None:
    """Check that the files of a repository are an adapter's. Raises InvalidInput."""
    if WEIGHTS not in names and any(name.endswith(PICKLES) for name in names):
        raise InvalidInput(f"{where} has only pickles, which can run code: ask its owner for safetensors")
    if missing := next((name for name in (RECORD, WEIGHTS, CARD) if name not in names), None):
        raise InvalidInput(f"{where} is not an adapter of CoDi Hub: it has no {missing}")


def push(repo: str, files: Mapping[str, Content], record: AdapterRecord, *, private: bool, message: str) -> str:
    """Write files into a model repository as one commit, and create it if there is none.

    The files appear together or not at all. What the hub has already is not uploaded again.

    Returns:
        the URL of the commit.

    Raises:
        Conflict: the repository has something else, or is public where private was asked for.
        CodiError: the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    existing = _existing(api, repo)
    stale: set[str] = set()
    if existing:
        names = {one.rfilename for one in existing.siblings or []}
        _check_ours(api, repo, existing, names - {GENERATED}, record, private)
        stale = {name for name in names if name.startswith(EXAMPLES)} - files.keys()
    with hub_errors(repo):
        if existing is None:
            api.create_repo(repo, private=private or None)
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo,
            [*added, *(CommitOperationDelete(name) for name in sorted(stale))],
            commit_message=message,
            parent_commit=existing.sha if existing else None,
        )
    return str(commit.commit_url)


def _existing(api: HfApi, repo: str) -> Any:
    """Return what the hub says of a repository; None where there is none."""
    try:
        return api.model_info(repo)
    except Exception as error:
        if _status(error) == 404:
            return None
        raise hub_error(error, repo) from error


def _check_ours(api: HfApi, repo: str, info: Any, names: set[str], record: AdapterRecord, private: bool) -> None:
    """Raise Conflict unless a repository is empty, or has an adapter of the same task for the same base."""
    if private and not info.private:
        raise Conflict(f"{repo} exists and is public: make it private on the hub, or choose another name")
    if not names:
        return
    if RECORD not in names:
        raise Conflict(f"{repo} exists and is not an adapter of CoDi Hub: choose another name")
    with hub_errors(repo):
        path = Path(api.hf_hub_download(repo, RECORD, revision=info.sha))
    there = read_record(path)
    if (there.task, there.base.family) != (record.task, record.base.family):
        what = f"the task {one_line(there.task, 40)} on the base {one_line(there.base.name, 40)}"
        raise Conflict(f"{repo} exists with an adapter for {what}: choose another name")


# ---- errors

LATER = "try again later: what has arrived is kept"
REASONS: dict[int, tuple[type[CodiError], str]] = {
    401: (CodiError, "the hub accepts no token, or not this one: set HF_TOKEN, or log in with `hf auth login`"),
    403: (CodiError, "the token is not allowed to do that: use one that is, or accept the repository's terms"),
    404: (NotFound, "there is no such repository or revision, or it is private and the token cannot see it"),
    409: (Conflict, "the name is taken, or another change is in progress: choose another name, or try again"),
    412: (Conflict, "the repository has changed meanwhile: try again"),
    429: (CodiError, "the hub has had too many requests: try again later"),
}


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn whatever the client raises into a CodiError of one line."""
    try:
        yield
    except CodiError:
        raise
    except Exception as error:  # the client raises a dozen unrelated kinds
        raise hub_error(error, repo) from error


def hub_error(error: BaseException, repo: str) -> CodiError:
    """Return the error of a hub's client as one line with a remedy."""
    status, names = _status(error), {type(one).__name__ for one in _chain(error)}
    if "LocalEntryNotFoundError" in names and status is None:
        return NotFound(f"{repo}: not in the cache, and the hub cannot be reached: connect, or unset HF_HUB_OFFLINE")
    if "OfflineModeIsEnabled" in names:
        return CodiError(f"{repo}: the hub is not asked while HF_HUB_OFFLINE is set: unset it")
    if "EntryNotFoundError" in names or "RemoteEntryNotFoundError" in names:
        return InvalidInput(f"{repo} is not an adapter of CoDi Hub: it lacks a file")
    if status in REASONS:
        kind, reason = REASONS[status]
        return kind(f"{repo}: {reason} ({status})")
    if status is not None and status >= 500:
        return CodiError(f"{repo}: the hub failed ({status}): {LATER}")
    said = one_line(next((str(one) for one in reversed([*_chain(error)]) if str(one)), type(error).__name__), 160)
    return CodiError(f"{repo}: {f'refused ({status})' if status else 'the hub cannot be reached'} ({said}): {LATER}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an error or what caused it."""
    for one in _chain(error):
        if isinstance(status := getattr(getattr(one, "response", None), "status_code", None), int):
            return status
    return None
