"""A Ceph of one node in memory, with its S3 gateway: the server on which ACLs and signatures are enforced.

One monitor, one OSD (memstore), one radosgw; no manager, no cephx, no root needed. Ready in about 15 seconds.
Debian: `apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common`.
"""

from __future__ import annotations

import subprocess
import uuid
from contextlib import ExitStack
from pathlib import Path

from tests.support.processes import Process, free_port, listening, require

PACKAGES = "radosgw ceph-mon ceph-osd ceph-common"
USERS = {"alice": ("ALICEKEY", "alicesecret"), "bob": ("BOBKEY", "bobsecret")}
START = 90.0  # seconds for each of the three, on a loaded machine

# Settings that are not obvious: radosgw insists on a "secure" connection to the monitor, which there is
# none of without cephx, unless told `crc`; without tcp_nodelay each small GET takes 44 ms instead of 4; and unless
# told otherwise, deleted data stays in memory for two hours, too long for a benchmark that writes GiB after GiB.
CONFIG = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_v1}]
mon initial members = a
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
ms bind ipv6 = false
auth cluster required = none
auth service required = none
auth client required = none
run dir = {base}
admin socket =
log file = {base}/$name.log
crash dir = {base}
heartbeat file = {base}/$name.heartbeat
keyring = {base}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
osd crush chooseleaf type = 0
osd objectstore = memstore
debug ms = 0/0
[mon]
mon data = {base}/mon
mon data avail crit = 1
mon data avail warn = 2
[mon.a]
host = localhost
[osd]
osd data = {base}/osd
memstore device bytes = 17179869184
memstore page set = false
osd op num shards = 2
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 64
rgw enable usage log = false
rgw enable ops log = false
rgw run sync thread = false
rgw gc obj min wait = 10
rgw gc processor period = 10
rgw enable apis = s3, admin
rgw dns name = localhost
rgw crypt require ssl = false
ms mon client mode = crc
"""


class Ceph:
    """A running cluster with the users alice and bob."""

    def __init__(self, base: Path) -> None:
        """Starts it with its files in `base`, a short path."""
        require("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool", package=PACKAGES)
        self.base = base
        self.port, self._mon, self._mon_v1 = free_port(), free_port(), free_port()
        self._config = base / "ceph.conf"
        self._running = ExitStack()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends all its processes, the gateway first."""
        self._running.close()

    def _start(self) -> None:
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        ports = {"mon": self._mon, "mon_v1": self._mon_v1, "port": self.port}
        self._config.write_text(CONFIG.format(fsid=fsid, base=self.base, **ports))
        for name in ("mon", "osd"):
            (self.base / name).mkdir()
        (self.base / "keyring").touch()
        map_file = str(self.base / "monmap")
        addresses = f"[v2:127.0.0.1:{self._mon},v1:127.0.0.1:{self._mon_v1}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, map_file, configured=False)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_file)
        self._serve("ceph-mon", "-f", "-i", "a").until(lambda: self._tells("mon", "stat"), START)
        self._run("ceph", "osd", "new", osd, "0")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._serve("ceph-osd", "-f", "-i", "0").until(lambda: self._tells("osd", "stat", has="1 up"), START)
        for name, (key, secret) in USERS.items():
            keys = (f"--access-key={key}", f"--secret-key={secret}")
            self._run(
                "radosgw-admin", "-n", "client.rgw", "user", "create", f"--uid={name}", f"--display-name={name}", *keys
            )
        self._serve("radosgw", "-f", "-n", "client.rgw").until(lambda: listening(self.port), START)

    def _serve(self, program: str, *arguments: str) -> Process:
        process = Process([program, "-c", str(self._config), *arguments], self.base / f"{program}.out")
        self._running.callback(process.end)
        return process

    def _run(self, program: str, *arguments: str, configured: bool = True) -> None:
        command = [program, *(("-c", str(self._config)) if configured else ()), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")

    def _tells(self, *question: str, has: str = "") -> bool:
        command = ["ceph", "-c", str(self._config), "--connect-timeout", "5", *question]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode == 0 and has in done.stdout
