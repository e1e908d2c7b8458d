import pytest

from chainlift.errors import InputError
from chainlift.host.apt.sources import replace_suite

STANZAS = """\
# the archive
Types: deb deb-src
URIs: mirror:/etc/mirrors
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: mirror:/etc/security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: mirror:/etc/disabled
Suites: bookworm
Components: main
"""


def etc(path, *, release="bookworm", identity="debian", **files):
    (path / "apt/sources.list.d").mkdir(parents=True)
    (path / "os-release").write_text(f'ID={identity}\nVERSION_CODENAME="{release}"\n')
    for name, text in files.items():
        stem, _, suffix = name.partition("_")
        place = "apt/sources.list" if stem == "main" else f"apt/sources.list.d/{stem}.{suffix}"
        (path / place).write_text(text)
    return path


def test_a_stanza_keeps_everything_but_types_suites_and_components(tmp_path):
    sources = replace_suite(etc(tmp_path, debian_sources=STANZAS), ["trixie", "trixie-backports"])
    assert sources == {
        "debian.sources": "Types: deb\nURIs: mirror:/etc/mirrors\nSuites: trixie trixie-backports\nComponents: main\n"
        "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
    }


def test_one_line_sources_keep_their_options_and_others_are_left_out(tmp_path):
    lines = (
        "# deb mirror:/x bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] mirror:/etc/mirrors bookworm main contrib # ours\n"
        "deb mirror:/etc/other nodistro main\n"
        "deb-src mirror:/etc/mirrors bookworm main\n"
    )
    expected = "deb [arch=amd64 signed-by=/k.gpg] mirror:/etc/mirrors bullseye main\n"
    sources = replace_suite(etc(tmp_path, main_=lines, x_list=lines, y_save=lines), ["bullseye"])
    assert sources == {"sources.list": expected, "x.list": expected}


@pytest.mark.parametrize("facts", [{"identity": "ubuntu"}, {"release": "trixie"}])
def test_a_host_without_a_debian_source_of_its_own_release_is_refused(tmp_path, facts):
    with pytest.raises(InputError, match="no Debian source"):
        replace_suite(etc(tmp_path, debian_sources=STANZAS, **facts), ["bullseye"])
