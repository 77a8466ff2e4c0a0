"""`sosfs help`, `--help`, man pages and completion: all from one parser and the same pages, and none out of date."""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sosfs.cli import main, manual, mount_helper, option_table, usage
from sosfs.config import parameters
from tests.support import manual_pages as generate
from tests.support.mounting import ROOT, SOSFS, run_sosfs

PAGES = sorted(path.stem for path in manual.PAGES.glob("*.md"))
MEN = sorted(path for path in generate.SHARE.glob("man/man*/*"))
SHARE = generate.SHARE
HERE = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}


def on_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*SOSFS, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**HERE, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **environment},
        start_new_session=True,
    )
    os.close(slave)
    parts = []
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(master)
    assert process.wait(30) == 0
    return b"".join(parts).decode()


class TestHelp:
    @pytest.mark.parametrize("topic", PAGES)
    def test_a_page_that_is_piped_is_its_markdown(self, topic: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["help", topic]) == 0
        out = capsys.readouterr().out
        text = (manual.PAGES / f"{topic}.md").read_text()
        assert "<!--" not in out
        assert [line for line in out.splitlines() if line] == [
            line for line in text.splitlines() if line and "<!--" not in line
        ]

    def test_without_a_topic_it_lists_all(self) -> None:
        done = run_sosfs(["help"], HERE)
        assert done.returncode == 0
        assert set(re.findall(r"\]\(([\w-]+)\.md\)", done.stdout)) == set(manual.topics())

    def test_on_a_terminal_it_is_formatted_and_paged(self) -> None:
        shown = on_terminal("help", "caches", PAGER="sed 's/^/page: /'")
        lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
        assert all(line.startswith("page: ") for line in lines), lines
        assert "\x1b[" in shown, "no colours"
        assert not any("`" in line or "##" in line for line in lines)
        assert max(map(len, lines)) <= 80 + len("page: ")

    def test_a_wrong_topic_names_the_nearest(self) -> None:
        done = run_sosfs(["help", "recipe"], HERE)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "sosfs: no such topic: recipe; did you mean recipes? 'sosfs help' lists them\n"
        done = run_sosfs(["help", "../cli"], HERE)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1

    def test_a_command_is_a_topic(self) -> None:
        assert run_sosfs(["help", "umount"], HERE).stdout == run_sosfs(["umount", "--help"], HERE).stdout

    def test_the_program_alone_shows_help(self) -> None:
        done = run_sosfs([], HERE)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == run_sosfs(["--help"], HERE).stdout

    @pytest.mark.parametrize("name", usage.USAGES)
    def test_help_of_a_command_has_examples_and_exit_codes(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main.main([*name.split(), "--help"])
        assert ended.value.code == 0
        out, words = capsys.readouterr().out, usage.USAGES[name]
        assert out.startswith(f"usage: sosfs {name} {words.arguments.partition(' ')[0]}")
        assert all(f"  {command} " in out for command, _ in words.examples)
        assert all(f"\n  {code}  {meaning}\n" in out for code, meaning in words.exits.items())
        assert max(map(len, out.splitlines())) <= 100

    @pytest.mark.parametrize("name", usage.USAGES)
    def test_examples_are_understood(self, name: str) -> None:
        parser = main.command_line()
        for command, _ in usage.USAGES[name].examples:
            for part in command.partition(" > ")[0].split(" | "):
                words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', part)]
                assert words[0] == "sosfs"
                assert main._parsed(parser, words[1:]).run

    def test_options_are_grouped(self) -> None:
        text = run_sosfs(["mount", "--help"], HERE).stdout
        at = [text.index(f"\n{group.value}:\n") for group in parameters.Group]
        assert at == sorted(at)
        assert at[0] < text.index("--durability {bucket,journal,writeback}") < at[1] < text.index("--ttl") < at[2]

    def test_every_command_has_its_words(self) -> None:
        (commands,) = (action.choices for action in main.command_line()._actions if action.dest == "==SUPPRESS==")
        assert isinstance(commands, dict)
        assert set(commands) - {"options"} == {name for name in usage.USAGES if " " not in name}


class TestPages:
    @pytest.mark.parametrize("topic", PAGES)
    def test_links_lead_to_something(self, topic: str) -> None:
        text = (manual.PAGES / f"{topic}.md").read_text()
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert link.startswith("https://") or (manual.PAGES / link).exists(), link

    def test_links_of_the_readme_lead_to_something(self) -> None:
        for link in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
            assert link.startswith("https://") or (ROOT / link).exists(), link

    def test_the_readme_fits_three_screens(self) -> None:
        assert len((ROOT / "README.md").read_text().splitlines()) <= 150

    @pytest.mark.parametrize("topic", ["options", "exit-codes"])
    def test_tables_are_as_the_code_is(self, topic: str) -> None:
        text = (manual.PAGES / f"{topic}.md").read_text()
        assert option_table.in_page(text) == text, "run 'make docs'"

    @pytest.mark.parametrize("topic", sorted({*PAGES} - {"coming-from"}))
    def test_options_that_pages_name_exist(self, topic: str) -> None:
        assert options_in(manual.page(topic)) - OF_OTHERS <= options_of(main.command_line())

    def test_what_is_offered_to_those_who_come_from_elsewhere_exists(self) -> None:
        rows = re.findall(r"^\|[^\n]*\| ([^|\n]*) \|$", manual.page("coming-from"), re.MULTILINE)
        assert len(rows) > 80
        assert options_in(" ".join(rows)) <= options_of(main.command_line())


# Options of programs that the pages speak of.
OF_OTHERS = {"--now", "--user", "--device", "--cap-add", "--security-opt", "--time", "--rm", "--only-values"}
OF_OTHERS |= {"--bypass-governance-retention", "--object-lock-enabled-for-bucket"}  # of the AWS CLI
OF_OTHERS |= {"--delete", "--inplace", "--no-whole-file", "--preserve", "--fail", "--silent"}
OF_OTHERS |= {"--read-data", "--target", "--encryption", "--verify-data"}


def options_in(text: str) -> set[str]:
    """The long options in a text."""
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """All options of a program and its commands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(options_of, action.choices.values()))
    return found


class TestManPages:
    def test_what_is_in_the_tree_is_what_the_code_makes(self) -> None:
        made = generate.made()
        assert sorted(made) == sorted(str(path.relative_to(SHARE)) for path in SHARE.rglob("*") if path.is_file())
        for name, text in made.items():
            assert (SHARE / name).read_text() == text, f"{name}: run 'make docs'"

    @pytest.mark.parametrize("page", MEN, ids=lambda page: str(page.name))
    def test_man_shows_it_without_a_warning(self, page: Path) -> None:
        done = subprocess.run(
            ["man", "--warnings=w", "-l", page],
            env={**HERE, "MANWIDTH": "80", "MANPAGER": "cat"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert page.name.rpartition(".")[0] in done.stdout.splitlines()[0]

    def test_man_knows_what_each_is_about(self) -> None:
        done = subprocess.run(["lexgrog", *MEN], capture_output=True, text=True, check=True)
        assert len(re.findall(r': "(?:sosfs|mount\.sosfs|sosfs\.toml) - \w', done.stdout)) == 3, done.stdout

    def test_sosfs_1_has_all_commands_and_options(self) -> None:
        text = shown(SHARE / "man/man1/sosfs.1")
        assert all(f"sosfs {name}" in text for name in usage.USAGES)
        assert all(f"--{name.replace('_', '-')}" in text for name in parameters.TABLE)
        assert "EXOSCALE_API_KEY" in text

    @pytest.mark.parametrize("page", ["man8/mount.sosfs.8", "man5/sosfs.toml.5"])
    def test_the_others_have_all_options(self, page: str) -> None:
        text = shown(SHARE / "man" / page)
        assert all(re.search(rf"^ +{name}\b", text, re.MULTILINE) for name in parameters.TABLE)

    def test_exit_codes_of_mount_sosfs(self) -> None:
        text = shown(SHARE / "man/man8/mount.sosfs.8")
        assert all(meaning in re.sub(r"\s+", " ", text) for meaning in mount_helper.EXITS.values())


def shown(page: Path) -> str:
    """A man page as text."""
    return subprocess.run(
        ["man", "-l", page],
        env={**HERE, "MANWIDTH": "200", "MANPAGER": "cat", "MAN_KEEP_FORMATTING": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory to complete paths in."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "plan.txt").touch()
    (tmp_path / "sub").mkdir()
    return tmp_path


COMPLETED = [
    ("sosfs um", {"umount"}, set[str]()),
    ("sosfs ", {"mount", "umount", "status", "acl", "help"}, {"options"}),
    ("sosfs acl ", {"get", "set"}, {"mount"}),
    ("sosfs mount --dur", {"--durability"}, set[str]()),
    ("sosfs mount b d --durability ", {"bucket", "journal", "writeback"}, {"plan.txt"}),
    ("sosfs mount b d --log-level d", {"debug"}, {"info"}),
    ("sosfs mount b d --acl ", {"private", "public-read"}, set[str]()),
    ("sosfs mount b pi", {"pictures"}, {"plan.txt"}),
    ("sosfs mount b d --ca-bundle p", {"plan.txt"}, set[str]()),
    ("sosfs warm p", {"pictures", "plan.txt"}, set[str]()),
    ("sosfs help re", {"recipes"}, {"options"}),
    ("sosfs umount su", {"sub"}, set[str]()),
]


def bash(line: str, cwd: Path, _: set[str]) -> set[str]:
    """What bash offers for a line: the completion function is called as bash does, at its end."""
    words = line.split(" ")
    script = f"""
        source /usr/share/bash-completion/bash_completion
        source {SHARE}/bash-completion/completions/sosfs
        COMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDS=({" ".join(map(repr, words))}) COMP_CWORD={len(words) - 1}
        $(complete -p sosfs | sed 's/.*-F \\([^ ]*\\).*/\\1/') sosfs {words[-1]!r} {words[-2]!r}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return {word.strip().rstrip("/") for word in done.stdout.splitlines() if word.strip()}


def fish(line: str, cwd: Path, _: set[str]) -> set[str]:
    """What fish offers for a line."""
    script = f"source {SHARE}/fish/vendor_completions.d/sosfs.fish; complete -C {line!r}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=cwd,
        env={**HERE, "HOME": str(cwd)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return {word.partition("\t")[0].rstrip("/") for word in done.stdout.splitlines()}


def zsh(line: str, cwd: Path, offered: set[str]) -> set[str]:
    """What zsh lists for a line when a user presses Tab; it lists nothing while more keys wait, so they wait here."""
    inner = f"""
PS1=; unsetopt zle_bracketed_paste 2>/dev/null
fpath=({SHARE}/zsh/site-functions $fpath); autoload -U compinit; compinit -u -D
LISTMAX=0; zstyle ':completion:*' list-colors ''; stty cols 300 -echo
bindkey '^I' list-choices
"""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env={**HERE, "HOME": str(cwd), "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(slave)
    try:
        os.write(master, inner.encode() + b"print REA''DY\n")
        _read_until(master, lambda words: "READY" in words)
        os.write(master, line.encode() + b"\t")
        listed = _read_until(master, lambda words: offered <= words)
        os.write(master, b"\x15print DO''NE\n")
        return listed | _read_until(master, lambda words: "DONE" in words)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _read_until(master: int, is_enough: Callable[[set[str]], bool], *, seconds: float = 20.0) -> set[str]:
    """The words that a terminal shows, until they are enough or no more come."""
    seen, words = "", set[str]()
    deadline = time.monotonic() + seconds
    while not is_enough(words) and select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0]:
        seen += os.read(master, 65536).decode(errors="replace")
        words = {word.rstrip("/") for word in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).split()}
    return words


@pytest.mark.parametrize(("line", "offered", "not_offered"), COMPLETED, ids=[line for line, _, _ in COMPLETED])
@pytest.mark.parametrize("shell", [bash, fish, zsh])
def test_completion(
    shell: Callable[[str, Path, set[str]], set[str]], line: str, offered: set[str], not_offered: set[str], tree: Path
) -> None:
    words = shell(line, tree, offered)
    assert offered <= words, words
    assert not not_offered & words, words


def test_bash_loads_it_by_the_name_of_the_program(tmp_path: Path) -> None:
    """From the directory where `make install` puts it, as the package bash-completion looks for it."""
    script = "source /usr/share/bash-completion/bash_completion; _completion_loader sosfs; complete -p sosfs"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**HERE, "XDG_DATA_DIRS": str(SHARE), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("complete "), done.stderr
