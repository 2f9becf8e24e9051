"""A finished run's model on the Hub (train.push); whether it may go there is asked before anything is computed.

What goes up is what `from_pretrained` opens, and README.md. recipe.yaml and run.json stay here, since they hold this
machine's directories, its name and the command line, and so do predictions, which hold rows of the data, logs and
checkpoints.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

from hfkit.errors import StorageError, UsageError, did_you_mean
from hfkit.system import console, network

if TYPE_CHECKING:
    from hfkit.settings import Recipe

FILES = [
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
    *("model-*-of-*.safetensors", "adapter_config.json", "adapter_model.safetensors", "model_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.spm", "chat_template.jinja", "README.md"),
]

ASK_SECONDS, UPLOAD_SECONDS = 30.0, 300.0  # without a word from the Hub


class NotUploadedError(StorageError):
    """The run is finished and its results, as `train` returns them, are in `outcome`; the upload failed."""

    outcome: dict[str, Any]


def require_access(recipe: Recipe) -> None:
    """Says where the model will go and who will see it; UsageError if it can't go there."""
    network.no_telemetry()
    import httpx2
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    name = str(recipe.train.push)
    if recipe.lora.enabled and network.is_local(str(recipe.model.name)):
        fix = "leave --push out, and afterwards `hfkit export RUN --merge` for a model that needs no other"
        raise UsageError(f"--push {name}: the adapter would name its model by a directory of this machine", fix)
    if constants.is_offline_mode():
        raise UsageError(f"--push {name}: this process is offline", "set HF_HUB_OFFLINE=0, or leave --push out")
    if get_token() is None:
        raise UsageError(f"--push {name}: no access token for {network.host()}", "`hf auth login`, or set HF_TOKEN")
    try:
        with network.time_limit(ASK_SECONDS):
            _require_right(HfApi().whoami(), name)
            found = _visibility(name)
    except (httpx2.TransportError, HfHubHTTPError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
            message = f"--push {name}: {network.host()} refused the access token"
            raise UsageError(message, "`hf auth login` with a valid one") from error
        message = f"--push {name}: {network.host()} can't be asked: {_first_line(error)}"
        raise StorageError(message, "try again later, or leave --push out") from error
    what = {None: "a new repository, private", "public": "it is there and public: everyone will see the model"}
    console.say(f"push: when finished, to {name} on {network.host()} ({what.get(found, 'it is there and private')})")


def _require_right(account: dict[str, Any], name: str) -> None:
    token = account.get("auth", {}).get("accessToken", {})
    scopes = token.get("fineGrained", {}).get("scoped", [])
    rights = {right for scope in scopes for right in scope.get("permissions", [])}
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and "repo.write" not in rights):
        fix = f"`hf auth login` with one that may write, from {network.host()}/settings/tokens"
        raise UsageError(f"--push {name}: the access token of {account['name']} may not write", fix)
    owners = [account["name"], *(organization["name"] for organization in account.get("orgs", []))]
    owner, _, rest = name.partition("/")
    if owner.lower() not in map(str.lower, owners):
        fix = did_you_mean(owner, owners) or f"--push {account['name']}/{rest}"
        raise UsageError(f"--push {name}: {account['name']} may not write to {owner}, but to {', '.join(owners)}", fix)


def _visibility(name: str) -> str | None:
    """public or private; None where there is no such repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return "private" if HfApi().model_info(name).private else "public"
    except RepositoryNotFoundError:
        return None


def upload(recipe: Recipe, command: str, outcome: dict[str, Any]) -> None:
    """Uploads the finished run's model and says who sees it; NotUploadedError where the Hub does not take it."""
    from huggingface_hub import HfApi

    name, directory = str(recipe.train.push), outcome["run"]
    console.say(f"uploading {directory} to {name} on {network.host()}")
    try:
        with network.time_limit(UPLOAD_SECONDS), network.progress_bars(sys.stderr.isatty()):
            HfApi().create_repo(name, private=True, exist_ok=True)
            visibility = _visibility(name)
            HfApi().upload_folder(
                repo_id=name, folder_path=directory, allow_patterns=FILES, commit_message="Upload model with hfkit"
            )
    except BaseException as error:
        place = shlex.quote(directory)
        again = f"hfkit {command} {place}/recipe.yaml --output-dir {place} --push {name} --resume auto"
        what = f"{directory} is finished and complete, but it was not uploaded to {name}"
        if not isinstance(error, Exception):  # a signal
            console.warn(what, again)
            raise
        failure = NotUploadedError(f"{what}: {_first_line(error)}", again)
        failure.outcome = outcome
        raise failure from error
    console.say(f"uploaded to {network.host()}/{name} ({visibility})")


def _first_line(error: BaseException) -> str:
    """What the Hub says, else what broke first."""
    from huggingface_hub.errors import HfHubHTTPError

    while not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    return said or str(error).strip().partition("\n")[0] or type(error).__name__
