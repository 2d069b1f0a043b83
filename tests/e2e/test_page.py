"""The page at / in a headless Chromium: asking, caching, hostile text, keyboard, and what axe-core finds.

Needs Debian's chromium, and axe-core from npm in build/axe (`./bootstrap --deploy`). With T6_SCREENSHOTS=FOLDER the
pictures of the docs are written there.
"""

import hashlib
import json
import os
import pathlib
import re

import pytest

from browser import Browser, find_chromium
from conftest import ANSWERS, DOCUMENT, MODEL, ROOT

AXE = ROOT / "build/axe/node_modules/axe-core/axe.min.js"
HOSTILE = "<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script><b>bold</b> &amp; </textarea>"
N_ANSWERS = "document.querySelectorAll('#answers .facts').length"


@pytest.fixture(scope="module")
def browser():
    assert find_chromium(), "no chromium: ./bootstrap --deploy installs it"
    with Browser() as running:
        yield running


@pytest.fixture
def page(browser, daemon):
    """The page, freshly loaded."""
    browser.window(1280, 800)
    browser.console.clear()
    browser.open(daemon.url + "/")
    browser.wait("document.getElementById('model').textContent.trim() !== ''")
    yield browser
    assert browser.js("document.title") != "hit"


def paste(page, selector, text):
    page.click(selector)
    page.type(text)


def ask(page, question):
    before = page.js(N_ANSWERS)
    paste(page, "#question", question)
    page.press("Enter")
    page.wait(f"{N_ANSWERS} === {before + 1}")
    cached, computed = (int(page.js(f"[...document.querySelectorAll('#answers .facts')].at(-1).querySelectorAll('li')[{i}].textContent")
                            .split()[0].replace(",", "")) for i in (0, 1))
    return page.js("[...document.querySelectorAll('#answers .answer')].at(-1).textContent"), cached, computed


def test_three_questions_about_a_pasted_document(page):
    paste(page, "#document", "It is a quiet part of the country. " + DOCUMENT)
    page.wait("/tokens$/.test(document.getElementById('document-size').textContent)")
    asked = [ask(page, question) for question in ANSWERS]
    assert [answer for answer, _, _ in asked] == list(ANSWERS.values())
    (_, cached, computed), *later = asked
    assert cached < 20 < computed  # at most the instruction was known
    for _, cached, computed in later:
        assert cached > 40 and computed < 15
    assert re.search(r"first token [\d.]+ (ms|s)", page.text("#answers"))
    page.wait("/cached|tokens/.test(document.querySelector('#graph-cache [data-value]').textContent)")
    assert page.js("document.querySelectorAll('#graph-cache rect').length") > 0
    assert page.console == []


def test_an_example_is_one_click_away(page):
    page.click("#show-me")
    page.click("#suggestions button")
    page.wait(f"{N_ANSWERS} === 1")
    assert page.text("#answers .answer") == "Oscar Brandt"
    for i in range(page.js("document.querySelectorAll('#examples button').length")):
        page.click(f"#examples button:nth-of-type({i + 1})")
        assert page.js("document.getElementById('document').value").split()
        assert page.js("document.querySelectorAll('#suggestions button').length") >= 3


def test_earlier_answers_are_sent_only_when_wanted(page):
    page.click("#show-me")
    sent = []
    for question in ("Who is the mayor of Altmark?", "What is Altmark known for?"):
        _, cached, computed = ask(page, question)
        sent.append(cached + computed)
    assert sent[1] <= sent[0]
    page.click("#follow")
    _, cached, computed = ask(page, "What is Altmark known for?")
    assert cached + computed > sent[1] + 20
    page.click("#forget")
    assert page.js("document.querySelectorAll('#answers li').length") == 0 and page.js("!document.getElementById('empty').hidden")


def test_html_in_document_and_question_stays_text(page):
    paste(page, "#document", HOSTILE + " " + DOCUMENT)
    ask(page, HOSTILE)
    assert page.text("#answers .asked") == HOSTILE
    assert page.js("document.querySelectorAll('main img, main script, main b').length") == 0
    assert page.js("document.getElementById('document').value").startswith(HOSTILE)
    assert page.console == []


