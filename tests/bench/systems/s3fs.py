"""s3fs: with what its manual recommends for speed, and with its defaults. Its close waits for the bucket."""

from __future__ import annotations

from tests.bench.bare import REGION
from tests.bench.systems.system import Closed, Place, Role, System

# None of these loosens what it promises. `notsup_compat_dir` spares it requests for directories as other tools leave
# them; all of the benchmark's have the marker that it knows.
BEST = (
    "use_cache={cache}",
    "parallel_count=16",
    "multipart_size=16",
    "multireq_max=64",
    "enable_noobj_cache",
    "notsup_compat_dir",
    "kernel_cache",
    "big_writes",
    "max_readahead=1048576",
)


def _system(name: str, role: Role, *options: str) -> System:
    def command(place: Place) -> list[str]:
        secret = place.cache / "passwd"
        secret.touch(mode=0o600)
        secret.write_text(f"{place.server.key}:{place.server.secret}\n")
        fixed = f"url={place.server.endpoint},use_path_request_style,endpoint={REGION},passwd_file={secret}"
        given = [option.format(cache=place.cache) for option in options]
        return ["s3fs", place.bucket, str(place.mountpoint), "-f", "-o", ",".join([fixed, *given])]

    told = " ".join(options).replace("{cache}", "DIRECTORY") or "defaults"
    return System(name, role, Closed.BUCKET, told, command)


S3FS = [_system("s3fs", Role.PEER, *BEST), _system("s3fs-default", Role.REFERENCE)]
