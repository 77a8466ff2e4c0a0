"""What a daemon tells about itself: the document, its socket, and the word it leaves."""

from __future__ import annotations

import dataclasses
import errno
import os
import select
import socket
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sosfs.ipc import commands, sockets, status
from sosfs.ipc.status import MountPhase, Status
from sosfs.s3.protocol import Properties
from tests.support.composed import composed
from tests.support.fake_store import FakeStore

MOUNTPOINT = Path("/mnt/some where")


def some(*, pid: int = 7, state: MountPhase = MountPhase.MOUNTED) -> Status:
    return Status(pid, "b", "p/", str(MOUNTPOINT), "http://localhost", state)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own, for a user who is not root; its path fits a socket's 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sosfs-") as name:
        base = Path(name)
        monkeypatch.setattr(status, "_runtime_dirs", lambda uid: iter([base / "run", base / "other"]))
        yield base / "run"


COUNTS = st.integers(min_value=0, max_value=1 << 62)
STATUSES = st.builds(
    Status,
    pid=COUNTS,
    bucket=st.text(),
    prefix=st.text(),
    mountpoint=st.text(),
    endpoint=st.text(),
    state=st.sampled_from(MountPhase),
    pending_files=COUNTS,
    pending_bytes=COUNTS,
    errors=st.lists(st.text()).map(tuple),
    conditions=st.text(),
    requests=st.dictionaries(st.text(), COUNTS),
    memory_bytes=COUNTS,
    memory=st.dictionaries(st.text(), COUNTS),
    resident_bytes=COUNTS,
)


@given(STATUSES)
def test_a_status_comes_back_from_json_in_one_line(original: Status) -> None:
    text = original.to_json()
    assert Status.from_json(text) == original
    assert "\n" not in text


def test_of_what_waits_the_first_lines_are_told_and_how_many_more_there_are() -> None:
    lines = [f"line {number}" for number in range(status.WAITING + 2)]
    assert status.few(lines) == (*lines[: status.WAITING], "and 2 more")
    assert status.few(lines[: status.WAITING]) == tuple(lines[: status.WAITING])


def test_what_a_newer_daemon_adds_is_left_out() -> None:
    assert Status.from_json(some().to_json()[:-1] + ', "invented": 3}') == some()


def test_others_are_told_nothing_that_may_name_a_file() -> None:
    secret = ("secret",)
    now = dataclasses.replace(some(), errors=secret, waiting=secret, damaged=secret, buckets={"secret": 1})
    told = dataclasses.replace(now, silence="404: /b/secret", silent_since=7.0).without_names()
    assert "secret" not in told.to_json()
    assert told.silent_since == 7.0


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"state": "mounted"}', '{"state": "dreaming"}'])
def test_other_documents_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Status.from_json(text)


async def asked(path: Path) -> Status | None:
    return await trio.to_thread.run_sync(partial(status.fetch, MOUNTPOINT))


def test_a_daemon_answers_each_reader_with_its_state_of_that_moment(runtime: Path) -> None:
    states = iter([MountPhase.MOUNTING, MountPhase.MOUNTED, MountPhase.DRAINING])

    async def scene() -> list[Status | None]:
        async with trio.open_nursery() as nursery:
            path = status.socket_path(MOUNTPOINT)
            await nursery.start(sockets.tell, path, lambda: some(state=next(states)))
            answers = [await asked(path) for _ in range(3)]
            nursery.cancel_scope.cancel()
        return answers

    assert [answer and answer.state for answer in trio.run(scene)] == [
        MountPhase.MOUNTING,
        MountPhase.MOUNTED,
        MountPhase.DRAINING,
    ]
    assert list(runtime.iterdir()) == []
    assert status.fetch(MOUNTPOINT) is None


def test_a_reader_that_goes_away_does_not_end_the_daemon(runtime: Path) -> None:
    huge = Status(7, "b", "", str(MOUNTPOINT), "", MountPhase.MOUNTED, errors=("x" * (4 << 20),))

    async def scene() -> Status | None:
        async with trio.open_nursery() as nursery:
            path = status.socket_path(MOUNTPOINT)
            await nursery.start(sockets.tell, path, lambda: huge)
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(str(path))
                await trio.sleep(0.05)
            answer = await asked(path)
            nursery.cancel_scope.cancel()
        return answer

    assert trio.run(scene) == huge


