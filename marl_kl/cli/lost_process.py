"""What the runtime of several processes writes when one is lost, pages of it before it ends this one too, as one line.

`redirect` sends standard error through a process that runs this file, and outlives this one: it copies lines until those
of the runtime begin; from then on there is one message, or our own.
"""

import os
import re
import subprocess
import sys

_OF_RUNTIME = re.compile(r"[WEF]\d{4} .*(coordination_service|preemption_sync_manager|distributed service)")
_OWN = "marl-kl: "


def redirect(message: str) -> None:
    """Of the process from here on; `message` is what it says of a lost process."""
    reading, writing = os.pipe()
    # a session of its own: Ctrl-C is for the process whose messages it copies
    subprocess.Popen([sys.executable, __file__, message], stdin=reading, start_new_session=True)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)


def copy(lines, out, message: str) -> None:
    """The text `lines` to the file `out`, see above."""
    is_lost = is_told = False
    for line in lines:
        is_lost = is_lost or _OF_RUNTIME.match(line) is not None
        is_own = line.startswith(_OWN)
        is_told = is_told or is_own
        if is_own or not is_lost:
            out.write(line)
            out.flush()
    if is_lost and not is_told:
        print(f"{_OWN}{message}", file=out)


if __name__ == "__main__":
    copy(sys.stdin, sys.stderr, sys.argv[1])
