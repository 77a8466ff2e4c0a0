"""What each command is for, in words: arguments, description, examples, exit codes.

`--help`, the table of commands in the pages and the man pages are made from it. No imports that take
long, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sosfs.log.escaping import printable

PROGRAM = "Mounts buckets of Exoscale Simple Object Storage, or of any S3 store, as a drive."


@dataclass(frozen=True)
class Usage:
    """The words of one command. `arguments` is what follows its name, `examples` are pairs of command and remark."""

    arguments: str
    help: str
    description: str
    exits: Mapping[int, str]
    examples: Sequence[tuple[str, str]] = field(default=())

    @property
    def epilog(self) -> str:
        """What `--help` shows below the options."""
        width = max((len(command) for command, _ in self.examples), default=0)
        lines = ["examples:", *(f"  {command:<{width}}  # {remark}" for command, remark in self.examples), ""]
        codes = ["exit codes:", *(f"  {code}  {meaning}" for code, meaning in self.exits.items())]
        return "\n".join([*(lines if self.examples else []), *codes])


USAGES: Mapping[str, Usage] = {
    "mount": Usage(
        "[BUCKET[/PREFIX]] MOUNTPOINT [options]",
        "mount a bucket, or all of them",
        "Mounts a bucket, or without one all buckets of the account, in the background or with -f in the foreground. "
        "Returns when the mount is ready.",
        {0: "the mount is ready; with -f: it has ended well", 1: "failed, one line says why", 2: "wrong usage"},
        (
            ("sosfs mount my-bucket ~/bucket", "a bucket"),
            ("sosfs mount my-bucket/photos ~/photos --read-only", "what is under a prefix"),
            ("sosfs mount ~/sos --zone ch-gva-2", "all buckets, each as a directory"),
            ("sosfs mount my-bucket ~/bucket --cache-size 20G", "with a cache on disk"),
        ),
    ),
    "umount": Usage(
        "MOUNTPOINT [--timeout SECONDS]",
        "unmount and wait until every change is in the bucket",
        "Unmounts and waits until every change is in the bucket, with a progress bar on a terminal.",
        {
            0: "every change is in the bucket",
            1: "not unmounted: busy, or nothing is mounted there",
            2: "wrong usage",
            3: "changes are or may be left, or something was damaged",
        },
        (
            ("sosfs umount ~/bucket", "wait as long as it takes"),
            ("sosfs umount ~/bucket --timeout 60", "wait a minute; the daemon goes on sending"),
        ),
    ),
    "status": Usage(
        "[PATH] [--watch] [--json]",
        "show what a mount is doing, or all of them",
        "Shows what the mount is doing that PATH is in; without PATH, all mounts of yours, a line each.",
        {0: "shown", 1: "nothing is mounted there, or a mount does not answer", 2: "wrong usage"},
        (
            ("sosfs status", "all mounts, a line each"),
            ("sosfs status ~/bucket", "one of them"),
            ("sosfs status ~/bucket --watch", "live, with rates"),
            ("sosfs status ~/bucket --json", "for programs"),
        ),
    ),
    "pending": Usage(
        "[PATH] [--json]",
        "list what is not in the bucket yet, and why",
        "Lists the changes at and below PATH that wait to go into the bucket: since when, how far they are, what the "
        "last try met and when the next one is. Without PATH, those of all mounts of yours.",
        {0: "listed", 1: "a mount does not answer", 2: "wrong usage"},
        (("sosfs pending ~/bucket/photos", "what of a directory waits"),),
    ),
    "retry": Usage(
        "PATH",
        "try now to bring what waits into the bucket",
        "Tries all changes at and below PATH now, and shows what still waits.",
        {0: "all is in the bucket", 1: "something still waits", 2: "wrong usage"},
        (("sosfs retry ~/bucket", "do not wait for the next try"),),
    ),
    "log": Usage(
        "MOUNTPOINT [--access FILE|off] [--level WORD]",
        "change what a running mount logs, or show it",
        "Changes what a running mount logs, and shows what it logs then. An access log has a line for each request of "
        "a program and each S3 request.",
        {0: "done", 1: "failed", 2: "wrong usage"},
        (
            ("sosfs log ~/bucket --access /tmp/access.log", "begin an access log"),
            ("sosfs log ~/bucket --access off --level debug", "end it, and log more"),
        ),
    ),
    "profile": Usage(
        "MOUNTPOINT [--seconds N] [--json]",
        "show which programs ask what of a mount, and what it costs",
        "Sums by operation and by process what is asked of a mount: live on a terminal, else at the end.",
        {0: "shown", 1: "failed", 2: "wrong usage"},
        (("sosfs profile ~/bucket --seconds 10", "who costs what, for ten seconds"),),
    ),
    "acl": Usage(
        "get|set ...",
        "show or change who may read and write files of a mount",
        "Shows or replaces the ACLs of files in a mount.",
        {0: "done", 1: "failed for one file or more", 2: "wrong usage"},
        (
            ("sosfs acl get -r ~/bucket/site", "a whole tree"),
            ("sosfs acl set public-read ~/bucket/page.html", "a file that everybody may read"),
        ),
    ),
    "acl get": Usage(
        "[-r] PATH...",
        "show the ACLs of files",
        "Shows the ACLs of files in a mount.",
        {0: "shown", 1: "one could not be read", 2: "wrong usage"},
        (
            ("sosfs acl get ~/bucket/page.html", "of one file"),
            ("sosfs acl get -r ~/bucket/site", "of all files below a directory"),
        ),
    ),
    "acl set": Usage(
        "[-r] ACL PATH...",
        "replace the ACLs of files",
        "Replaces the ACLs of files in a mount. ACL is a canned ACL such as public-read, or grants with commas between "
        "them, or - for standard input.",
        {0: "replaced", 1: "one was not changed", 2: "wrong usage"},
        (
            ("sosfs acl set -r public-read ~/bucket/site", "a whole tree"),
            ('sosfs acl set "all-users READ, user ID WRITE" ~/bucket/notes', "grants"),
            ("sosfs acl get a.txt | sosfs acl set - b.txt", "as another file has it"),
        ),
    ),
    "limit": Usage(
        "MOUNTPOINT [--upload-rate RATE] [--download-rate RATE] [--transfers N]",
        "change how fast a mount may be, while it goes on",
        "Changes limits of a mount from now on, for requests under way as well, and shows those that hold.",
        {0: "done", 1: "failed", 2: "wrong usage"},
        (
            ("sosfs limit ~/bucket --upload-rate 2M", "two megabytes a second"),
            ("sosfs limit ~/bucket --upload-rate 0", "no limit any more"),
        ),
    ),
    "clean": Usage(
        "[BUCKET] [--uploads | --shared-attributes] [-n]",
        "remove what mounts that are no more have left behind",
        "Removes cache directories of mounts that are no more, if nothing in them is owed to a bucket; with BUCKET "
        "only those of that one, and the unfinished uploads and scratch objects that its mounts have left there.",
        {0: "done", 1: "failed", 2: "wrong usage"},
        (
            ("sosfs clean -n", "what would be removed"),
            ("sosfs clean my-bucket --uploads", "unfinished uploads of anybody, asked first"),
            ("sosfs clean my-bucket --shared-attributes", "the index of attributes, and nothing else"),
        ),
    ),
    "restore": Usage(
        "[--at TIME] [-n] PATH...",
        "bring back deleted or changed files, on a bucket with versions",
        "Brings files and trees back: what is deleted, a changed file that is named itself, or with --at all as it was "
        "then. Files that have come since stay. Ctrl-C stops it; called again it goes on.",
        {0: "done", 1: "not all could be restored", 2: "wrong usage"},
        (
            ("sosfs restore ~/bucket/photos", "what was deleted"),
            ('sosfs restore -n --at "2 hours ago" ~/bucket/photos', "what would change"),
        ),
    ),
    "versions": Usage(
        "[--prune KEEP | --older AGE] [--yes] PATH...",
        "list the versions of files, or remove old ones",
        "Lists the versions of files, or removes old ones after asking; what is current always stays.",
        {0: "done", 1: "failed", 2: "wrong usage"},
        (
            ("sosfs versions ~/bucket/report.odt", "time, size and id of each"),
            ("sosfs versions --older 30d ~/bucket", "remove what was replaced so long ago"),
        ),
    ),
    "du": Usage(
        "[PATH...] [--json]",
        "sum up what files and trees take in the bucket, and what is billed",
        "Sums up sizes and counts at and below PATH (default: here) from listings alone, with old versions, delete "
        "markers and unfinished uploads apart, and what Exoscale SOS bills, at least 128 kB an object.",
        {0: "shown", 1: "failed", 2: "wrong usage"},
        (
            ("sosfs du ~/bucket", "the whole bucket"),
            ("sosfs du --json ~/bucket/photos ~/bucket/films", "for programs"),
        ),
    ),
    "link": Usage(
        "[--expires TIME] [--put | --public] [--virtual-host] PATH",
        "make a link by which others can download or upload a file",
        "Prints a link by which whoever has it can download the file for some time, or with --put upload one of that "
        "name. Making it sends nothing.",
        {0: "printed", 1: "failed", 2: "wrong usage"},
        (
            ("sosfs link --expires 15m ~/bucket/report.pdf", "to download"),
            ("sosfs link --put ~/bucket/inbox/scan.pdf", "to upload: curl -T scan.pdf LINK"),
            ("sosfs link --public ~/bucket/logo.png", "the plain URL, and who may read it"),
        ),
    ),
    "headers": Usage(
        "get|set|unset ...",
        "show or change headers of files, or of trees",
        "Shows, sets or removes the headers of files in a mount: Content-Type, Cache-Control, Content-Disposition, "
        "Content-Encoding, Content-Language, Expires.",
        {0: "done", 1: "failed for one file or more", 2: "wrong usage"},
        (
            ("sosfs headers set -r Cache-Control=max-age=3600 ~/bucket/site", "a whole tree"),
            ("sosfs headers set -r --guess ~/bucket/site", "Content-Type anew from the names"),
        ),
    ),
    "headers get": Usage(
        "[-r] NAME|--all PATH...",
        "show a header of files, or all",
        "Shows a header of files, or all of them; with -r of those files below a directory that have it.",
        {0: "shown", 1: "one could not be read, or has none", 2: "wrong usage"},
        (
            ("sosfs headers get --all ~/bucket/page.html", "of one file"),
            ("sosfs headers get -r Cache-Control ~/bucket/site", "find files by header"),
        ),
    ),
    "headers set": Usage(
        "[-r] NAME=VALUE|--guess PATH...",
        "set a header of files",
        "Sets a header of files, or with --guess the Content-Type that their names tell. Files that have it so "
        "already cost no write.",
        {0: "all files have it", 1: "one was not changed", 2: "wrong usage"},
        (
            ("sosfs headers set Content-Language=de ~/bucket/page.html", "of one file"),
            ("sosfs headers set -r --guess ~/bucket/site", "Content-Type of a tree"),
        ),
    ),
    "headers unset": Usage(
        "[-r] NAME PATH...",
        "remove a header of files",
        "Removes a header of files; Content-Type becomes what the name tells, for no object is without.",
        {0: "no file has it", 1: "one was not changed", 2: "wrong usage"},
        (("sosfs headers unset -r Expires ~/bucket/site", "a whole tree"),),
    ),
    "metadata": Usage(
        "get|set|unset ...",
        "show or change metadata of files, or of trees",
        "Shows, sets or removes the metadata (x-amz-meta-NAME) of files in a mount.",
        {0: "done", 1: "failed for one file or more", 2: "wrong usage"},
        (("sosfs metadata set -r project=apollo ~/bucket/plans", "a whole tree"),),
    ),
    "metadata get": Usage(
        "[-r] NAME|--all PATH...",
        "show metadata of files",
        "Shows an entry of the metadata of files, or all; with -r of those files below a directory that have it.",
        {0: "shown", 1: "one could not be read, or has none", 2: "wrong usage"},
        (
            ("sosfs metadata get --all ~/bucket/plan.pdf", "of one file"),
            ("sosfs metadata get -r project ~/bucket", "find files by it"),
        ),
    ),
    "metadata set": Usage(
        "[-r] NAME=VALUE PATH...",
        "set an entry of the metadata of files",
        "Sets an entry of the metadata of files. Files that have it so already cost no write.",
        {0: "all files have it", 1: "one was not changed", 2: "wrong usage"},
        (("sosfs metadata set project=apollo ~/bucket/plan.pdf", "of one file"),),
    ),
    "metadata unset": Usage(
        "[-r] NAME PATH...",
        "remove an entry of the metadata of files",
        "Removes an entry of the metadata of files.",
        {0: "no file has it", 1: "one was not changed", 2: "wrong usage"},
        (("sosfs metadata unset -r project ~/bucket/plans", "a whole tree"),),
    ),
    "warm": Usage(
        "PATH...",
        "fetch files and trees ahead, so that reading them is local",
        "Brings files of a mount into its caches: attributes, and with --cache-size their bytes. They stay there over "
        "a remount. Ctrl-C stops it; called again it goes on.",
        {0: "all of it is here", 1: "not all of it is", 2: "wrong usage"},
        (("sosfs warm ~/bucket/photos", "before you leave"),),
    ),
    "drop": Usage(
        "PATH...",
        "forget what is cached of files, so that the bucket is asked",
        "Forgets all that a mount and the kernel have cached of files, for instance after another program has changed "
        "the bucket. What is not in the bucket yet stays.",
        {0: "forgotten", 1: "failed", 2: "wrong usage"},
        (("sosfs drop ~/bucket/photos", "another program has just changed them"),),
    ),
    "bench": Usage(
        "DIRECTORY [--size SIZE] [--files N] [--threads N] [--json]",
        "measure how fast a mount is",
        "Measures a mount, or any directory to compare it with: large file, small files, latencies. Writes into a "
        "directory of its own, and removes it.",
        {0: "measured", 1: "failed", 2: "wrong usage"},
        (
            ("sosfs bench ~/bucket", "a mount"),
            ("sosfs bench /tmp --size 64M", "the local disk, to compare"),
        ),
    ),
    "doctor": Usage(
        "[BUCKET[/PREFIX] [MOUNTPOINT]] [options]",
        "check what a mount needs and show what was found where",
        "Checks what a mount needs: the machine and, with a bucket, the key's rights and the server. Writes nothing "
        "into the bucket but scratch keys, and removes them again.",
        {0: "a mount can work", 1: "a mount cannot work", 2: "wrong usage"},
        (
            ("sosfs doctor", "this machine, and which key was found where"),
            ("sosfs doctor my-bucket ~/bucket", "all that a mount needs"),
        ),
    ),
    "demo": Usage(
        "[DIR]",
        "try it: a bucket on a small server of its own, mounted until Ctrl-C",
        "What 'make demo' runs: starts a small S3 server, mounts a bucket of it until Ctrl-C, then removes everything.",
        {0: "ended and removed", 1: "failed"},
        (("sosfs demo", "mounted in a new directory"),),
    ),
    "help": Usage(
        "[TOPIC]",
        "show a page of the manual",
        "Shows a page of the manual, or without a topic the list of pages. The name of a command is a topic too.",
        {0: "shown", 2: "there is no such topic"},
        (
            ("sosfs help", "the list of topics"),
            ("sosfs help recipes", "a page"),
            ("sosfs help recipes > recipes.md", "as Markdown"),
        ),
    ),
}


def add(commands: Any, name: str, **options: Any) -> argparse.ArgumentParser:
    """Adds the parser of a command with its words. `name` is the key in `USAGES`."""
    usage = USAGES[name]
    parser: argparse.ArgumentParser = commands.add_parser(
        name.rpartition(" ")[2],
        help=usage.help,
        description=usage.description,
        usage=f"sosfs {name} {usage.arguments}",
        epilog=usage.epilog,
        formatter_class=Formatter,
        **options,
    )
    return parser


class Parser(argparse.ArgumentParser):
    """A parser whose errors repeat what was typed so that no terminal acts upon it."""

    def error(self, message: str) -> NoReturn:
        """As usual: a line, and exit code 2."""
        super().error(printable(message))


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples, and wraps the description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def commands_table() -> str:
    """The Markdown table of all commands with their exit codes."""
    rows = ["| command | what it does | exit codes |", "|---|---|---|"]
    for name, usage in USAGES.items():
        codes = "; ".join(f"{code} {meaning}" for code, meaning in usage.exits.items() if meaning != "wrong usage")
        arguments = usage.arguments.replace("|", "\\|")
        rows.append(f"| `sosfs {name} {arguments}` | {usage.description} | {codes} |")
    return "\n".join(rows) + "\n"
