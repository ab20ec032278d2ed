"""Sites are spelled one way: what parse reads, str writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeroline import site
from zeroline.errors import SiteError
from zeroline.site import Site, as_site

names = st.from_regex(r"[a-z_][a-z0-9_]{0,5}(\.[a-z0-9_]{1,5}){0,3}", fullmatch=True)
modules = st.builds(Site, st.just("module"), names, st.none() | st.integers(0, 3) | st.just("hidden"), st.integers(0, 2))
every = st.builds(Site, st.just("all"), names.map(lambda name: f"{name}.*"))
inputs = st.builds(Site, st.sampled_from(["input", "embedding"]), st.none() | st.from_regex(r"[a-z_]{1,8}", fullmatch=True))


@given(st.one_of(modules, inputs, every, st.lists(modules | inputs | every, min_size=2, max_size=3).map(lambda parts: site.joint(*parts))))
def test_parse_reads_what_str_writes(one):
    assert Site.parse(str(one)) == one


@pytest.mark.parametrize("text", ["a b", "a[", "a#x", "", "layer[0]#"])
def test_nonsense_is_one_clear_error(text):
    with pytest.raises(SiteError, match="cannot read the site"):
        Site.parse(text)


def test_a_number_is_no_site():
    with pytest.raises(SiteError, match="not int"):
        as_site(3)
