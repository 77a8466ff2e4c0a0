"""Resolve the key of an AWS profile that is a process, a role, single sign-on or a web identity.

botocore's own resolver finds it, as it does for every AWS tool, in a process of its own
(`python -m sosfs.config.aws_profiles PROFILE`): its import and its requests have no place in one that is about to
fork. It never asks the metadata service of a virtual machine or a container, also where a role's
`credential_source` names it.

Blocks; no state.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime

from sosfs.config.credentials import CredentialError, Credentials, Surroundings

SECONDS = 60.0  # for a process of the user's, a sign-on service, a second factor typed at the terminal
# Of a profile: what comes before a plain pair, and what comes after it (botocore.credentials).
BEFORE = ("role_arn", "web_identity_token_file", "sso_session", "sso_start_url")
AFTER = ("credential_process",)
METADATA = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


def is_for(values: Mapping[str, str]) -> bool:
    """Whether the lines of a profile name a key that only the resolver can find."""
    has_pair = bool(values.get("aws_access_key_id") and values.get("aws_secret_access_key"))
    return any(values.get(name) for name in BEFORE) or (not has_pair and any(values.get(name) for name in AFTER))


def resolve(around: Surroundings, profile: str, where: str) -> Credentials:
    """The key of a profile as it is now. Raises `CredentialError` in the resolver's words."""
    environment = {name: value for name, value in around.environ.items() if name not in METADATA}
    environment |= {"HOME": str(around.home), "AWS_EC2_METADATA_DISABLED": "true"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "sosfs.config.aws_profiles", profile]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS, check=False, text=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no key within {SECONDS:g} s"
        raise CredentialError(f"{where}: {reason}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it gave no key"]
        raise CredentialError(f"{where}: {lines[-1]}")
    told = json.loads(done.stdout)
    return Credentials(told["key"], told["secret"], told["token"], told["expires"] or math.inf)


def main(profile: str) -> int:
    """Prints the profile's key as JSON, or why there is none."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - not before the fork
    from botocore.session import Session  # noqa: PLC0415

    session = Session(profile=profile)
    try:
        resolver = session.get_component("credential_provider")
        for provider in ("env", "iam-role", "container-role", "boto-config"):
            resolver.remove(provider)
        found = resolver.load_credentials()
        frozen = found.get_frozen_credentials() if found else None
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    if frozen is None:
        print("it has no key", file=sys.stderr)
        return 1
    expires: datetime | None = getattr(found, "_expiry_time", None)
    told = {"key": frozen.access_key, "secret": frozen.secret_key, "token": frozen.token or ""}
    print(json.dumps(told | {"expires": expires.timestamp() if expires else None}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
