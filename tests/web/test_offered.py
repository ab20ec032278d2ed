"""The models that a page offers: what is named at the start, and nothing else whatever is asked."""

import threading
import time

import pytest
from PIL import Image

from zeroline import zoo
from zeroline.errors import LoadError, NotFoundError, UsageError
from zeroline.web import offered as module
from zeroline.web.answers import Answers, Asked
from zeroline.web.limits import Limits
from zeroline.web.offered import Offered

ELSEWHERE = ("hf:/etc", "hf:google/vit-base-patch16-224", "zoo:../x", "zoo:", "zoo:digits-vit ", "folder:../x", "folder:", "folder:/etc", "/etc", "/etc/passwd",
    "../..", "", "digits-vit", "timm:vit_tiny_patch16_224", "open_clip:x/y", "ZOO:digits-vit", "<img src=x onerror=alert(1)>")  # fmt: skip


@pytest.fixture
def picture():
    return Image.new("RGB", (32, 32), "teal")


def test_the_zoo_is_offered_and_folders_under_their_own_names(hostile):
    assert Offered().names == tuple(f"zoo:{name}" for name in zoo.MODELS)
    assert Offered([hostile]).names == (*Offered().names, "folder:hostile")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_model_that_is_not_offered_is_refused_by_its_name_and_the_offered_ones(name, hostile, picture):
    offered = Offered([hostile])
    answers = Answers(offered, Limits())
    asked = Asked(picture, name, text="x")
    for ask in (answers.explained, answers.grounded, lambda a: answers.rewritten(a, "second", "4/255"), lambda a: answers.compared(a, a)):
        with pytest.raises(NotFoundError) as caught:
            ask(asked)
        assert str(caught.value) == f"the model {name!r} is not offered here; possible are {', '.join(offered.names)}"
        assert str(hostile.parent) not in str(caught.value)
    with pytest.raises(NotFoundError), offered.asked(name):
        pass
    with pytest.raises(NotFoundError):
        offered.sites(name)


def test_the_absolute_path_of_an_offered_folder_is_no_name_of_it(hostile):
    offered = Offered([hostile])
    for name in (f"folder:{hostile}", f"hf:{hostile}", str(hostile)):
        with pytest.raises(NotFoundError), offered.asked(name):
            pass


def test_nothing_is_loaded_for_a_model_that_is_not_offered(monkeypatch):
    monkeypatch.setattr(module, "load_sourced", lambda *_: pytest.fail("loaded"))
    for name in ELSEWHERE:
        with pytest.raises(NotFoundError), Offered().asked(name):
            pass


def test_two_folders_of_one_name_are_refused_at_the_start(hostile, tmp_path):
    (tmp_path / "hostile").symlink_to(hostile)  # the same folder by another way
    for twice in ([hostile, hostile], [hostile, tmp_path / "hostile"]):
        with pytest.raises(UsageError, match="two model folders are called 'hostile'"):
            Offered(twice)


def test_a_folder_without_a_model_is_refused_at_the_start(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(LoadError, match="it has no config.json"):
            Offered([folder])


@pytest.mark.parametrize("config", ["", "{", "[]", "{}", '{"model_type": "vit"}', '{"model_type": "nothing"}'])
def test_a_broken_folder_is_refused_at_the_start(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises((LoadError, UsageError)):
        Offered([tmp_path])


def test_folders_are_loaded_at_the_start_and_the_zoo_when_it_is_asked(hostile, monkeypatch):
    loaded = []
    load = module.load_sourced
    monkeypatch.setattr(module, "load_sourced", lambda text: (loaded.append(text), load(text))[1])
    offered = Offered([hostile])
    assert loaded == [f"hf:{hostile.resolve()}"]
    for _ in range(2):
        with offered.asked("zoo:digits-cnn"), offered.asked("folder:hostile"):
            pass
    assert loaded == [f"hf:{hostile.resolve()}", "zoo:digits-cnn"]


def test_sites_are_the_input_and_the_blocks(hostile):
    offered = Offered([hostile])
    assert offered.sites("folder:hostile") == ("input:pixel_values", "vit.layers.0", "vit.layers.1")
    assert offered.sites("zoo:digits-vit") == ("input:pixel_values", *(f"vit.layers.{n}" for n in range(4)))


def test_a_model_is_held_by_one_question_and_another_model_is_free_meanwhile(hostile):
    offered, entered, order = Offered([hostile]), threading.Event(), []

    def second():
        entered.wait(5)
        with offered.asked("folder:hostile"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with offered.asked("folder:hostile"):
        entered.set()
        with offered.asked("zoo:digits-cnn"):
            order.append("another")
        time.sleep(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["another", "first", "second"]


def test_a_question_that_fails_gives_its_model_back(hostile):
    offered = Offered([hostile])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), offered.asked("folder:hostile"):
            raise ZeroDivisionError


def test_an_error_about_a_folder_says_its_name_and_not_its_path(hostile, picture):
    answers = Answers(Offered([hostile]), Limits())
    said = []
    for ask in (answers.explained, answers.grounded):
        with pytest.raises(UsageError) as caught:
            ask(Asked(picture, "folder:hostile", text="a word"))
        said.append(str(caught.value))
    assert not [one for one in said if str(hostile.parent) in one]
    assert "folder:hostile" in said[0]