def test_a_reader_that_never_reads_is_given_up(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "ANSWER_SECONDS", 0.05)
    huge = Status(7, "b", "", str(MOUNTPOINT), "", MountPhase.MOUNTED, errors=("x" * (4 << 20),))

    def wait_for_the_end(client: socket.socket) -> bool:
        looking = select.poll()
        looking.register(client, 0)
        return bool(looking.poll(20_000))

    async def scene() -> bool:
        async with trio.open_nursery() as nursery:
            path = status.socket_path(MOUNTPOINT)
            await nursery.start(sockets.tell, path, lambda: huge)
            with socket.socket(socket.AF_UNIX) as idle:
                idle.connect(str(path))
                is_given_up = await trio.to_thread.run_sync(wait_for_the_end, idle)
            nursery.cancel_scope.cancel()
        return is_given_up

    assert trio.run(scene)


def test_the_socket_of_a_daemon_that_died_is_in_nobodys_way(runtime: Path) -> None:
    path = status.socket_path(MOUNTPOINT)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert status.fetch(MOUNTPOINT) is None

    async def scene() -> Status | None:
        async with trio.open_nursery() as nursery:
            await nursery.start(sockets.tell, path, some)
            answer = await asked(path)
            nursery.cancel_scope.cancel()
        return answer

    assert trio.run(scene) == some()


def test_a_draining_daemon_leaves_the_socket_of_its_successor_alone(runtime: Path) -> None:
    path = status.socket_path(MOUNTPOINT)
    path.with_suffix(".sock.new").touch()  # of a daemon that died just then

    async def scene() -> Status | None:
        async with trio.open_nursery() as nursery:
            old = trio.CancelScope()

            async def first(*, task_status: trio.TaskStatus[None]) -> None:
                with old:
                    await sockets.tell(path, partial(some, pid=1), task_status=task_status)

            await nursery.start(first)
            await nursery.start(sockets.tell, path, partial(some, pid=2))
            old.cancel()
            await trio.testing.wait_all_tasks_blocked()
            answer = await asked(path)
            nursery.cancel_scope.cancel()
        return answer

    answer = trio.run(scene)
    assert answer is not None
    assert answer.pid == 2


def test_a_socket_that_talks_nonsense_is_an_error(runtime: Path) -> None:
    path = status.socket_path(MOUNTPOINT)

    async def scene() -> None:
        listener = trio.socket.socket(socket.AF_UNIX)
        await listener.bind(str(path))
        listener.listen()

        async def answer(stream: trio.SocketStream) -> None:
            async with stream:
                await stream.send_all(b"hello\n")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, [trio.SocketListener(listener)])
            with pytest.raises(OSError, match="not understood"):
                await asked(path)
            nursery.cancel_scope.cancel()

    trio.run(scene)


def test_a_daemon_that_closes_without_a_word_is_just_ending(runtime: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(status.socket_path(MOUNTPOINT)))
        listener.listen()
        asking = pool.submit(status.fetch, MOUNTPOINT)
        listener.accept()[0].close()
        assert asking.result() is None


def test_the_last_word_stays_and_is_replaced(runtime: Path) -> None:
    assert status.read_last(MOUNTPOINT) is None
    for pid in (1, 2):
        status.write_last(some(pid=pid, state=MountPhase.STOPPED))
        assert status.read_last(MOUNTPOINT) == some(pid=pid, state=MountPhase.STOPPED)
    assert [path.suffix for path in runtime.iterdir()] == [".last"]


def test_a_daemon_that_begins_removes_the_last_word_of_its_own_pid_alone(runtime: Path) -> None:
    """Another one may have ended just now, and who has unmounted it reads that."""
    status.forget_namesake(MOUNTPOINT)
    status.write_last(some(pid=os.getpid() + 1))
    status.forget_namesake(MOUNTPOINT)
    assert status.read_last(MOUNTPOINT) == some(pid=os.getpid() + 1)
    status.write_last(some(pid=os.getpid()))
    status.forget_namesake(MOUNTPOINT)
    assert status.read_last(MOUNTPOINT) is None


def test_readers_look_where_another_login_may_have_put_it(runtime: Path) -> None:
    elsewhere = runtime.parent / "other"
    elsewhere.mkdir()
    status.write_last(some())
    (last,) = runtime.iterdir()
    last.rename(elsewhere / last.name)
    assert status.read_last(MOUNTPOINT) == some()


