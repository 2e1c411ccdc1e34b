"""The CDK app: `cdk synth`, `cdk deploy --all` and `cdk diff` run this file; `python app.py` alone
synthesizes too.

Values of the account come from site.toml beside it, or from `-c name=value` (kalshi_infra/site.py).
"""

from __future__ import annotations

import sys

from kalshi_infra import site, topology
from kalshi_infra.build import build, new_app
from kalshi_infra.errors import SettingsError


def main() -> int:
    """Synthesizes into the directory that the CLI names, else into cdk.out.

    Returns the exit code.
    """
    app = new_app()
    names = (*site.Site.__dataclass_fields__, *site.Options.__dataclass_fields__, "site")
    given = {name: app.node.try_get_context(name) for name in names}
    try:
        chosen = site.load({name: str(value) for name, value in given.items() if value is not None})
        build(app, topology.load(profile=chosen.options.profile), chosen)
    except SettingsError as error:
        print(f"cannot synthesize:\n{error}", file=sys.stderr)
        return 2
    app.synth()
    return 0


if __name__ == "__main__":
    sys.exit(main())
