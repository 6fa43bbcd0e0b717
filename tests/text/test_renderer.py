import asyncio

import pytest

from sllmd.core.errors import InvalidRequest, UnsupportedCheckpoint
from sllmd.text.chat import ChatTemplate
from sllmd.text.renderer import Renderer

TALK = [{"role": "user", "content": "hé 🙂"}]


@pytest.fixture
async def renderer():
    renderer = Renderer(seconds_max=30.0)
    yield renderer
    await renderer.close()


def template(source):
    return ChatTemplate(source, {"bos_token": "<s>"})


async def render(renderer, source, **values):
    return await renderer.render(template(source), TALK, values)


async def test_what_comes_back_is_what_the_template_writes(renderer):
    source = "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}{{ x }}"
    assert await render(renderer, source, x=1) == "<s>hé 🙂>1"
    assert await render(renderer, source, x=2, add_generation_prompt=False) == "<s>hé 🙂2"
    assert len(await render(renderer, "{{ 'a' * 3000000 }}")) == 3_000_000


async def test_what_lies_in_the_working_directory_is_not_run(renderer, monkeypatch, tmp_path):
    (tmp_path / "queue.py").write_text("raise ImportError('not the queue of the library')")
    (tmp_path / "jinja2.py").write_text("raise ImportError('not the library')")
    monkeypatch.chdir(tmp_path)
    assert await render(renderer, "{{ 1 + 1 }}") == "2"


async def test_errors_are_those_of_the_template(renderer):
    with pytest.raises(InvalidRequest, match="no chat template") as caught:
        await render(renderer, None)
    assert caught.value.param == "model"
    with pytest.raises(InvalidRequest, match="refuses: no") as caught:
        await render(renderer, "{{ raise_exception('no') }}")
    assert caught.value.param == "messages"
    with pytest.raises(UnsupportedCheckpoint, match="cannot be compiled") as caught:
        await render(renderer, "{% for %}")
    assert "valid chat_template" in caught.value.hint


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{% set ns = namespace(s='a') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ '%10000000000d' | format(1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 100000000 }}",
    ],
)
async def test_memory_is_bounded(renderer, source):
    with pytest.raises(InvalidRequest, match="takes too much memory"):
        await render(renderer, source)
    assert await render(renderer, "still here") == "still here"


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("source", [LOOPS, "{{ 10 ** (10 ** 9) }}"])
async def test_time_is_bounded_and_the_next_conversation_is_rendered(source):
    renderer = Renderer(seconds_max=1.5)
    with pytest.raises(InvalidRequest, match=r"takes more than 1\.5 s"):
        await render(renderer, source)
    assert await render(renderer, "still here") == "still here"
    await renderer.close()


async def test_one_that_leaves_takes_nothing_along(renderer):
    leaving = asyncio.create_task(render(renderer, LOOPS))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(leaving, 0.3)
    answers = await asyncio.gather(*(render(renderer, "{{ x }}", x=number) for number in range(5)))
    assert answers == ["0", "1", "2", "3", "4"]
