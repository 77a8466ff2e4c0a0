"""Where the key is found: each source as its own tool writes it, their order, and what is never done."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from sosfs.config import key_search, zones
from sosfs.config.credentials import Absent, CredentialError, Credentials, Found, Surroundings
from sosfs.config.key_search import Finder
from sosfs.config.zones import NOWHERE, Place

CLI_FILE = """
    defaultaccount = "work"

    [[accounts]]
      name = "home"
      key = "EXOhome"
      secret = "home-secret"
      defaultZone = "at-vie-1"

    [[accounts]]
      account = "old-name"
      NAME = "work"
      Key = "EXOwork"
      SECRET = "work-secret"
      defaultzone = "ch-gva-2"
      sosendpoint = "https://store-{zone}.example.net/"
"""


class Home:
    """A user's home directory and environment, and nothing else of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ: dict[str, str] = {}

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def around(self, profile: str = "") -> Surroundings:
        return Surroundings(dict(self.environ), self.path, profile)

    def finder(self, profile: str = "") -> Finder:
        return Finder(lambda: self.around(profile))

    def found(self, profile: str = "") -> Found:
        return self.finder(profile).found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def exoscale_variables(home: Home) -> None:
    home.environ |= {"EXOSCALE_API_KEY": "EXOenv", "EXOSCALE_API_SECRET": "s"}


def aws_variables(home: Home) -> None:
    home.environ |= {"AWS_ACCESS_KEY_ID": "AWSenv", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}


def exoscale_file(home: Home) -> None:
    home.write(".config/exoscale/exoscale.toml", CLI_FILE)


def s3cfg_file(home: Home) -> None:
    home.write(".s3cfg", "[default]\naccess_key = EXOcfg\nsecret_key = s\n")


def aws_files(home: Home) -> None:
    home.write(".aws/credentials", "[default]\naws_access_key_id = AWSfile\naws_secret_access_key = s\n")


IN_ORDER = (
    (exoscale_variables, "EXOenv"),
    (aws_variables, "AWSenv"),
    (exoscale_file, "EXOwork"),
    (s3cfg_file, "EXOcfg"),
    (aws_files, "AWSfile"),
)


@pytest.mark.parametrize("first", range(len(IN_ORDER)))
def test_the_first_source_of_the_order_wins(home: Home, first: int) -> None:
    for make, _ in reversed(IN_ORDER[first:]):
        make(home)
    assert home.found().credentials.access_key == IN_ORDER[first][1]


def test_a_named_profile_beats_all_and_is_the_only_source(home: Home) -> None:
    for make, _ in IN_ORDER:
        make(home)
    with pytest.raises(CredentialError, match="exomount"):
        home.found("exomount")
    home.write(".aws/config", "[profile exomount]\naws_access_key_id = AWSnamed\naws_secret_access_key = s\n")
    assert home.found("exomount").credentials == Credentials("AWSnamed", "s")


def test_nothing_found_says_what_to_do(home: Home) -> None:
    with pytest.raises(CredentialError, match="EXOSCALE_API_KEY and EXOSCALE_API_SECRET"):
        home.found()


def test_each_place_that_was_looked_at_is_told_without_a_value(home: Home) -> None:
    home.environ["EXOSCALE_API_SECRET"] = "hidden"
    home.write(".s3cfg", "[default]\naccess_key = EXOcfg\nsecret_key = $EXO_SOS_SECRET\n")
    answers = list(key_search.look(home.around()))
    assert [answer.where for answer in answers] == [
        "environment, EXOSCALE_API_KEY",
        "environment, AWS_ACCESS_KEY_ID",
        "~/.config/exoscale/exoscale.toml",
        "~/.s3cfg",
        "~/.aws/credentials, profile default",
    ]
    assert all(isinstance(answer, Absent) for answer in answers)
    assert answers[0] == Absent("environment, EXOSCALE_API_KEY", "the key is not set", is_near=True)
    assert "$EXO_SOS_SECRET not set" in str(answers[3])
    assert "hidden" not in str(answers)


def test_the_search_stops_where_a_key_is_found(home: Home) -> None:
    exoscale_variables(home)
    home.write(".s3cfg", "not even an INI file")
    assert len(list(key_search.look(home.around()))) == 1


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("EXOSCALE_API_KEY", "EXOSCALE_API_SECRET"),
        ("EXOSCALE_KEY", "EXOSCALE_SECRET"),
        ("CLOUDSTACK_KEY", "CLOUDSTACK_SECRET_KEY"),
        ("CLOUDSTACK_API_KEY", "EXOSCALE_SECRET_KEY"),
    ],
)
def test_every_name_the_exoscale_cli_knows(home: Home, key: str, secret: str) -> None:
    home.environ |= {key: "EXOx", secret: "y"}
    assert home.found().credentials == Credentials("EXOx", "y")


