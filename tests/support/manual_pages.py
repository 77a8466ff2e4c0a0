"""Writes the man pages and the shell completion below `share/` from the parser and the pages. Run by `make docs`.

Man pages are Markdown here, which MyST reads and docutils writes as roff; completion is shtab's. None of the
three is needed to run sosfs, so what they make is kept in the tree and a test compares it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping

import docutils.core
import shtab
from docutils import nodes
from myst_parser.parsers.docutils_ import Parser

import sosfs
from sosfs.cli import main as program
from sosfs.cli import manual, mount_helper, usage
from sosfs.config import parameters, values
from sosfs.config.parameters import Group

HERE = manual.PAGES
SHARE = HERE / "share"

# The pages that are part of sosfs(1), in order; the others it names.
CHAPTERS = (
    *("exit-codes", "keys", "proxies", "certificates", "caches", "attributes", "control-files", "encryption"),
    *("limits", "troubleshooting"),
)
DIRECTORIES = frozenset({"DIR", "DIRECTORY", "MOUNTPOINT", "[BUCKET[/PREFIX]]"})  # the last: where all are mounted
FILES = frozenset({"FILE", "PATH"})


def made() -> Mapping[str, str]:
    """All files by their path below `share/`."""
    parser = program.command_line()
    _complete(parser)
    return {
        "man/man1/sosfs.1": roff("sosfs", 1, usage.PROGRAM, _sosfs()),
        "man/man8/mount.sosfs.8": roff("mount.sosfs", 8, "Mounts a bucket for mount(8) and fstab(5).", _mount_sosfs()),
        "man/man5/sosfs.toml.5": roff("sosfs.toml", 5, "Settings of mounts.", _sosfs_toml()),
        "bash-completion/completions/sosfs": shtab.complete(parser, "bash"),
        "zsh/site-functions/_sosfs": shtab.complete(parser, "zsh"),
        "fish/vendor_completions.d/sosfs.fish": shtab.complete(parser, "fish"),
    }


def roff(name: str, section: int, summary: str, markdown: str) -> str:
    """A man page of Markdown whose sections are headings of the second level."""
    settings = {"myst_enable_extensions": ["deflist"], "output_encoding": "unicode", "halt_level": 2}  # 2: warnings
    document = docutils.core.publish_doctree(f"# {name}\n\n{markdown}", parser=Parser(), settings_overrides=settings)
    document.insert(1, nodes.subtitle("", f"{summary[0].lower()}{summary[1:].rstrip('.')}"))
    info = nodes.docinfo()
    for field, value in (("manual section", str(section)), ("version", f"sosfs {sosfs.__version__}")):
        body = nodes.field_body("", nodes.paragraph("", value))
        info += nodes.field("", nodes.field_name("", field), body)
    document.insert(2, info)
    text: str = docutils.core.publish_from_doctree(document, writer="manpage", settings_overrides=settings)
    head, title, body_text = text.partition(".SH Name\n")
    assert title
    # Flush left and without hyphens: narrow columns of tables cannot be adjusted, and options stay whole.
    return f"{head}.ad l\n.nh\n.SH NAME\n{body_text}".replace("\n.TE\n", "\n.TE\n.sp\n")


# What stands in the three


def _sosfs() -> str:
    others = ", ".join(topic for topic in manual.topics() if topic not in CHAPTERS)
    parts = [
        "## SYNOPSIS\n\n```",
        *(f"sosfs {name} {each.arguments}" for name, each in usage.USAGES.items() if name != "acl"),
        "sosfs --version\n```\n",
        f"## DESCRIPTION\n\n{usage.PROGRAM} A directory is a prefix of keys and a file is an object, byte for byte.\n",
        "## COMMANDS\n",
        *_commands(program.command_line()),
        *map(_chapter, CHAPTERS),
        f"## MORE\n\n`sosfs help TOPIC` shows these pages in full, and those on: {others}.\n",
        "## SEE ALSO\n\nmount.sosfs(8), sosfs.toml(5), mount(8), fstab(5), getfattr(1)\n",
    ]
    return "\n".join(parts)


def _mount_sosfs() -> str:
    parts = [
        "## SYNOPSIS\n\n`mount -t sosfs BUCKET[/PREFIX] MOUNTPOINT [-o OPTIONS]`\n",
        "## DESCRIPTION\n\nmount(8) calls `mount.sosfs` for a file system of type `sosfs`. All buckets of the account "
        "are `sos://`. umount(8) calls `umount.fuse.sosfs`, which waits until every change is in the bucket.\n",
        _chapter("boot"),
        "## OPTIONS\n\nWith commas between them. What is true of every mount, such as `ro`, `noexec`, `_netdev`, "
        "`nofail`, `user` or `x-systemd.automount`, is taken as well.\n",
        *_options(lambda name: name if _is_flag(name) else f"{name}={parameters.TABLE[name].kind.metavar}"),
        "## EXIT STATUS\n",
        *(f"{code}\n: {meaning}\n" for code, meaning in mount_helper.EXITS.items()),
        "## SEE ALSO\n\nsosfs(1), sosfs.toml(5), mount(8), fstab(5)\n",
    ]
    return "\n".join(parts)


def _sosfs_toml() -> str:
    parts = [
        "## SYNOPSIS\n\n```\n~/.config/sosfs/sosfs.toml\n/etc/sosfs.toml\n```\n",
        "## DESCRIPTION\n",
        manual.page("options").partition("\n")[2].partition("\n## ")[0],
        "## OPTIONS\n",
        *_options(lambda name: f"{name} = {'true|false' if _is_flag(name) else parameters.TABLE[name].kind.metavar}"),
        "## SEE ALSO\n\nsosfs(1), mount.sosfs(8)\n",
    ]
    return "\n".join(parts)


def _is_flag(name: str) -> bool:
    return parameters.TABLE[name].kind is values.FLAG


def _options(written: object) -> Iterator[str]:
    assert callable(written)
    for group in Group:
        yield f"### {group.value.capitalize()}\n"
        for name, parameter in parameters.TABLE.items():
            if parameter.group is group:
                yield f"`{written(name)}`\n: {parameter.help} Default: {parameters.default_of(name)}.\n"


def _commands(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[str]:
    """What `--help` of each command shows, as sections."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                full = f"{prefix}{name}"
                if full in usage.USAGES:
                    yield from _command(full, command)
                    yield from _commands(command, f"{full} ")


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"### sosfs {name}\n"
    yield f"`sosfs {name} {usage.USAGES[name].arguments}`\n"
    yield f"{usage.USAGES[name].description}\n"
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.help and not isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            takes = "" if action.nargs == 0 else f" {formatter._format_args(action, action.dest)}"
            written = [f"`{flag}{takes}`" for flag in action.option_strings] or [f"`{action.metavar}`"]
            yield f"{', '.join(written)}\n: {formatter._expand_help(action)}\n"
    yield f"```\n{usage.USAGES[name].epilog}\n```\n"


