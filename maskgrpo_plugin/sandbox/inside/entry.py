"""Where a sandbox's process starts: jail itself where it is asked to, then supervise."""

import json
import os
import sys

from .confinement import die_with_parent
from .supervisor import supervise

CANNOT_ISOLATE = 97


def main(options: str) -> None:
    """Run the tests that arrive on standard input.

    Args:
        options: JSON. `jail`: whether to enter namespaces of our own first, with `folders` (shown read-only) and
            `tmp_mb`; `mount_tmp`: whether to replace the /tmp of a jail that is there; `isolated`: whether the process
            is in a jail by then; `uid`: who runs programs where we are root.

    Exits with `CANNOT_ISOLATE` and the reason on standard error where the kernel denies the jail.
    """
    given = json.loads(options)
    uid = given["uid"]
    die_with_parent()
    if given["jail"]:
        from .namespaces import enter

        try:
            uid = enter(given["folders"], given["tmp_mb"])
        except OSError as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            os._exit(CANNOT_ISOLATE)
    if given.get("mount_tmp"):
        from .namespaces import mount_scratch

        try:
            mount_scratch(given["tmp_mb"])
        except OSError:
            pass  # the jail's own /tmp stays, of the same size
    supervise(uid=uid, isolated=given["isolated"])
    os._exit(0)