def test_the_directory_is_closed_to_others(runtime: Path) -> None:
    assert status.runtime_dir().stat().st_mode & 0o777 == 0o700
    runtime.chmod(0o755)
    assert status.runtime_dir().stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_may_write_to_is_refused(runtime: Path) -> None:
    runtime.mkdir()
    runtime.chmod(0o777)
    with pytest.raises(PermissionError):
        status.socket_path(MOUNTPOINT)


def test_a_link_in_its_place_is_refused(runtime: Path) -> None:
    (runtime.parent / "real").mkdir(mode=0o700)
    runtime.symlink_to("real")
    with pytest.raises(PermissionError):
        status.socket_path(MOUNTPOINT)


def test_where_a_user_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert list(status._runtime_dirs(4321)) == [tmp_path / "sosfs", Path("/tmp/sosfs-4321")]
    assert list(status._runtime_dirs(4322)) == [Path("/tmp/sosfs-4322")]
    assert list(status._runtime_dirs(0)) == [Path("/run/sosfs")]


def test_a_socket_fits_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel allows 107 bytes, whatever the length of the mount point."""
    deep = Path("/" + "d" * 200, "e" * 200)
    assert len(f"/run/user/4294967295/sosfs/{status._name(deep)}.sock") < 107
    assert status._name(deep) != status._name(deep.parent)


def test_received_bytes_count_those_that_came_with_the_attributes(tmp_path: Path) -> None:
    store, body = FakeStore(), b"x" * 4000
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: store.put("file", body, Properties()))
        assert mount.loop.run(mount.tree)["file"] == (body, 0o644)
        assert mount.parts.blocks.received_bytes == len(body)


class TestAnswersThatFail:
    """Whatever goes wrong with one answer, who asks next is answered, and so is the kernel: the mount does not end."""

    @pytest.mark.parametrize(
        ("failure", "told"),
        [
            (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
            (FileNotFoundError(errno.ENOENT, "No such file or directory", "/gone"), "No such file or directory"),
            (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "Connection timed out"),
            (KeyError("a bug"), "a fault of the mount"),
            (ExceptionGroup("several", [OSError(errno.EIO, "one")]), "a fault of the mount"),
        ],
    )
    def test_of_a_status(self, runtime: Path, failure: Exception, told: str) -> None:
        failures = [failure]

        def provider() -> Status:
            if failures:
                raise failures.pop()
            return some()

        async def scene() -> Status | None:
            async with trio.open_nursery() as nursery:
                await nursery.start(sockets.tell, status.socket_path(MOUNTPOINT), provider)
                with pytest.raises(OSError, match=f"cannot tell its status: {told}"):
                    await asked(MOUNTPOINT)
                answer = await asked(MOUNTPOINT)
                nursery.cancel_scope.cancel()
            return answer

        assert trio.run(scene) == some()

    @pytest.mark.parametrize(
        "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyError("a bug"), UnicodeError("a bug")]
    )
    def test_of_anything_that_listens(self, tmp_path: Path, failure: Exception) -> None:
        path = tmp_path / "socket"
        failures = [failure]

        async def answer(stream: trio.SocketStream) -> None:
            if failures:
                raise failures.pop()
            await stream.send_all(b"well")

        def ask() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(path))
                return client.recv(100)

        async def scene() -> list[bytes]:
            async with trio.open_nursery() as nursery:
                await nursery.start(sockets.listen, path, answer)
                answers = [await trio.to_thread.run_sync(ask) for _ in range(2)]
                nursery.cancel_scope.cancel()
            return answers

        assert trio.run(scene) == [b"", b"well"]

    def test_of_a_command(self, runtime: Path) -> None:
        """The outcome cannot be told, the work fails, and its news cannot be told: the command hears of each."""

        async def untold(paths: object, tell: object, options: object) -> commands.Told:
            return {"outcome": object()}

        async def fails(paths: object, tell: object, options: object) -> commands.Told:
            raise ExceptionGroup("several", [KeyError("a bug")])

        async def babbles(paths: object, tell: commands.Tell, options: object) -> commands.Told:
            tell({"news": object()})
            await trio.sleep_forever()
            raise AssertionError

        async def well(paths: object, tell: object, options: object) -> commands.Told:
            return {"is": "well"}

        works = {"untold": untold, "fails": fails, "babbles": babbles, "well": well}

        def ask(errand: str) -> commands.Told:
            return commands.ask(MOUNTPOINT, errand, (), owner=os.geteuid(), news=lambda _: None)

        async def scene() -> commands.Told:
            async with trio.open_nursery() as nursery:
                await nursery.start(commands.serve, commands.socket_path(MOUNTPOINT), works)
                for errand in ("untold", "fails", "babbles"):
                    with pytest.raises(OSError, match="a fault of the mount"):
                        await trio.to_thread.run_sync(ask, errand)
                told = await trio.to_thread.run_sync(ask, "well")
                nursery.cancel_scope.cancel()
            return told

        assert trio.run(scene) == {"is": "well"}


@pytest.mark.parametrize("answer", [b"", b'{"outcome": {"is'], ids=["before a word", "within a word"])
def test_a_daemon_that_ends_while_it_is_asked_is_told_as_such(runtime: Path, answer: bytes) -> None:
    """Also where it has read nothing, so that the kernel resets the connection."""
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(commands.socket_path(MOUNTPOINT)))
        listener.listen()
        asking = pool.submit(
            commands.ask, MOUNTPOINT, "warm", [(b"x" * 4000,)] * 1000, owner=os.geteuid(), news=lambda _: None
        )
        connection, _ = listener.accept()
        connection.recv(100)
        connection.send(answer)
        connection.close()
        with pytest.raises(OSError, match="the daemon ended meanwhile") as caught:
            asking.result()
    assert caught.value.errno == errno.ENOTCONN


class TestRequests:
    """What a command that asks for an errand may take of a daemon, and that its end is heard of."""

    def exchange(self, works: Mapping[str, commands.Work], request: bytes) -> bytes:
        """What is answered to these bytes."""

        def ask() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(commands.socket_path(MOUNTPOINT)))
                client.sendall(request)
                return client.makefile("rb").read()

        async def scene() -> bytes:
            async with trio.open_nursery() as nursery:
                await nursery.start(commands.serve, commands.socket_path(MOUNTPOINT), works)
                answer = await trio.to_thread.run_sync(ask)
                nursery.cancel_scope.cancel()
            return answer

        return trio.run(scene)

    def test_one_without_an_end_is_not_waited_for(self, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commands, "REQUEST_SECONDS", 0.05)
        assert b"not understood" in self.exchange({}, b'{"do": ')

    def test_one_that_is_too_long_is_not_read(self, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commands, "REQUEST_SECONDS", 60)
        monkeypatch.setattr(commands, "REQUEST_MAX", 100)
        assert b"not understood" in self.exchange({}, b"x" * 100)

    @pytest.mark.parametrize("request_", [b"[]", b"{}", b'{"do": "it", "paths": 3}', b"1", b"\xff"])
    def test_one_that_is_none_is_told_as_such(self, runtime: Path, request_: bytes) -> None:
        assert b"not understood" in self.exchange({}, request_ + b"\n")

    def test_who_hangs_up_calls_it_off(self, runtime: Path) -> None:
        async def scene() -> bool:
            begun, ended = trio.Event(), trio.Event()

            async def endless(paths: object, tell: object, options: object) -> commands.Told:
                begun.set()
                try:
                    await trio.sleep_forever()
                finally:
                    ended.set()

            async with trio.open_nursery() as nursery:
                await nursery.start(commands.serve, commands.socket_path(MOUNTPOINT), {"it": endless})
                stream = await trio.open_unix_socket(str(commands.socket_path(MOUNTPOINT)))
                await stream.send_all(b'{"do": "it", "paths": []}\n')
                await begun.wait()
                await stream.send_eof()
                with trio.move_on_after(20):
                    await ended.wait()
                is_over = ended.is_set()
                nursery.cancel_scope.cancel()
            return is_over

        assert trio.run(scene)

    def test_a_socket_that_is_another_users_says_whose_it_is(
        self, runtime: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Refused(socket.socket):
            def connect(self, address: object) -> None:
                raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(socket, "socket", Refused)
        with pytest.raises(PermissionError, match="only who mounted it, or root") as caught:
            commands.ask(MOUNTPOINT, "it", (), owner=0, news=lambda _: None)
        assert caught.value.errno == errno.EPERM
