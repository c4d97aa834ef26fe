# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a path to images is: a folder per class, or a list, an archive or a table of them.

==========================  ===================================================================
a folder per class          left to ``data``
``.csv .tsv .jsonl``        paths and labels, see ``tables``; as ``metadata.csv`` in a folder
                            it stands for the folder
``.tar``                    images and labels of webdataset, see ``archives``; a folder of them
``.parquet``                images and labels of ``datasets``, see ``parquet``; a folder of them
==========================  ===================================================================
"""

from pathlib import Path

from lmr_guard.errors import InputError
from lmr_guard.received.archives import read_shards
from lmr_guard.received.found import Found, parts_of
from lmr_guard.received.parquet import read_parquet
from lmr_guard.received.tables import ENDINGS, METADATA, read_list
from lmr_guard.untrusted import entries, require_path

__all__ = ["LAYOUT", "found_in"]

LAYOUT = "expected a folder that holds one folder of images for each class"
_TAR, _PARQUET = ".tar", ".parquet"


def found_in(place: Path) -> Found | None:
    """The images of a list, an archive or a table; None where folders say the classes.

    Args:
        place: Any path; what is no folder and is called like none of these is None too.

    Raises:
        InputError: It does not read; see the modules above.
        ConfigError: pyarrow is missing.
    """
    require_path(place, LAYOUT)
    if place.is_dir():
        return _in_folder(place)
    ending = place.suffix.lower()
    if ending in ENDINGS:
        return read_list(place)
    if ending == _TAR:
        return read_shards(parts_of(place, _TAR))
    if ending == _PARQUET:
        return read_parquet(parts_of(place, _PARQUET))
    return None


def _in_folder(root: Path) -> Found | None:
    held = [entry for entry in entries(root) if not entry.name.startswith(".")]
    names = {entry.name for entry in held}
    lists = [name for name in METADATA if name in names]
    if len(lists) > 1:
        raise InputError(
            f"expected one list beside the images, got {' and '.join(lists)} in {str(root)!r}; "
            "give the one that is meant"
        )
    if lists:
        return read_list(root / lists[0], labels_elsewhere=True)
    folders = [entry for entry in held if entry.is_dir()]
    # A data set of the hub has its files in one folder of this name.
    if [folder.name for folder in folders] == ["data"]:
        inside = [entry for entry in entries(folders[0]) if not entry.name.startswith(".")]
        if any(e.suffix.lower() == _PARQUET for e in inside):
            return read_parquet(parts_of(folders[0], _PARQUET))
    if folders:
        return None
    endings = {entry.suffix.lower() for entry in held}
    if _PARQUET in endings:
        return read_parquet(parts_of(root, _PARQUET))
    if _TAR in endings:
        return read_shards(parts_of(root, _TAR))
    if ".arrow" in endings:
        raise InputError(
            f"expected images in a folder for each class or in Parquet files, got Arrow files, as "
            f"save_to_disk writes them, in {str(root)!r}; write them with to_parquet"
        )
    return None
