"""Where a checkpoint's files are: a local folder, or a repository of the Hugging Face hub and its local cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

_EXTRA = "pip install 'tilewright[transformers]'"


class Source(Protocol):
    """Finds the files of one checkpoint."""

    name: str

    def find(self, *filenames: str) -> Path | None:
        """The first of ``filenames`` that exists, else None; ``FileNotFoundError`` where that cannot be known."""


class LocalFolder:
    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)

    def find(self, *filenames: str) -> Path | None:
        return next((self.folder / name for name in filenames if (self.folder / name).is_file()), None)


class HubRepository:
    """A repository by name: files come from the local cache, else over the network."""

    def __init__(self, name: str) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.errors  # a submodule that the package does not import by itself
        except ImportError as error:
            raise ImportError(
                f"{name!r} is not a local folder, and looking in the Hugging Face hub needs huggingface_hub: {_EXTRA}"
            ) from error
        self.name, self._hub = name, huggingface_hub

    def find(self, *filenames: str) -> Path | None:
        errors = self._hub.errors
        try:
            for filename in filenames:
                try:
                    return Path(self._hub.hf_hub_download(self.name, filename, local_files_only=True))
                except errors.LocalEntryNotFoundError:
                    continue
            for filename in filenames:
                try:
                    return Path(self._hub.hf_hub_download(self.name, filename))
                except errors.LocalEntryNotFoundError:
                    raise  # the network could not be asked; a subclass of EntryNotFoundError, which is an answer
                except errors.EntryNotFoundError:
                    continue
            return None
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            wanted = " or ".join(filenames)
            reason = f"its {wanted} is not in the local cache, and the hub cannot be reached ({_first_line(error)})"
        except errors.GatedRepoError as error:
            reason = f"the repository is gated: accept its terms and log in ({_first_line(error)})"
        except errors.RepositoryNotFoundError as error:
            reason = f"the hub knows no such repository, or it is private ({_first_line(error)})"
        except errors.HFValidationError as error:
            reason = f"it is not a repository name either ({_first_line(error)})"
        raise FileNotFoundError(_not_found(self.name, reason))


def open_source(name_or_folder: str | Path) -> Source:
    """A local folder where there is one of that name, else a repository of the hub."""
    path = Path(name_or_folder).expanduser()
    if path.is_dir():
        return LocalFolder(path)
    if path.exists():
        raise NotADirectoryError(f"{path} is a file; give the folder that holds config.json and model.safetensors")
    name = str(name_or_folder)
    if (
        isinstance(name_or_folder, Path)
        or path.is_absolute()
        or name.startswith((".", "~"))
        or name.count("/") > 1
        or os.sep * 2 in name
    ):
        raise FileNotFoundError(_not_found(name, "there is no such folder"))
    return HubRepository(name)


def _not_found(name: str, reason: str) -> str:
    return (
        f"{name!r}: {reason}. Two ways to load a checkpoint: (1) give a local folder that holds config.json and "
        f"model.safetensors; (2) give the name of a hub repository such as 'gpt2', with network access, or after "
        f"`hf download NAME` (formerly `huggingface-cli download NAME`) has put it into the Hugging Face cache"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
