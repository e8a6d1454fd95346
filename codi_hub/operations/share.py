"""Adapters to and from a hub, or a folder below an URL."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from codi_hub.config.share import InstallOptions, PullOptions, PushOptions
from codi_hub.errors import InvalidInput, NotFound, UsageError, one_line, prefixed
from codi_hub.events import Message, OnEvent
from codi_hub.filesystems import shown
from codi_hub.images.io import decode_image, names_image, open_image
from codi_hub.interop import hf_hub, hub_card, stores
from codi_hub.interop.licence import Licence, licence_of
from codi_hub.interop.package import CARD, WEIGHTS, Source
from codi_hub.operations.context import Context
from codi_hub.operations.export import own_files
from codi_hub.operations.install import arrive
from codi_hub.paths import display_path
from codi_hub.record import RECORD, read_record
from codi_hub.reports import InstallResult, PushResult

MAX_EXAMPLES = 8
EXAMPLE_SIDE = 768  # px
URL = "://"


def pull(context: Context, where: str, options: PullOptions) -> InstallResult:
    """Register an adapter of a hub or below an URL; see `Hub.pull`."""
    install = InstallOptions(**{name: getattr(options, name) for name in InstallOptions.model_fields})

    def source_in(scratch: Path) -> Source:
        if URL in where:
            return stores.UrlFolder(where, scratch)
        repo, at, revision = where.partition("@")
        if at and not revision:
            raise UsageError(f"{one_line(where, 80)!r}: name a revision after the @, or leave it out")
        return hf_hub.Repository(_repository(repo), revision or None)

    return arrive(context, source_in, install, dry_run=options.dry_run)


def push(context: Context, ref: str, where: str, options: PushOptions, on_event: OnEvent) -> PushResult:
    """Write an adapter to a hub or below an URL; see `Hub.push`."""
    if URL in where:
        if options.private:
            raise UsageError(f"private: only a hub's repository can be private, not {shown(where)}")
    else:
        _repository(where)
    images = _examples(options.examples) if options.examples else {}
    row = context.resolve(ref, options.base, on_event=on_event)
    base = licence_of(context.catalog.registry.bases.get(row.base))
    _tell(base, row.base, on_event)
    own = own_files(context, row)
    record = read_record(context.catalog.registry.adapters.file(row, RECORD))
    card = own[CARD] if isinstance(own[CARD], str) else Path(own[CARD]).read_text(encoding="utf-8")
    name = shown(where)
    text = hub_card.hub_card(str(card), record, base, options.licence, where=name, examples=[*images])
    files: dict[str, Path | bytes] = {WEIGHTS: Path(own[WEIGHTS]), RECORD: str(own[RECORD]).encode()}
    files |= {CARD: text.encode()} | images
    url, written = name, not options.dry_run
    if written and URL in where:
        written = stores.push(where, files)
    elif written:
        url = hf_hub.push(where, files, record, private=options.private, message=f"{row.ref} of CoDi Hub")
    return PushResult(
        adapter=row.ref,
        base=row.base,
        destination=name,
        url=url,
        files={path: len(one) if isinstance(one, bytes) else one.stat().st_size for path, one in files.items()},
        licence=options.licence or base.label,
        base_licence=base.label,
        gated=base.gated,
        non_commercial=base.non_commercial,
        written=written,
    )


def _repository(name: str) -> str:
    if not hf_hub.REPOSITORY.fullmatch(name):
        raise UsageError(f"{one_line(name, 80)!r} is neither OWNER/NAME of the hub nor an URL such as s3://bucket/name")
    return name


def _tell(base: Licence, name: str, on_event: OnEvent) -> None:
    """Say, before anything is uploaded, what the licence of the base means for it."""
    if not base.known:
        on_event(Message(f"The licence of base {name} is not known: the card says so."))
    if base.gated:
        on_event(Message(f"Base {name} is gated on the hub: its terms bind those who use the adapter."))
    if base.non_commercial:
        on_event(Message(f"Base {name} excludes commercial use ({base.label}), and so does the adapter."))


def _examples(folder: Path) -> dict[str, bytes]:
    """Return the first images of a folder by their path beside the card: small, and without metadata.

    Raises:
        NotFound: no folder, or no image in it. InvalidInput: an image that cannot be read.
    """
    if not folder.is_dir():
        raise NotFound(f"examples {display_path(folder)}: no such folder")
    found: Sequence[Path] = sorted(path for path in folder.iterdir() if path.is_file() and names_image(path))
    if not found:
        raise InvalidInput(f"examples {display_path(folder)}: no image in it")
    images = {}
    for number, path in enumerate(found[:MAX_EXAMPLES], 1):
        with prefixed(f"examples {display_path(path)}"):
            image = decode_image(open_image(path)).on_white()
        assert isinstance(image, Image.Image)
        image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=90)
        images[f"{hf_hub.EXAMPLES}{number}.jpg"] = content.getvalue()
    return images