def test_half_a_pair_is_passed_over(home: Home) -> None:
    home.environ["EXOSCALE_API_KEY"] = "EXOhalf"
    aws_variables(home)
    assert home.found().credentials == Credentials("AWSenv", "s", "t")


def test_half_a_pair_alone_is_what_is_complained_of(home: Home) -> None:
    home.environ["EXOSCALE_API_KEY"] = "EXOhalf"
    with pytest.raises(CredentialError, match=r"environment, EXOSCALE_API_KEY: the secret .* is not set"):
        home.found()


def test_a_key_is_read_again_before_it_ends() -> None:
    now = time.time()
    lives = {seconds: Credentials("k", "s", expires=now + seconds).is_ending for seconds in (-1, 30, 600)}
    assert lives == {-1: True, 30: True, 600: False}
    assert not Credentials("k", "s").is_ending


class TestExoscaleFile:
    def test_an_account_that_is_not_there_is_not_replaced_by_the_only_one(self, home: Home) -> None:
        home.write("exoscale.toml", '[[accounts]]\nname="a"\nkey="k"\nsecret="s"\n')
        assert home.found().credentials == Credentials("k", "s")
        home.environ["EXOSCALE_ACCOUNT"] = "b"
        with pytest.raises(CredentialError, match=r"no account 'b' \(it has a\)"):
            home.found()

    def test_a_secret_ends_with_its_line(self, home: Home) -> None:
        command = r'["printf", "hush \\r\\n"]'
        home.write("exoscale.toml", f'[[accounts]]\nname="a"\nkey="k"\nsecretCommand={command}\n')
        assert home.found().credentials == Credentials("k", "hush ")

    def test_default_account_whatever_the_case_of_its_names(self, home: Home) -> None:
        exoscale_file(home)
        found = home.found()
        assert found.credentials == Credentials("EXOwork", "work-secret")
        assert found.place == Place("https://store-{zone}.example.net/", "ch-gva-2")
        assert found.where == "~/.config/exoscale/exoscale.toml, account work"

    def test_account_named_by_the_environment(self, home: Home) -> None:
        exoscale_file(home)
        home.environ["EXOSCALE_ACCOUNT"] = "home"
        assert home.found().credentials.access_key == "EXOhome"

    def test_file_named_by_the_environment(self, home: Home) -> None:
        exoscale_file(home)
        own = home.write("own.toml", '[[accounts]]\nname = "a"\nkey = "EXOown"\nsecret = "s"\n')
        home.environ["EXOSCALE_CONFIG"] = str(own)
        assert home.found().credentials.access_key == "EXOown"

    @pytest.mark.parametrize("name", [".exoscale/exoscale.toml", "exoscale.toml"])
    def test_older_places(self, home: Home, name: str) -> None:
        home.write(name, CLI_FILE)
        assert home.found().credentials.access_key == "EXOwork"

    def test_xdg_config_home(self, home: Home) -> None:
        home.write("elsewhere/exoscale/exoscale.toml", CLI_FILE)
        home.environ["XDG_CONFIG_HOME"] = str(home.path / "elsewhere")
        assert home.found().credentials.access_key == "EXOwork"

    def test_the_current_directory_is_not_looked_at(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        """A `secretCommand` found in whatever directory one stands in would run as the user."""
        trap = home.path / "ran"
        home.write("work/exoscale.toml", f'[[accounts]]\nname="a"\nkey="k"\nsecretCommand=["touch", "{trap}"]\n')
        monkeypatch.chdir(home.path / "work")
        with pytest.raises(CredentialError):
            home.found()
        assert not trap.exists()

    def test_secret_command_is_run_without_a_shell(self, home: Home) -> None:
        home.write(
            "exoscale.toml", '[[accounts]]\nname="a"\nkey="k"\nsecretCommand=["printf", "%s\\\\n\\\\n", "a b $HOME"]\n'
        )
        assert home.found().credentials == Credentials("k", "a b $HOME")

    def test_secret_command_that_fails_is_an_error_that_shows_no_output(self, home: Home) -> None:
        command = '["sh", "-c", "echo hush; exit 3"]'
        home.write("exoscale.toml", f'[[accounts]]\nname="a"\nkey="k"\nsecretCommand={command}\n')
        with pytest.raises(CredentialError, match="exit code 3") as caught:
            home.found()
        assert "hush" not in str(caught.value)

    def test_secret_command_that_is_text_is_refused(self, home: Home) -> None:
        home.write("exoscale.toml", '[[accounts]]\nname="a"\nkey="k"\nsecretCommand="pass show exo"\n')
        with pytest.raises(CredentialError, match="list of strings"):
            home.found()

    @pytest.mark.parametrize(
        ("text", "told"),
        [("defaultaccount = \n", ".*line 1"), ("accounts = 5\n", "write each account"), ("[accounts]\n", "write each")],
    )
    def test_broken_file_is_an_error_and_no_absence(self, home: Home, text: str, told: str) -> None:
        home.write("exoscale.toml", text)
        aws_files(home)
        with pytest.raises(CredentialError, match=rf"~/exoscale\.toml: {told}"):
            home.found()


class TestS3cfg:
    def test_as_the_guide_has_it(self, home: Home) -> None:
        home.write(
            ".s3cfg",
            """
            [default]
            host_base = sos-ch-dk-2.exo.io
            host_bucket = %(bucket)s.sos-ch-dk-2.exo.io
            access_key = $EXO_SOS_KEY
            secret_key = ${EXO_SOS_SECRET}
            use_https = True
            """,
        )
        home.environ |= {"EXO_SOS_KEY": "EXOguide", "EXO_SOS_SECRET": "a%b=c"}
        found = home.found()
        assert found.credentials == Credentials("EXOguide", "a%b=c")
        assert found.place == Place("https://sos-ch-dk-2.exo.io", "ch-dk-2")

    def test_other_host_over_http(self, home: Home) -> None:
        home.write(
            ".s3cfg", "[default]\naccess_key = k\nsecret_key = s\nhost_base = localhost:9000\nuse_https = False\n"
        )
        assert home.found().place == Place("http://localhost:9000")

    def test_the_host_that_s3cmd_fills_in_itself_is_no_choice(self, home: Home) -> None:
        home.write(".s3cfg", "[default]\naccess_key = k\nsecret_key = s\nhost_base = s3.amazonaws.com\n")
        assert home.found().place == NOWHERE

    def test_a_token_of_a_session(self, home: Home) -> None:
        home.write(".s3cfg", "[default]\naccess_key = k\nsecret_key = s\naccess_token = t\n")
        assert home.found().credentials == Credentials("k", "s", "t")


class TestAwsFiles:
    def test_the_file_of_keys_comes_before_that_of_settings(self, home: Home) -> None:
        home.write(".aws/config", "[default]\naws_access_key_id = old\naws_secret_access_key = old\n")
        home.write(
            ".aws/credentials",
            "[default]\naws_access_key_id = k\naws_secret_access_key = s%1\naws_session_token = t\n",
        )
        assert home.found().credentials == Credentials("k", "s%1", "t")

    def test_profile_over_both_files_with_its_endpoint(self, home: Home) -> None:
        home.write(".aws/credentials", "[exo]\naws_access_key_id = k\naws_secret_access_key = a%b\n")
        home.write(".aws/config", "[profile exo]\nregion = ch-gva-2\nendpoint_url = https://sos-ch-gva-2.exo.io\n")
        found = home.found("exo")
        assert found.credentials == Credentials("k", "a%b")
        assert found.place == Place("https://sos-ch-gva-2.exo.io", "ch-gva-2")

    def test_endpoint_of_the_services_section(self, home: Home) -> None:
        home.write(".aws/credentials", "[default]\naws_access_key_id = k\naws_secret_access_key = s\n")
        home.write(
            ".aws/config",
            """
            [default]
            services = exo
            endpoint_url = https://all.example

            [services exo]
            ec2 =
              endpoint_url = https://ec2.example
            s3 =
              addressing_style = path
              endpoint_url = https://sos-at-vie-1.exo.io
            """,
        )
        assert home.found().place.endpoint == "https://sos-at-vie-1.exo.io"

    def test_files_and_profile_named_by_the_environment(self, home: Home) -> None:
        path = home.write("keys", "[other]\naws_access_key_id = k\naws_secret_access_key = s\naws_session_token = t\n")
        home.environ |= {"AWS_SHARED_CREDENTIALS_FILE": str(path), "AWS_PROFILE": "other"}
        assert home.found().credentials == Credentials("k", "s", "t")

    def test_region_of_amazon_without_an_endpoint_names_no_zone(self, home: Home) -> None:
        aws_variables(home)
        home.environ["AWS_REGION"] = "eu-west-1"
        assert home.found().place == NOWHERE

    def test_unreadable_file_is_an_error(self, home: Home) -> None:
        home.write(".aws/credentials", "no section here\n")
        with pytest.raises(CredentialError, match="section"):
            home.found()


def test_refresh_reads_again_and_keeps_the_old_key_when_it_cannot(home: Home) -> None:
    aws_files(home)
    finder = home.finder()
    home.write(".aws/credentials", "[default]\naws_access_key_id = NEW\naws_secret_access_key = n\n")
    assert finder.current().access_key == "AWSfile"
    assert finder.refresh() == finder.current() == Credentials("NEW", "n")
    (home.path / ".aws/credentials").unlink()
    with pytest.raises(CredentialError):
        finder.refresh()
    assert finder.current() == Credentials("NEW", "n")


def test_no_repr_shows_a_secret(home: Home) -> None:
    secret = Credentials("EXOkey", "hush-hush", "token-token")
    shown = repr(Found(secret, "somewhere")) + str(secret)
    assert "EXOkey" in shown
    assert "hush" not in shown
    assert "token-token" not in shown


DK, VIE = "https://sos-ch-dk-2.exo.io", "https://sos-at-vie-1.exo.io"


@pytest.mark.parametrize(
    ("named", "environ", "source", "expected"),
    [
        (NOWHERE, {}, NOWHERE, Place(DK, "ch-dk-2")),
        (Place(zone="at-vie-1"), {}, NOWHERE, Place(VIE, "at-vie-1")),
        (Place("http://localhost:9000"), {}, NOWHERE, Place("http://localhost:9000", "")),
        (Place(VIE), {}, NOWHERE, Place(VIE, "at-vie-1")),
        (NOWHERE, {"EXOSCALE_ZONE": "at-vie-1"}, Place(zone="ch-gva-2"), Place(VIE, "at-vie-1")),
        (NOWHERE, {"EXOSCALE_SOS_ENDPOINT": "https://s-{zone}.x/"}, Place(zone="z"), Place("https://s-z.x", "z")),
        (Place(zone="at-vie-1"), {}, Place("http://fixed.x"), Place(VIE, "at-vie-1")),
        (Place(zone="at-vie-1"), {"EXOSCALE_SOS_ENDPOINT": "http://fixed.x"}, NOWHERE, Place(VIE, "at-vie-1")),
        (Place("http://b.x", "z"), {"EXOSCALE_SOS_ENDPOINT": "http://{zone}.x"}, NOWHERE, Place("http://b.x", "z")),
        (Place(zone="at-vie-1"), {}, Place("http://{zone}.x"), Place("http://at-vie-1.x", "at-vie-1")),
        (NOWHERE, {}, Place("http://fixed.x", "eu-west-1"), Place("http://fixed.x", "eu-west-1")),
        (Place("https://{zone}.x", "z"), {}, NOWHERE, Place("https://z.x", "z")),
    ],
)
def test_place(home: Home, named: Place, environ: Mapping[str, str], source: Place, expected: Place) -> None:
    home.environ |= environ
    found = Found(Credentials("k", "s"), "test", source)
    chosen = key_search.place(named, found, home.around())
    assert (chosen.url, chosen.zone) == (expected.endpoint, expected.zone)


def test_place_of_a_named_profile_comes_before_the_environment(home: Home) -> None:
    home.environ["EXOSCALE_ZONE"] = "ch-gva-2"
    found = Found(Credentials("k", "s"), "test", Place("http://profile.x"))
    assert key_search.place(NOWHERE, found, home.around("p")).url == "http://profile.x"
    assert key_search.place(NOWHERE, found, home.around()).url == "https://sos-ch-gva-2.exo.io"


def test_an_endpoint_of_one_zone_is_not_moved_by_the_name_of_another() -> None:
    named = Place("https://sos-ch-dk-2.exo.io", "ch-gva-2")
    assert zones.choose([named]) == named


def test_region_is_the_zone() -> None:
    assert Place(DK, "ch-dk-2").region == "ch-dk-2"
    assert Place("http://localhost").region == "us-east-1"


@pytest.mark.parametrize("name", ["at-vie-1", "bg-sof-1", "ch-dk-2", "ch-gva-2", "de-fra-1", "hr-zag-1"])
def test_zones_look_like_zones(name: str) -> None:
    assert zones.is_usual(name)
    assert zones.of_endpoint(f"https://sos-{name}.exo.io") == name


@pytest.mark.parametrize("name", ["eu-west-1", "us-east-1", "ch-dk2", "", "CH-DK-2"])
def test_other_names_do_not(name: str) -> None:
    assert not zones.is_usual(name)
