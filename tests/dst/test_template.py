"""dst.template: golden renders, strictness, the sandbox, and variables written into the text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dst
from dst.jinja_environment import Environment
from tests.support.conversations import ANSWERS
from tests.support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "dst"
BLOCK = "{% generation %}x{% endgeneration %}"
IMAGE = {"type": "image"}


CONTENT: dict[str, Any] = {"system": "x", "user": [IMAGE], "assistant": "x"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


FIXED: list[dst.Message] = [
    {"role": "system", "content": "You compare pictures."},
    {"role": "user", "content": [IMAGE, IMAGE, text("Which of the two buses is red?")]},
    {"role": "assistant", "content": "The first one."},
    {"role": "user", "content": [text("And this: "), IMAGE, text("what is on the table?")]},
    {"role": "assistant", "content": [text("A bowl of soup\nand "), text("a spoon.")]},
]


def own(folder: Path, source: str, **variables: Any) -> dst.Template:
    path = folder / "own.jinja"
    path.write_text(source, encoding="utf-8")
    return dst.load_template(path, variables)


def render(template: dst.Template, messages: list[dst.Message], *, prompt: bool = False) -> dst.Rendered:
    return template.render(messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=prompt)


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_a_builtin_template_renders_as_its_golden_file(name: str) -> None:
    """Trained text is between ⟦ and ⟧; what chat would send for the next round follows after a line of dashes."""
    messages = FIXED[1:] if name == "plain" else FIXED
    rendered = render(dst.load_template(name), messages)
    marked, position = "", 0
    for start, end in rendered.spans:
        marked += f"{rendered.text[position:start]}⟦{rendered.text[start:end]}⟧"
        position = end
    marked += rendered.text[position:]
    prompt = render(dst.load_template(name), messages[:-1], prompt=True).text
    got = f"{marked}\n--------\n{prompt}\n".encode()
    assert got == (GOLDEN / f"{name}.txt").read_bytes()


def test_every_builtin_template_is_tested() -> None:
    assert sorted(ANSWERS) == list(dst.BUILTIN)
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == list(dst.BUILTIN)


@pytest.mark.parametrize("name", dst.BUILTIN)
@pytest.mark.parametrize(
    "roles",
    [["assistant"], ["user", "user"], ["user", "assistant", "assistant"], ["user", "system"], ["system", "system"]],
)
def test_a_bad_order_of_roles_is_an_error(name: str, roles: list[str]) -> None:
    with pytest.raises(dst.TemplateError, match=rf"^template {name}, line \d+: turn \d is from"):
        render(dst.load_template(name), [{"role": role, "content": CONTENT[role]} for role in roles])


def test_captions_without_an_image_are_an_error() -> None:
    with pytest.raises(dst.TemplateError, match="turn 1 shows no image"):
        render(dst.load_template("plain"), [{"role": "user", "content": "Describe it."}])


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "function", "content": "x"}, "message 1: role is 'function'"),
        ({"content": "x"}, "role is None"),
        ({"role": "user", "content": None}, "content is NoneType"),
        ({"role": "user"}, "content is NoneType"),
        ({"role": "user", "content": ["x"]}, "a part is 'x'"),
        ({"role": "user", "content": [{"type": "video"}]}, "expected an image or a text part"),
        ({"role": "user", "content": [{"type": "text"}]}, "expected an image or a text part"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "expected an image or a text part"),
    ],
)
def test_messages_of_another_form_are_an_error(message: dst.Message, error: str) -> None:
    with pytest.raises(dst.TemplateError, match=error):
        render(dst.load_template("chatml"), [message])


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (BLOCK + "\n\n{{ nobody }}", "line 3: 'nobody' is undefined"),
        (BLOCK + "\n{% if nobody %}{% endif %}", "line 2: 'nobody' is undefined"),
        (BLOCK + "\n{% if nobody == 3 %}{% endif %}", "line 2: 'nobody' is undefined"),
        (BLOCK + "\n{% for x in nobody %}{% endfor %}", "line 2: 'nobody' is undefined"),
        (BLOCK + "\n{{ messages[0].colour }}", "line 2: .*has no attribute 'colour'"),
        (BLOCK + "\n{{ ''.__class__ }}", "line 2: access to attribute '__class__' of 'str' object is unsafe"),
        (BLOCK + "\n{{ ''.__class__.__mro__ }}", "line 2: access to attribute '__class__'"),
        (BLOCK + "\n{{ ''['__class__'] }}", "line 2: "),
        (BLOCK + "\n{{ (''|attr('__class__')).mro() }}", "line 2: "),
        (BLOCK + "\n{{ '{0.__class__}'.format(3) }}", "line 2: "),
        (BLOCK + "\n{{ raise_exception.__globals__ }}", "line 2: "),
        (BLOCK + "\n{% for x in range(10**9) %}{% endfor %}", "line 2: Range too big"),
        (BLOCK + "\n{{ messages.append(3) }}", "line 2: "),
        (BLOCK + "\n{{ _output.spans.append(3) }}", "line 2: "),
        (BLOCK + "\n{{ messages[0]['role'] + 3 }}", "line 2: "),
        (BLOCK + "\n{{ 1 // (messages|length - 1) }}", "line 2: "),
        (BLOCK + "\n{{ 'x' * 10**15 * messages|length }}", "line 2: "),
        (BLOCK + "\n{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "line 2: maximum recursion"),
        (BLOCK + "\n{{ strftime_now('%Y') }}", "line 2: strftime_now would make the text depend on the day"),
        (BLOCK + "\n{{ lipsum() }}", "line 2: 'lipsum' is undefined"),
        (BLOCK + "\n{% include 'other' %}", "line 2: "),
        (BLOCK + "\n{{ raise_exception('not today') }}", "line 2: not today"),
    ],
)
def test_what_fails_while_rendering_names_template_and_line(source: str, error: str, tmp_path: Path) -> None:
    template = own(tmp_path, source)
    with pytest.raises(dst.TemplateError, match=rf"^template .*own\.jinja, {error}"):
        render(template, [{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (BLOCK + "\n\n{% if %}", "line 3: "),
        (BLOCK + "\n{{ 'a' | colour }}", "line 2: No filter named 'colour'"),
        (BLOCK + "\n{{ [1, 2] | random }}", "line 2: No filter named 'random'"),
        (BLOCK + "\n{% for m in messages %}", "line 2: Unexpected end of template"),
        ("{% generation %}\nx", "line 2: Unexpected end of template"),
        ("{% endgeneration %}", "line 1: "),
        ("{{ messages }}", ": no text is marked as trained"),
        ("\n{% macro answer() %}\n" + BLOCK + "{% endmacro %}{{ answer() }}", "line 3: .*inside a macro"),
        ("\n{% set answer %}" + BLOCK + "{% endset %}{{ answer }}", "line 2: .*inside a macro, a set"),
        ("{% filter upper %}" + BLOCK + "{% endfilter %}", "line 1: .*inside a macro, a set, filter"),
        ("{% generation %}\n" + BLOCK + "{% endgeneration %}", "line 2: .*another generation block"),
        ("{% for m in messages recursive %}" + BLOCK + "{% endfor %}", "line 1: .*a recursive loop"),
        ("{{ " + "(" * 3000 + ")" * 3000 + " }}", ": nested too deep"),
    ],
)
def test_a_broken_template_is_an_error_when_it_is_read(source: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(dst.TemplateError, match=rf"own\.jinja(, )?{error}"):
        own(tmp_path, source)


def test_names_may_be_tested_for(tmp_path: Path) -> None:
    source = "{% if nobody is defined %}a{% endif %}{% if messages[0].name %}b{% endif %}{{ nobody | default('c') }}"
    assert render(own(tmp_path, source + BLOCK), [{"role": "user", "content": "x"}]).text == "cx"


def test_an_unknown_template_names_the_nearest() -> None:
    with pytest.raises(dst.TemplateError, match=r"template vicunia: unknown; expected one of .*did you mean vicuna\?"):
        dst.load_template("vicunia")


def test_an_absent_template_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(dst.TemplateError, match=r"absent\.jinja: cannot be read"):
        dst.load_template(tmp_path / "absent.jinja")
    (tmp_path / "latin.jinja").write_bytes(b"\xe9")
    with pytest.raises(dst.TemplateError, match=r"latin\.jinja: cannot be read"):
        dst.load_template(tmp_path / "latin.jinja")


def test_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(dst.TemplateError, match=r"no variable 'sytem_prompt'.*did you mean system_prompt\?"):
        dst.load_template("visualchat", {"sytem_prompt": "x"})
    with pytest.raises(dst.TemplateError, match=r"no variable 'system_prompt'; it has: none"):
        dst.load_template("chatml", {"system_prompt": "x"})
    with pytest.raises(dst.TemplateError, match="system_prompt is list; expected text or a number"):
        dst.load_template("vicuna", {"system_prompt": ["x"]})


@given(value=st.text() | st.sampled_from(["{{ x }}", "{% raw %}", "%}", "#}", "'\"\\", "\r\n", "🙂\u2028\x00"]))
def test_variables_survive_as_they_are(value: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    template = own(folder, "{{ greeting }}" + BLOCK, greeting=value)
    assert render(template, []).text == value + "x"
    again = own(folder, template.source)  # as an exported tokenizer carries it
    assert render(again, []).text == value + "x"


@pytest.mark.parametrize(
    ("value", "printed"), [(True, "True"), (False, "False"), (7, "7"), (-2.5, "-2.5"), (1e-7, "1e-07")]
)
def test_numbers_may_be_variables(value: float, printed: str, tmp_path: Path) -> None:
    assert render(own(tmp_path, "{{ number }}" + BLOCK, number=value), []).text == printed + "x"


def test_variables_leave_the_template_around_them_alone(tmp_path: Path) -> None:
    source = "\n  start\n  {% if true %}\n{{ word }}{% endif %}" + BLOCK + "end\n\n"
    baked = own(tmp_path, source, word="w")
    assert render(baked, []).text == render(own(tmp_path, source.replace("{{ word }}", "w")), []).text
    assert render(baked, []).text == "\n  start\nwxend\n"
    assert baked.variables == frozenset()


@pytest.mark.parametrize("start", ["", "\n", "\n\n", "  ", " \n", "\n ", " \t", "\f ", "x\n", "\u2003"])
@pytest.mark.parametrize(
    "tag", ["x", "{% if true %}", "{%- if true %}", "{%+ if true %}", "{# note #}", "{#+ note #}", "{{ 1 }}"]
)
def test_variables_leave_the_start_of_the_template_alone(start: str, tag: str, tmp_path: Path) -> None:
    end = "{% endif %}" if " if " in tag else ""
    source = f"{start}{tag}y{{{{ word }}}}{end}{BLOCK}"
    plain = own(tmp_path, source.replace("{{ word }}", "w"))
    baked = own(tmp_path, source, word="w")
    assert render(baked, []).text == render(plain, []).text
    assert baked.source.count("\n") == source.count("\n")


def test_variables_do_not_shift_the_lines_of_errors(tmp_path: Path) -> None:
    template = own(tmp_path, "{{ one }}{{ two }}\n" + BLOCK + "{{ nobody }}", one="1\n2", two="2")
    for same in (template, dst.Template("again", template.source)):  # as a compile task carries it
        with pytest.raises(dst.TemplateError, match="line 2: 'nobody' is undefined"):
            render(same, [])


def test_a_system_prompt_replaces_the_built_in_one() -> None:
    template = dst.load_template("visualchat", {"system_prompt": "Be brief."})
    assert render(template, [{"role": "user", "content": "Hi"}]).text == "<s>Be brief.\n\n### Question:\nHi\n\n"


def test_an_absent_bos_token_prints_nothing() -> None:
    text = dst.load_template("vicuna").render([{"role": "user", "content": "Hi"}], bos_token="", eos_token="</s>").text
    assert text.startswith("A chat between")


def test_markers_are_the_words_that_structure_the_text() -> None:
    assert {"### Image", "### Question:", "### Answer:"} <= dst.load_template("visualchat").markers
    assert {"USER:", "ASSISTANT:"} <= dst.load_template("vicuna").markers
    assert {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"} <= dst.load_template("llama2").markers


def test_renders_of_one_template_may_interleave(tmp_path: Path) -> None:
    """Threads share a template: each render keeps its own spans."""
    from concurrent.futures import ThreadPoolExecutor

    template = dst.load_template("visualchat")
    expected = [
        render(template, [*FIXED[:1], FIXED[1], {"role": "assistant", "content": "a" * n}]) for n in range(1, 200)
    ]
    with ThreadPoolExecutor(4) as pool:
        got = pool.map(
            lambda n: render(template, [*FIXED[:2], {"role": "assistant", "content": "a" * n}]), range(1, 200)
        )
        assert list(got) == expected


def test_the_sandbox_answers_for_every_type_and_attribute_as_jinjas_does() -> None:
    environment, jinjas = Environment(), jinja2.sandbox.ImmutableSandboxedEnvironment()

    def generator() -> Iterator[int]:
        yield 1

    things = ["a", 1, 1.5, None, [], {}, set(), (), str, dict, generator(), generator, "".upper, [].append, len]
    names = {name for thing in things for name in dir(thing)} | {"absent", "", "_", "mro", "func_code"}
    for _ in range(2):  # the second answer is remembered
        for thing in things:
            for name in names:
                expected = jinjas.is_safe_attribute(thing, name, None)
                assert environment.is_safe_attribute(thing, name, None) == expected, (thing, name)
