"""Platforms: names, normal forms, fallbacks, choice; where containerd has a rule, its rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platforms import Platform, candidates, normalise, satisfies, select
from platforms.errors import UsageError
from platforms.host import default_platform
from platforms.parsing import parse, parse_list
from platforms.platform import ARCHITECTURES, SYSTEMS


@pytest.mark.parametrize(
    ("text", "platform", "shown"),
    [
        ("linux/amd64", Platform("linux", "amd64"), "linux/amd64"),
        ("linux/amd64/v1", Platform("linux", "amd64"), "linux/amd64"),
        ("linux/amd64/v3", Platform("linux", "amd64", "v3"), "linux/amd64/v3"),
        ("linux/x86_64", Platform("linux", "amd64"), "linux/amd64"),
        ("linux/x86-64/v2", Platform("linux", "amd64", "v2"), "linux/amd64/v2"),
        ("linux/i386", Platform("linux", "386"), "linux/386"),
        ("linux/arm64", Platform("linux", "arm64"), "linux/arm64"),
        ("linux/arm64/v8", Platform("linux", "arm64"), "linux/arm64"),
        ("linux/arm64/8", Platform("linux", "arm64"), "linux/arm64"),
        ("linux/arm64/v8.0", Platform("linux", "arm64"), "linux/arm64"),
        ("linux/arm64/v8.2", Platform("linux", "arm64", "v8.2"), "linux/arm64/v8.2"),
        ("linux/arm64/9", Platform("linux", "arm64", "v9"), "linux/arm64/v9"),
        ("linux/arm64/v9.0", Platform("linux", "arm64", "v9"), "linux/arm64/v9"),
        ("linux/aarch64", Platform("linux", "arm64"), "linux/arm64"),
        ("LINUX/AArch64", Platform("linux", "arm64"), "linux/arm64"),
        ("linux/arm", Platform("linux", "arm", "v7"), "linux/arm/v7"),
        ("linux/arm/7", Platform("linux", "arm", "v7"), "linux/arm/v7"),
        ("linux/arm/V6", Platform("linux", "arm", "v6"), "linux/arm/v6"),
        ("linux/armhf", Platform("linux", "arm", "v7"), "linux/arm/v7"),
        ("linux/armel", Platform("linux", "arm", "v6"), "linux/arm/v6"),
        ("linux/riscv64/rva22u64", Platform("linux", "riscv64", "rva22u64"), "linux/riscv64/rva22u64"),
        ("macos/arm64", Platform("darwin", "arm64"), "darwin/arm64"),
        ("windows(10.0.17763)/amd64", Platform("windows", "amd64", "", "10.0.17763"), "windows(10.0.17763)/amd64"),
        (
            "windows(10.0.17763+win32k+a%2Bb)/amd64",
            Platform("windows", "amd64", "", "10.0.17763", ("a+b", "win32k")),
            "windows(10.0.17763+a%2Bb+win32k)/amd64",
        ),
        ("linux(+sve)/arm64", Platform("linux", "arm64", "", "", ("sve",)), "linux(+sve)/arm64"),
    ],
)
def test_text_becomes_one_normal_form_and_is_shown_as_buildx_shows_it(text, platform, shown):
    assert parse(text) == platform
    assert str(platform) == shown
    assert parse(shown) == platform


def test_a_part_is_completed_by_this_host():
    own = default_platform()
    assert parse("linux") == own
    assert parse("local") == own
    assert parse("darwin") == Platform("darwin", own.architecture, own.variant)
    assert parse("arm64") == Platform("linux", "arm64")
    assert parse("aarch64") == Platform("linux", "arm64")
    assert parse("arm") == Platform("linux", "arm", "v7")
    assert parse("armel") == Platform("linux", "arm", "v6")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("linux/amd46", "did you mean linux/amd64"),
        ("linux/arm46", "linux/arm64"),
        ("linx/amd64", "did you mean linux/amd64?"),
        ("linux/ppc64el", "did you mean linux/ppc64le?"),
        ("linux/armv7", "did you mean linux/arm/v7?"),
        ("linux/armv7l", "did you mean linux/arm/v7?"),
        ("armv7", "did you mean linux/arm/v7?"),
        ("linux/arm64v8", "did you mean linux/arm64?"),
        ("x64", "did you mean linux/amd64?"),
        ("linux/loongarch64", "did you mean linux/loong64?"),
        ("quux", "the usual ones are linux/amd64, linux/arm64"),
        ("linux/quux", "the usual ones are linux/amd64, linux/arm64"),
        ("linux/amd64/v5", "use one of its variants: v1, v2, v3, v4"),
        ("linux/arm/v9", "use one of its variants: v5, v6, v7, v8"),
        ("linux/arm64/v8.10", "v8.9"),
        ("linux/amd64/v2/x", "did you mean linux/amd64?"),
        ("linux/", "the usual ones"),
        ("/amd64", "amd64"),
        ("", "the usual ones"),
        ("*", "the usual ones"),
        ("linux/*", "the usual ones"),
        ("linux/amd64 ", "amd64"),
        ("linux amd64", "the usual ones"),
    ],
)
def test_what_nobody_knows_is_refused_with_the_nearest_names(text, said):
    with pytest.raises(UsageError) as caught:
        parse(text)
    problem = caught.value.problem
    assert repr(text) in problem.what
    assert problem.why
    assert said in problem.remedy


def test_a_list_keeps_its_order_and_each_platform_once():
    assert parse_list(["linux/amd64, linux/arm64/v8", "linux/arm64,arm", "linux/amd64/v1"]) == (
        Platform("linux", "amd64"),
        Platform("linux", "arm64"),
        Platform("linux", "arm", "v7"),
    )
    assert parse_list(["local", str(default_platform())]) == (default_platform(),)
    assert parse_list([]) == ()


@pytest.mark.parametrize("value", ["", "linux/amd64,", ",linux/amd64", "linux/amd64,,linux/arm64", " "])
def test_an_empty_place_in_a_list_is_an_error(value):
    with pytest.raises(UsageError, match="empty platform"):
        parse_list([value])


@given(
    st.builds(
        Platform,
        st.sampled_from(SYSTEMS),
        st.sampled_from(ARCHITECTURES),
        st.sampled_from(["", "v7", "v8", "v2"]),
        st.text("0123456789.%+()/", max_size=6),
        st.lists(st.text("abc%+()/", min_size=1, max_size=4), max_size=2).map(tuple),
    )
)
def test_shown_text_reads_back_as_the_same_platform(platform):
    own = normalise(platform)
    assert normalise(own) == own
    try:
        again = parse(str(platform))
    except UsageError:  # a variant that this architecture does not have
        assert own.architecture in ("amd64", "arm", "arm64")
    else:
        assert again == own


# For each platform the images that run there, best first, and images that do not.
FALLBACKS = {
    "linux/amd64": (
        ["linux/amd64", "linux/386"],
        ["linux/amd64/v2", "linux/arm/v7", "linux/arm64", "windows/amd64"],
    ),
    "linux/amd64/v3": (
        ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"],
        ["linux/amd64/v4", "linux/arm64"],
    ),
    "linux/386": (["linux/386"], ["linux/amd64", "linux/arm/v7", "windows/386"]),
    "linux/arm/v8": (
        ["linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
        ["linux/arm64", "linux/amd64"],
    ),
    "linux/arm": (["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"], ["linux/arm/v8", "linux/arm64"]),
    "linux/arm/v6": (["linux/arm/v6", "linux/arm/v5"], ["linux/arm/v7", "linux/arm/v8", "linux/arm64"]),
    "linux/arm/v5": (["linux/arm/v5"], ["linux/arm/v6", "linux/arm/v7"]),
    "linux/arm64": (
        ["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
        ["linux/arm64/v8.1", "linux/arm64/v9", "linux/amd64", "darwin/arm64"],
    ),
    "linux/arm64/v8.2": (
        ["linux/arm64/v8.2", "linux/arm64/v8.1", "linux/arm64", "linux/arm/v8"],
        ["linux/arm64/v8.3", "linux/arm64/v9"],
    ),
    "linux/arm64/v9": (
        ["linux/arm64/v9", "linux/arm64/v8.5", "linux/arm64/v8.1", "linux/arm64", "linux/arm/v8"],
        ["linux/arm64/v9.1", "linux/arm64/v8.6"],
    ),
    "linux/arm64/v9.6": (
        ["linux/arm64/v9.6", "linux/arm64/v9.1", "linux/arm64/v9", "linux/arm64/v8.9", "linux/arm64", "linux/arm/v5"],
        ["linux/arm64/v9.7", "linux/amd64"],
    ),
    "linux/riscv64": (["linux/riscv64"], ["linux/riscv64/rva22u64", "linux/arm64"]),
    "windows/amd64": (["windows/amd64"], ["linux/amd64", "windows/arm64"]),
}


@pytest.mark.parametrize("want", FALLBACKS)
def test_fallbacks(want):
    runs, refused = ([parse(text) for text in texts] for texts in FALLBACKS[want])
    order = candidates(parse(want))
    places = [order.index(image) for image in runs]
    assert places[0] == 0
    assert places == sorted(places)
    assert not set(order) & set(refused)
    for image in runs:
        assert select(parse(want), [image]) == 0
    for image in refused:
        assert select(parse(want), [image]) is None


def test_the_variants_that_v9_includes_end_with_v8_9():
    assert candidates(Platform("linux", "arm64", "v9.4"))[5:7] == (
        Platform("linux", "arm64", "v8.9"),
        Platform("linux", "arm64", "v8.8"),
    )
    assert candidates(Platform("linux", "arm64", "v12")) == (Platform("linux", "arm64", "v12"),)


def test_the_nearest_image_of_an_index_is_chosen():
    index = [parse(each) for each in ("linux/386", "linux/arm/v5", "linux/arm/v7", "linux/amd64", "linux/arm/v6")]
    assert select(parse("linux/amd64"), index) == 3
    assert select(parse("linux/amd64/v3"), index) == 3
    assert select(parse("linux/arm64"), index) == 2
    assert select(parse("linux/arm/v6"), index) == 4
    assert select(parse("linux/s390x"), index) is None
    assert select(parse("linux/amd64"), []) is None


def test_an_index_may_name_its_platforms_in_any_form():
    index = [Platform("unknown", "unknown"), Platform("Linux", "aarch64", "v8"), Platform("linux", "arm64")]
    assert select(parse("linux/arm64"), index) == 1
    assert select(parse("linux/arm/v7"), [Platform("linux", "arm")]) == 0
    assert select(parse("linux/arm/v6"), [Platform("linux", "arm")]) is None


def test_an_image_needs_no_feature_that_was_not_asked_for():
    plain, one = Platform("linux", "amd64"), Platform("linux", "amd64", os_features=("a",))
    both = Platform("linux", "amd64", os_features=("b", "a"))
    assert select(plain, [one]) is None
    assert select(one, [both, plain]) == 1
    assert select(both, [plain, one, both]) == 2
    assert select(both, [plain, one]) == 1


def test_windows_runs_images_of_its_own_build_only():
    index = [parse("windows(10.0.17763.1)/amd64"), parse("windows(10.0.20348.5)/amd64")]
    assert select(parse("windows(10.0.20348.9)/amd64"), index) == 1
    assert select(parse("windows(10.0.26100)/amd64"), index) is None
    assert select(parse("windows/amd64"), index) == 0


@pytest.mark.parametrize(
    ("want", "image", "does"),
    [
        ("linux/amd64", Platform("linux", "amd64"), True),
        ("linux/amd64", Platform("linux", "x86_64"), True),
        ("linux/amd64", Platform("linux", "386"), False),
        ("linux/amd64", Platform("linux", "arm64"), False),
        ("linux/amd64", Platform("windows", "amd64"), False),
        ("linux/amd64", Platform("linux", "amd64", "v2"), False),
        ("linux/amd64/v3", Platform("linux", "amd64"), True),
        ("linux/amd64/v3", Platform("linux", "amd64", "v2"), False),
        ("linux/arm64", Platform("linux", "arm64", "v8"), True),
        ("linux/arm64", Platform("linux", "arm", "v7"), False),
        ("linux/arm64/v9", Platform("linux", "arm64", "v8"), False),
        ("linux/arm/v7", Platform("linux", "arm"), True),
        ("linux/arm/v6", Platform("linux", "arm"), True),
        ("linux/arm/v6", Platform("linux", "arm", "v7"), False),
        ("linux/arm/v6", Platform("linux", "armhf"), False),
        ("linux/arm/v7", Platform("linux", "arm", "v6"), False),
        ("linux/amd64", Platform("", ""), False),
        ("linux/amd64", Platform("linux", "amd64", os_features=("x",)), False),
    ],
)
def test_what_may_be_published_as_what(want, image, does):
    assert satisfies(parse(want), image) is does


def test_platforms_sort_and_hash():
    platforms = {parse("linux/arm64"), parse("linux/amd64"), parse("linux/aarch64")}
    assert [str(each) for each in sorted(platforms)] == ["linux/amd64", "linux/arm64"]
