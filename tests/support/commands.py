"""Commands in the pages of the documentation."""

import re
import shlex


def shell_commands(page: str) -> list[str]:
    """Return the commands of `asap` in the `sh` blocks of a page, each with one space between its words.

    Continued lines are joined. Comments and the name `asap` are left out.
    """
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    # A program in quotes may have several lines.
    quoted = re.compile(r"(?m)^python -c '\n.*?^'\n", re.DOTALL)
    lines = [line for block in blocks for line in quoted.sub("", block.replace("\\\n", " ")).splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [shlex.join(rest) for name, *rest in filter(None, words) if name == "asap"]
