"""First boot: the frozen user data of a host.

Invariant: a byte of user data that changes stops and starts an instance. So the script is a file
with a recorded hash, it names no version of our software, and what varies is set in front of it,
quoted."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from kalshi_infra.errors import SettingsError
from kalshi_infra.site import Site

SCRIPT_PATH = Path(__file__).with_name("firstboot.sh")
SCRIPT_SHA256 = "186b713b3327b8e38078cf6b167006ffc34d383330890d8ef382a994c9827cb1"
USER_DATA_BYTES_MAX = 16_384  # EC2 refuses more, before base64


def user_data(host: str, role: str, site: Site) -> str:
    """The script with the values of one host in front.

    Raises SettingsError if the file is not the frozen one.
    """
    script = SCRIPT_PATH.read_bytes()
    seen = hashlib.sha256(script).hexdigest()
    if seen != SCRIPT_SHA256:
        raise SettingsError(
            [
                f"firstboot.sh has SHA-256 {seen}, frozen is {SCRIPT_SHA256}",
                "a change stops and starts every host: record the new hash only if that is meant",
            ]
        )
    shebang, body = script.decode("utf-8").split("\n", 1)
    values = {
        "HOST_NAME": host,
        "HOST_ROLE": role,
        "DEPLOY_SSH_KEY": site.deploy_ssh_key,
        "NIX_PUBLIC_KEY": site.nix_public_key,
    }
    settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
    text = f"{shebang}\n{settings}{body}"
    assert len(text.encode()) <= USER_DATA_BYTES_MAX
    return text