def _chapter(topic: str) -> str:
    """A page as a section: its headings a level lower, its links to other pages as what to type."""
    lines, is_code = [], False
    text = manual.page(topic).replace(usage.commands_table(), "")  # each command has its own section
    for line in text.splitlines():
        is_fence = line.startswith("```")
        lines.append(line if is_code or is_fence else _lowered(line))
        is_code ^= is_fence
    return "\n".join([*lines, ""])


def _lowered(line: str) -> str:
    line = re.sub(r"\[[^\]]+\]\(([\w-]+)\.md\)", r"`sosfs help \1`", line)
    line = re.sub(r"^(#+) ", r"#\1 ", line)
    return line.upper() if line.startswith("## ") else line


# Completion


def _complete(parser: argparse.ArgumentParser) -> None:
    """Lets shtab know which words and paths the arguments may be."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete(command)
        elif words := _words(action):
            action.choices = words
        elif action.metavar in DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _words(action: argparse.Action) -> list[str]:
    if action.dest == "topic":
        return manual.topics()
    if action.metavar == "ACL":
        return list(parameters.TABLE["acl"].kind.words)
    return list(parameters.TABLE[action.dest].kind.words) if action.dest in parameters.TABLE else []


if __name__ == "__main__":
    for name, text in made().items():
        path = SHARE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
