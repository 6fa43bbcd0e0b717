import re

import pytest

from sllmd.core.errors import InvalidRequest, UnsupportedCheckpoint
from sllmd.text.chat import ChatTemplate

TALK = [{"role": "user", "content": "hi <b>&</b>"}, {"role": "assistant", "content": "yes"}]


def render(source, messages=TALK, **extra):
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **extra)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<s>hi <b>&</b>"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "hi <b>&</b>"}'),
        ("{{ 'é' | tojson }}", '"é"'),
        ("{{ {'a': 1} | tojson(indent=1) }}", '{\n "a": 1\n}'),
        (
            "{% for m in messages %}\n  {% if true %}\n{{ m.role }};\n  {% endif %}\n{% endfor %}",
            "user;\nassistant;\n",
        ),
        (
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "user",
        ),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}!", "yes!"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{{ tools is none }} {{ documents is none }}", "True True"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
        ("{{ enable_thinking }}", "False"),
    ],
)
def test_what_published_templates_use(source, expected):
    assert render(source, enable_thinking=False) == expected


def test_the_date_is_to_be_had():
    assert re.fullmatch(r"\d{2} \w{3} \d{4}", render("{{ strftime_now('%d %b %Y') }}"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "refuses: roles must alternate"),
        ("{{ messages[7].content.x }}", "cannot render"),
        ("{{ 1 + 'a' }}", "cannot render"),
        ("{{ 1 // 0 }}", "cannot render"),
    ],
)
def test_refusals_are_the_requests_fault(source, said):
    with pytest.raises(InvalidRequest, match=said):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ range(10**9) | list }}",
    ],
)
def test_the_sandbox_holds(source):
    try:
        text = render(source)
    except InvalidRequest:
        return
    assert text == ""


def test_a_template_that_is_none_is_the_checkpoints_fault():
    with pytest.raises(UnsupportedCheckpoint, match="cannot be compiled"):
        render("{% for %}")
