"""Where a checkpoint is: a local directory, or a Hugging Face id in the local cache or on the hub.

Owns the choice and the words for what can go wrong; huggingface_hub owns the cache, the environment
variables (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT, ...) and the transfer. Invariant: returns
an existing directory or raises `CheckpointError`.
"""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from janus_core.errors import CheckpointError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_checkpoint(model: str, *, revision: str | None = None) -> Path:
    """The directory of `model`; downloads it if it is a hub id that is not in the cache.

    An existing directory wins over a hub id of the same spelling. Raises `CheckpointError`.
    """
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path
    if model and path.exists():
        raise CheckpointError(f"{model} is a file; give the directory that holds config.json.")
    if not _HUB_ID.fullmatch(model) or model.startswith("."):
        raise CheckpointError(
            f"There is no directory {model!r}, and it is not a Hugging Face id such as "
            "deepseek-community/Janus-Pro-1B."
        )
    # Safetensors where there are any: Janus-Pro's original repositories have only .bin files.
    directory = _download(model, revision, "*.safetensors")
    if not any(directory.glob("*.safetensors")):
        directory = _download(model, revision, "*.bin")
    return directory


def _download(model: str, revision: str | None, weights: str) -> Path:
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=["*.json", weights]))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{model} is not in the local cache and the hub cannot be reached. Go online (or unset "
            f"HF_HUB_OFFLINE) and run `janus pull {model}`, or give a local directory."
        ) from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{model} is gated: accept its terms on its page and set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{model} has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no checkpoint {model} on the hub, or it is private and needs HF_TOKEN."
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{model!r} is not a valid Hugging Face id.") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"Downloading {model} failed: {reason}") from error
