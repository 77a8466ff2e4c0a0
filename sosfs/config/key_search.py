"""Search for the key that signs requests, source by source.

1. the AWS profile named by `--profile`, and then nothing else
2. `EXOSCALE_API_KEY` and `EXOSCALE_API_SECRET`, or an older name the Exoscale CLI knows
3. `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (and `AWS_SESSION_TOKEN`)
4. `exoscale.toml` of the Exoscale CLI
5. `.s3cfg` of s3cmd, with `$NAME` taken from the environment
6. the AWS profile `AWS_PROFILE`, else `default`, of the shared files of the AWS tools

Instance metadata is never asked. A source that is not there or not complete is passed over; one that is
there and broken is an error, because going on would sign with a key that the user did not mean.

A `Finder` may be used from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sosfs.config import key_files, zones
from sosfs.config.credentials import Absent, CredentialError, Credentials, Found, Surroundings
from sosfs.config.zones import NOWHERE, Place

EXOSCALE_KEY = ("EXOSCALE_API_KEY", "EXOSCALE_KEY", "CLOUDSTACK_KEY", "CLOUDSTACK_API_KEY")
EXOSCALE_SECRET = (
    "EXOSCALE_API_SECRET",
    "EXOSCALE_SECRET",
    "EXOSCALE_SECRET_KEY",
    "CLOUDSTACK_SECRET",
    "CLOUDSTACK_SECRET_KEY",
)
EXOSCALE_ENDPOINT = ("EXOSCALE_STORAGE_API_ENDPOINT", "EXOSCALE_SOS_ENDPOINT")

Source = Callable[[Surroundings], Found | Absent]


def from_exoscale_environment(around: Surroundings) -> Found | Absent:
    """The key of the Exoscale CLI's variables; both halves must be set, as the CLI asks."""
    return _pair(("EXOSCALE_API_KEY", "EXOSCALE_API_SECRET"), around.first(EXOSCALE_KEY), around.first(EXOSCALE_SECRET))


def from_aws_environment(around: Surroundings) -> Found | Absent:
    """The key of the AWS variables, with the endpoint of `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`."""
    environ = around.environ
    key, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
    endpoint = around.first(("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    place = key_files.aws_place(endpoint, around.first(("AWS_REGION", "AWS_DEFAULT_REGION")))
    token = environ.get("AWS_SESSION_TOKEN", "")
    return _pair(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), key, secret, token=token, place=place)


def _pair(names: tuple[str, str], key: str, secret: str, *, token: str = "", place: Place = NOWHERE) -> Found | Absent:
    where = f"environment, {names[0]}"
    if key and secret:
        return Found(Credentials(key, secret, token), where, place)
    if key:
        return Absent(where, f"the secret ({names[1]}) is not set", is_near=True)
    return Absent(where, "the key is not set", is_near=True) if secret else Absent(where, "not set")


ORDER: Sequence[Source] = (
    from_exoscale_environment,
    from_aws_environment,
    key_files.from_exoscale_file,
    key_files.from_s3cfg,
    key_files.from_profile,
)


def look(around: Surroundings) -> Iterator[Found | Absent]:
    """Each source's answer in order, the last one `Found` unless none is. Raises `CredentialError` at a broken one."""
    for source in (key_files.from_profile,) if around.profile else ORDER:
        answer = source(around)
        yield answer
        if isinstance(answer, Found):
            return


class Finder:
    """The `CredentialSource` of the program: the first key of the order, found again on each `refresh`."""

    def __init__(self, surroundings: Callable[[], Surroundings]) -> None:
        """`surroundings` is asked at each search. Raises `CredentialError` where there is no key."""
        self._surroundings = surroundings
        self.found = self._find()

    def current(self) -> Credentials:
        """The key as last read."""
        return self.found.credentials

    def refresh(self) -> Credentials:
        """The key as it is now, from the first source that has one. What was found before stays when this fails."""
        self.found = self._find()
        return self.found.credentials

    def _find(self) -> Found:
        around = self._surroundings()
        answers = list(look(around))
        last = answers[-1]
        if isinstance(last, Found):
            return last
        if around.profile:
            raise CredentialError(f"{last.where}: {last.why}")
        near = next((answer for answer in answers if isinstance(answer, Absent) and answer.is_near), None)
        if near is not None:
            raise CredentialError(f"no credentials: {near.where}: {near.why}; 'sosfs doctor' shows all places")
        raise CredentialError(
            "no credentials: set EXOSCALE_API_KEY and EXOSCALE_API_SECRET; 'sosfs doctor' shows where else they may be"
        )


def place(named: Place, found: Found, around: Surroundings) -> Place:
    """Where the bucket's server is: what the user named, then the environment, then what the key's source says.

    A profile that the user named comes before the environment, as the option that it is.
    """
    environment = Place(around.first(EXOSCALE_ENDPOINT), around.environ.get("EXOSCALE_ZONE", ""))
    rest = (found.place, environment) if around.profile else (environment, found.place)
    return zones.choose((named, *rest))
