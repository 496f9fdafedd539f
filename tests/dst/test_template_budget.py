"""A template does a bounded amount of work and makes texts of bounded size, whatever it says."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dst
from dst import TemplateError, template_budget
from dst.jinja_environment import Environment
from dst.template import BUILTIN, Template

ANSWER = "{% generation %}{{ messages[1]['content'] }}</s>{% endgeneration %}"
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "MOST_ROUNDS", 500)
    monkeypatch.setattr(template_budget, "MOST_CHARACTERS", 1000)
    monkeypatch.setattr(template_budget, "MOST_WIDTH", 100)


def rendered(source: str) -> str:
    return Template("t", source + ANSWER).render(TALK, bos_token="", eos_token="</s>").text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for a in range(30) %}{% for b in range(30) %}{% endfor %}{% endfor %}", "loops have more than 500 rounds"),
        ("{% for a in 'x' * 600 %}{% endfor %}", "loops have more than 500 rounds"),
        (
            "{% for a in ('x ' * 300) | list if a != 'y' %}{{ loop.index }}{% endfor %}",
            "loops have more than 500 rounds",
        ),
        (
            "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(12) }}",
            "loops have more than 500 rounds",
        ),
        (
            "{% set ns = namespace(x=[1, 2]) %}{% for _ in range(9) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
            "{% for a in ns.x recursive %}{% if a is iterable %}{{ loop(a) }}{% endif %}{% endfor %}",
            "loops have more than 500 rounds",
        ),
        ("{{ 'x' * 1001 }}", "a text or list of 1,001"),
        ("{{ 1001 * 'x' }}", "a text or list of 1,001"),
        ("{{ [1] * 1001 }}", "a text or list of 1,001"),
        ("{% set ns = namespace(s='ab') %}{% for _ in range(20) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "1,024"),
        ("{% set ns = namespace(s='ab') %}{% for _ in range(20) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "1,024"),
        ("{% for _ in range(300) %}12345{% endfor %}", "a text or list of 1,"),
        ("{{ 'x' | center(101) }}", "a width of 101"),
        ("{{ 'x'.ljust(101) }}", "a width of 101"),
        ("{{ 'x' | indent(width=101) }}", "a width of 101"),
        ("{{ [1] | batch(101, 0) | list }}", "a width of 101"),
        ("{{ '%099999d' % 1 }}", "a format has a width"),
        ("{{ '{:>99999}'.format(1) }}", "a format has a width"),
        ("{{ '{:{}}'.format(1, 50) }}", "a format has a width"),
        ("{{ '%*d' | format(50, 1) }}", "a format has a width"),
        ("{{ ('x' * 100) | replace('x', 'y' * 50) }}", "a text or list of 5,100"),
        ("{{ ('x' * 100).replace('x', 'y' * 50) }}", "a text or list of 5,100"),
        ("{{ ['x' * 400, 'y' * 400] | join('z' * 300) }}", "a text or list of 1,400"),
        ("{{ ('z' * 300).join(['x' * 400, 'y' * 400]) }}", "a text or list of 1,400"),
        ("{{ 2 ** 5000 }}", "a number of 10,000 bits"),
    ],
)
def test_what_would_be_too_much_is_an_error_of_the_template_before_it_is_done(source: str, words: str) -> None:
    with pytest.raises(TemplateError, match=r"^template t, line (1|\?): ") as error:
        rendered(source)
    assert words in str(error.value)


def test_a_render_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "MOST_ROUNDS", 10**9)
    monkeypatch.setattr(template_budget, "MOST_SECONDS", 0.0)
    with pytest.raises(TemplateError, match="it takes longer than 0 s"):
        rendered("{% for a in range(9000) %}{% endfor %}{% for a in range(9000) %}{% endfor %}")


def test_each_render_has_the_whole_budget() -> None:
    template = Template("t", "{% for a in range(300) %}{% endfor %}" + ANSWER)
    texts = {template.render(TALK, bos_token="", eos_token="</s>").text for _ in range(3)}
    assert texts == {"Hello.</s>"}


def test_templates_of_endless_loops_are_refused_before_any_data_is_read(byte_tokenizer: dst.TextTokenizer) -> None:
    template = Template("t", "{% for a in range(30) %}{% for b in range(30) %}{% endfor %}{% endfor %}" + ANSWER)
    with pytest.raises(TemplateError, match="more than 500 rounds"):
        dst.ChatTokenizer(template, byte_tokenizer)


def test_built_in_templates_keep_within_a_small_part_of_the_budget() -> None:
    for name in set(BUILTIN) - {"plain"}:  # which is for captions
        assert dst.load_template(name).render(TALK, bos_token="<s>", eos_token="</s>").text


EXPRESSIONS = st.sampled_from(
    [
        "{% for x in items %}{{ loop.index }}/{{ loop.length }}{{ x }}{{ ',' if not loop.last }}{% endfor %}",
        "{% for x in items if x != 'b' %}{{ loop.previtem }}{{ loop.nextitem }}{% else %}none{% endfor %}",
        "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k ~ '=' ~ v }};{% endfor %}",
        "{% for x in items | reverse %}{{ x + '!' }}{% break %}{% endfor %}",
        "{% macro m(a) %}[{{ a }}]{% endmacro %}{% for x in items %}{{ m(x) }}{% endfor %}",
        "{{ items | join('-') }}{{ 'a' ~ 1 ~ none }}{{ '%s-%03d' % ('x', 7) }}{{ '{}:{:>4}'.format('a', 'b') }}",
        "{% for x in 'abc' %}{{ x * 3 }}{{ 2 ** 8 }}{{ 7 % 3 }}{% endfor %}{{ [1] + [2] }}{{ 'a' | center(9) }}",
        "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{{ loop.depth }}{% endfor %}",
        "{{ {'a': items} | tojson(indent=2) }}{{ 'a b' | replace(' ', '__') }}{{ 3.5 | round(1) }}",
        "{% filter upper %}{{ items }}{% endfilter %}",
    ]
)


@given(parts=st.lists(EXPRESSIONS, min_size=1, max_size=4), items=st.lists(st.sampled_from("abc"), max_size=5))
def test_a_bounded_template_writes_what_jinja_writes(parts: list[str], items: list[str]) -> None:
    source = "".join(parts)
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    plain.filters["tojson"] = Environment().filters["tojson"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template_budget, "MOST_CHARACTERS", 10**6)
        bounded = Environment(strict=False).from_string(source).render(items=items)
    assert bounded == plain.from_string(source).render(items=items)