def test_html_from_the_server_stays_text(page):
    """An answer and an error that are HTML, from a fetch that stands in for a hostile server."""
    page.js("""(() => { const real = window.fetch; window.fetch = (path, options) => {
        if (!String(path).includes('chat')) return real(path, options);
        const html = %s;
        const body = JSON.parse(options.body).messages.at(-1).content === 'fail'
          ? [JSON.stringify({error: {message: html}}), {status: 500}]
          : ['data: ' + JSON.stringify({choices: [{delta: {content: html}}]}) + '\\n\\ndata: ' +
             JSON.stringify({choices: [], usage: {prompt_tokens: 3, completion_tokens: 2}}) + '\\n\\ndata: [DONE]\\n\\n', {}];
        return Promise.resolve(new Response(...body)); }; })()""" % json.dumps(HOSTILE))
    answer, _, _ = ask(page, "say html")
    assert answer == HOSTILE
    paste(page, "#question", "fail")
    page.press("Enter")
    page.wait("document.querySelector('.failure') !== null")
    assert HOSTILE in page.text(".failure")
    assert page.js("document.querySelectorAll('main img, main script, main b').length") == 0


def test_an_answer_that_breaks_off_after_its_usage_shows_it_once(page):
    page.js("""(() => { const real = window.fetch; window.fetch = (path, options) => {
        if (!String(path).includes('chat')) return real(path, options);
        const usage = JSON.stringify({choices: [], usage: {prompt_tokens: 3, completion_tokens: 2}});
        return Promise.resolve(new Response(`data: ${usage}\\n\\n`)); }; })()""")
    paste(page, "#question", "Who?")
    page.press("Enter")
    page.wait("document.querySelector('.failure') !== null && !document.getElementById('send').hidden")
    assert page.js("document.querySelectorAll('.facts').length") == 1


def test_a_document_of_100_kilobytes(page):
    text = "".join(f"Room {i} of the archive holds {i * 7} letters & <maps>. " for i in range(2100))
    assert len(text.encode()) > 100_000
    paste(page, "#document", text)
    page.wait("document.getElementById('document-size').hasAttribute('data-over') ||"
              " /tokens/.test(document.getElementById('document-size').textContent)")
    paste(page, "#question", "How many letters?")
    page.press("Enter")
    page.wait("document.querySelector('.failure') !== null")
    # Both numbers, in the server's words.
    assert re.search(r"\d{5,}.*\b16384\b", page.text(".failure").replace(",", ""))
    assert page.js("document.querySelector('.answer').getAttribute('aria-busy')") is None
    page.click("#clear")
    paste(page, "#document", DOCUMENT)
    assert ask(page, "Who founded the museum?")[0] == "Clara Weiss"


def test_with_the_keyboard_alone(page):
    page.press("Tab")
    assert page.js("document.activeElement.className") == "skip"
    page.press("Enter")
    assert page.js("document.activeElement.id") == "question"
    page.type("Hello?")
    page.press("Enter", modifiers=8)  # shift: a line break
    assert page.js("document.getElementById('question').value") == "Hello?\n"
    page.press("Enter")
    page.wait("document.querySelectorAll('#answers li').length === 1")
    page.wait("document.getElementById('send').hidden === false")


def test_stop_ends_an_answer(page, daemon):
    page.js("""(() => { const real = window.fetch; window.fetch = (path, options) => {
        if (!String(path).includes('chat')) return real(path, options);
        const body = JSON.parse(options.body);
        return real(path, {...options, body: JSON.stringify({...body, temperature: 1, seed: 3, ignore_eos: true})}); }; })()""")
    paste(page, "#question", "Tell me everything")
    page.press("Enter")
    page.wait("document.querySelector('.answer')?.textContent.length > 3")
    page.press("Escape")
    page.wait("document.getElementById('send').hidden === false")
    assert "Stopped" in page.text("#answers")
    daemon.wait_for_metric("vllm:num_requests_running", 0)


def test_a_server_that_is_gone(browser, start):
    gone = start()
    browser.window(1280, 800)
    browser.open(gone.url + "/")
    browser.wait("document.getElementById('state').dataset.state === 'ready'")
    gone.stop()
    browser.wait("document.getElementById('state').dataset.state === 'down'")
    paste(browser, "#question", "Who?")
    browser.press("Enter")
    browser.wait("document.querySelector('.failure') !== null")
    assert "cannot be reached" in browser.text(".failure")


def test_metrics_are_read_as_prometheus_writes_them(page):
    text = ('# HELP vllm:generation_tokens_total Tokens\nvllm:generation_tokens_total{model_name="a}b",x="1"} 30\n'
            'vllm:generation_tokens_total{model_name="c"} 1e1\nvllm:num_requests_running 2\nnonsense\n')
    read = f"import('/web/graphs.js').then(m => {{ const now = m.parseMetrics({json.dumps(text)}); const zero = new Map();"
    assert page.js(read + "return Object.fromEntries(now); })") == {"vllm:generation_tokens_total": 40, "vllm:num_requests_running": 2}
    # Twenty more in two seconds; and a server that started anew has a lower count, which is no negative rate.
    before = "new Map([['vllm:generation_tokens_total', 20]])"
    assert page.js(read + f"return m.difference(now, {before}, 2).tokens; }})") == 10
    assert page.js(read + f"return m.difference(zero, {before}, 2).tokens; }})") == 0


def test_without_metrics_the_rest_works(page, start):
    """As behind a balancer, or where --admin gives metrics a port of their own."""
    apart = start(MODEL, "--admin", "127.0.0.1:0")
    page.open(apart.url + "/")
    page.wait("document.querySelector('#graph-queue [data-value]').textContent === 'not shown here'")
    page.wait("document.getElementById('state').dataset.state === 'ready'")
    paste(page, "#document", DOCUMENT)
    assert ask(page, "Who founded the museum?")[0] == "Clara Weiss"


def test_with_an_api_key(browser, start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"acme sha256:{hashlib.sha256(b'open-sesame').hexdigest()}\n")
    guarded = start(MODEL, "--api-key-file", str(keys))
    browser.window(1280, 800)
    browser.open(guarded.url + "/")
    browser.wait("document.getElementById('key-panel').open")
    paste(browser, "#question", "Who founded the museum?")
    browser.press("Enter")
    browser.wait("document.querySelector('.failure') !== null")
    assert "An API key is needed" in browser.text(".failure")
    paste(browser, "#key", "open-sesame")
    browser.press("Enter")
    browser.wait("document.getElementById('model').textContent === 't6-docqa-14m'")
    browser.press("Escape")
    assert browser.js("document.getElementById('key-panel').open") is False
    paste(browser, "#document", DOCUMENT)
    assert ask(browser, "Who founded the museum?")[0] == "Clara Weiss"
    browser.js("sessionStorage.clear()")


@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (390, False), (390, True)])
def test_axe_core_has_nothing_serious(page, width, dark):
    assert AXE.exists(), "no axe-core: ./bootstrap --deploy installs it"
    page.window(width, 844, dark=dark, mobile=width < 500)
    found = axe(page)
    page.click("#show-me")
    page.click("#suggestions button")
    page.wait(f"{N_ANSWERS} === 1")
    page.js("document.getElementById('key-panel').open = true")
    found += axe(page)
    paste(page, "#document", "word " * 40_000)
    paste(page, "#question", "Why?")
    page.press("Enter")
    page.wait("document.querySelector('.failure') !== null")
    found += axe(page)
    assert found == []
    assert page.js("document.documentElement.scrollWidth") == width


def axe(page):
    page.call("Page.setBypassCSP", enabled=True)  # of the tool, which adds styles of its own
    page.js(AXE.read_text() + ";0")
    got = page.js("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html)]))")
    page.call("Page.setBypassCSP", enabled=False)
    return [violation for violation in got if violation[0] not in ("minor",)]


@pytest.mark.skipif("T6_SCREENSHOTS" not in os.environ, reason="no T6_SCREENSHOTS")
def test_screenshots(browser, start):
    page = browser
    page.window(1280, 800)
    page.open(start().url + "/")
    page.wait("document.getElementById('model').textContent.trim() !== ''")
    folder = pathlib.Path(os.environ["T6_SCREENSHOTS"])
    page.click("#examples button:nth-of-type(2)")
    for n in range(1, 4):
        page.click("#suggestions button")
        page.wait(f"{N_ANSWERS} === {n}")
        page.js("new Promise(done => setTimeout(done, 1500))")
    page.js("new Promise(done => setTimeout(done, 1500))")
    for name, width, height, dark in (("wide-light", 1280, 800, False), ("wide-dark", 1280, 800, True),
                                      ("phone-light", 390, 844, False), ("phone-dark", 390, 844, True)):
        page.window(width, height, dark=dark, mobile=width < 500)
        page.js("document.activeElement.blur(), window.scrollTo(0, 0), new Promise(done => setTimeout(done, 400))")
        page.screenshot(folder / f"page-{name}.png")
