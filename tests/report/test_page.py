"""The page of a report: in Chromium it draws what the runs left, and nothing of theirs breaks out of it."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from browser import CHROMIUM, Browser
from example_run import GROUPS, HOSTILE, SIZE, STEPS, write_run
from page_elements import Elements

from maskgrpo_plugin.report import main
from maskgrpo_plugin.run_report.page import flat, page

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def report(tmp_path, *runs):
    path = tmp_path / "report.html"
    assert main([*map(str, runs), "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """The report of two runs, one of them of images."""
    folder = tmp_path_factory.mktemp("two")
    texts, images = write_run(folder / "a", "texts"), write_run(folder / "b", "images", steps=6, seed=1, images=True)
    return report(folder, texts, images)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """The report of one run of texts, and what it holds."""
    folder = tmp_path_factory.mktemp("one")
    path = report(folder, write_run(folder / "run"))
    (data,) = [text for _, attributes, text in Elements(path.read_text()).found if attributes.get("id") == "data"]
    return path, json.loads(data)


@pytest.fixture(scope="module")
def browser():
    """A Chromium for the tests of this file."""
    with Browser() as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_errors(request):
    """After each test that used the browser: its console said no error, and only files were asked for."""
    yield
    if "browser" in request.fixturenames:
        browser = request.getfixturevalue("browser")
        assert browser.errors == []
        assert all(url.startswith(("file:", "data:", "about:")) for url in browser.requests)


def test_nothing_of_the_data_breaks_out():
    empty = Elements(page({}))
    held = Elements(page({HOSTILE: [HOSTILE, "@DATA@ @SCRIPT@"]}))
    assert [element[:2] for element in held.found] == [element[:2] for element in empty.found]
    (data,) = [text for _, attributes, text in held.found if attributes.get("id") == "data"]
    assert json.loads(data) == {HOSTILE: [HOSTILE, "@DATA@ @SCRIPT@"]}


def test_nothing_is_loaded():
    text = page({})
    (policy,) = [element[1]["content"] for element in Elements(text).found if "http-equiv" in element[1]]
    assert policy.startswith("default-src 'none';") and "img-src data:" in policy
    assert not re.search(r"@import|\bfetch\(|XMLHttpRequest|url\(|innerHTML|insertAdjacentHTML|document\.write", text)
    for tag, attributes, _ in Elements(text).found:
        assert not {"src", "href"} & set(attributes), tag
    assert "MIT License" in text and "Leon Sorokin" in text


def test_a_number_that_json_does_not_have_is_refused():
    with pytest.raises(ValueError):
        page({"a": float("nan")})


def test_a_config_is_told_by_its_keys():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}
    assert flat({}) == {}


@pytest.mark.parametrize("options", [["missing"], ["."], [".", "--samples", "0"]])
def test_what_cannot_be_used_is_one_line_and_status_2(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main([*options, "--output", "report.html"])
    except SystemExit as ended:
        status = ended.code
    assert status == 2 and not (tmp_path / "report.html").exists()
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


def test_an_output_in_no_folder_is_refused(tmp_path, capsys):
    assert main([str(write_run(tmp_path / "run")), "--output", str(tmp_path / "no" / "report.html")]) == 2
    assert "--output=" in capsys.readouterr().err


def test_what_was_left_out_is_said(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    log = tmp_path / "run" / "example.jsonl"
    log.write_text(log.read_text() + '{"step": 9, "da')
    path = report(tmp_path, run)
    assert "the last line is torn" in capsys.readouterr().out and "the last line is torn" in path.read_text()


@needs_chromium
def test_the_curves_have_the_points(browser, one_run):
    path, data = one_run
    browser.open(path, "#curves")
    reward = browser.run("curves.find(chart => chart.panel.title === 'Training reward').plot.data")
    values = data["runs"][0]["metrics"]["values"]
    assert reward[0] == list(range(1, STEPS + 1))  # the validation before has none
    assert reward[1] == values["critic/score/mean"][1:] and len(reward) == 4
    drawn = browser.run("curves.map(chart => chart.panel.title)")
    assert {"Training reward", "Validation", "KL to the reference", "Gap between actor and server"} <= set(drawn)
    levels = "curves.find(chart => chart.panel.title === 'KL to the reference').panel.series.map(line => line.label)"
    assert browser.run(levels) == ["mean over the levels", "level 1", "level 2"]
    painted = """[...document.querySelectorAll('#panels canvas')].slice(0, 2).map(canvas =>
        canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(value => value > 0))"""
    assert browser.run(painted) == [True, True]


@needs_chromium
def test_smoothing_averages_with_falling_weights(browser, one_run):
    path, data = one_run
    browser.open(path, "#curves")
    browser.run("at('smoothing').value = '0.5'; at('smoothing').dispatchEvent(new Event('input'))")
    browser.settle()
    _, raw, smooth, *_ = browser.run("curves.find(chart => chart.panel.title === 'Training reward').plot.data")
    assert raw == data["runs"][0]["metrics"]["values"]["critic/score/mean"][1:]
    for step in range(len(raw)):
        weights = [0.5 ** (step - n) for n in range(step + 1)]
        expected = sum(w * value for w, value in zip(weights, raw, strict=False)) / sum(weights)
        assert smooth[step] == pytest.approx(expected)


@needs_chromium
def test_a_value_that_is_not_finite_is_a_gap_and_one_that_is_missing_none(browser, tmp_path):
    rows = [{"a/x": 1.0, "b/y": 1.0}, {"b/y": None}, {"a/x": 3.0, "b/y": 3.0}]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": n, "data": row}) + "\n" for n, row in enumerate(rows)))
    browser.open(report(tmp_path, log), "#curves")
    found = "curves.find(chart => chart.panel.title === '{}').plot.data[1].map(value => value === null ? 'gap' : value)"
    assert browser.run(found.format("a/x")) == [1.0, 3.0]
    assert browser.run(found.format("b/y")) == [1.0, "gap", 3.0]
    assert "1 values are not finite" in browser.run("at('panels').textContent")


@needs_chromium
def test_two_runs_are_overlaid_and_can_be_switched_off(browser, two_runs):
    browser.open(two_runs, "#curves")
    chart = "curves.find(chart => chart.panel.title === 'Training reward').plot"
    assert browser.run(f"{chart}.series.map(series => series.label)") == ["step", "texts", "images"]
    assert browser.run(f"{chart}.data.map(column => column.length)") == [6, 6, 6]
    assert browser.run(f"{chart}.data[1].filter(value => value != null).length") == STEPS
    browser.run("document.querySelector('#runs input').click()")
    browser.settle()
    left = ["step", *(f"images: {name}" for name in ("mean", "min", "max"))]
    assert browser.run(f"{chart}.series.map(series => series.label)") == left


@needs_chromium
def test_the_stages_of_a_step_are_piled_up_to_the_whole_step(browser, one_run):
    browser.open(one_run[0], "#time")
    steps, *piles = browser.run("times[0].plot.data")
    assert steps == list(range(1, STEPS + 1))
    assert [pile[0] for pile in piles] == [6.0, 5.0, 2.0]  # gen, update_actor, and what belongs to none
    assert browser.run("times[0].plot.series.slice(1).map(series => series.label)") == ["other", "update_actor", "gen"]


@needs_chromium
def test_groups_are_ordered_by_their_mean_and_samples_by_their_reward(browser, one_run):
    path, data = one_run
    browser.open(path, "#samples")
    means = sorted(
        (
            sum(sample["score"] for sample in group["samples"]) / SIZE
            for group in data["runs"][0]["groups"]
            if group["step"] == STEPS
        ),
        reverse=True,
    )
    assert browser.run("document.querySelectorAll('.group').length") == GROUPS
    assert browser.run("listed.map(group => mean(scoresOf(group)))") == pytest.approx(means)
    choose = "at('{0}').value = '{1}'; at('{0}').dispatchEvent(new Event('change'))"
    browser.run(choose.format("sample-order", "worst"))
    assert browser.run("listed.map(group => mean(scoresOf(group)))") == pytest.approx(means[::-1])
    browser.run("at('sample-all').click()")
    assert browser.run("listed.length") == STEPS * GROUPS
    browser.run(choose.format("sample-view", "samples"))
    scores = browser.run("listed.map(item => item.sample.score)")
    assert len(scores) == STEPS * GROUPS * SIZE and scores == sorted(scores, reverse=True)
    browser.run("at('sample-search').value = 'QUESTION 1:'; drawSamples()")
    assert set(browser.run("listed.map(item => item.group.prompt)")) == {"question 1: 5 + 1 ="}
    assert browser.run("document.querySelector('#sample-list mark').textContent") == "question 1:"


@needs_chromium
def test_the_steps_slider_chooses_the_step(browser, one_run):
    browser.open(one_run[0], "#samples")
    browser.run("at('sample-step').value = '0'; at('sample-step').dispatchEvent(new Event('input'))")
    assert browser.run("at('sample-step-value').textContent") == "1"
    assert browser.run("[...new Set(listed.map(group => group.step))]") == [1]


@needs_chromium
def test_the_slider_reveals_the_tokens_in_the_samplers_order(browser, one_run):
    browser.open(one_run[0], "#samples")
    browser.run("document.querySelector('.open-replay').click()")
    sample = browser.run("[...players][0].sample")
    order = sorted(set(sample["reveal"]))
    for count in range(len(order) + 1):
        browser.run(f"[...players][0].slider.value = '{count}'")
        browser.run("[...players][0].slider.dispatchEvent(new Event('input'))")
        hidden = browser.run(
            "[...document.querySelectorAll('.replay .token')].map(e => e.classList.contains('hidden'))"
        )
        assert hidden == [step not in order[:count] for step in sample["reveal"]]
        fresh = browser.run("[...document.querySelectorAll('.replay .token')].map(e => e.classList.contains('fresh'))")
        assert fresh == [count > 0 and step == order[count - 1] for step in sample["reveal"]]
    shown = browser.run("document.querySelector('.replay .tokens').textContent")
    assert shown.replace("↵", "") == "".join(sample["pieces"])


@needs_chromium
def test_markup_in_a_sample_stays_text(browser, tmp_path):
    path = report(tmp_path, write_run(tmp_path / "run", name=HOSTILE.replace("/", "_"), hostile=True))
    browser.open(path, "#samples")
    assert browser.run("document.querySelector('.prompt').textContent") == HOSTILE
    assert browser.run("document.querySelectorAll('main img, main b:not(.facts b)').length") == 0
    browser.run("at('sample-search').value = '<b>'; drawSamples()")
    assert browser.run("document.querySelector('.prompt mark').textContent") == "<b>"
    for tab in ("curves", "config", "images", "time"):
        browser.run(f"at('tab-{tab}').click()")
        browser.settle()
    assert browser.run("document.title").startswith("Training report")
    assert browser.run("document.querySelectorAll('img').length") == 0


@needs_chromium
def test_contact_sheets_follow_the_slider(browser, two_runs):
    browser.open(two_runs, "#images")
    browser.wait("document.querySelector('#part-images img')?.naturalWidth > 0")
    assert "step 6" in browser.run("at('part-images').textContent")
    browser.run("at('sheet-step').value = '1'; at('sheet-step').dispatchEvent(new Event('input'))")
    assert "images step 2" in browser.run("at('part-images').textContent")
    browser.run("at('sheet-all').click()")
    assert browser.run("document.querySelectorAll('#part-images figure').length") == 6


@needs_chromium
def test_configs_are_compared(browser, two_runs):
    browser.open(two_runs, "#config")
    browser.run("at('config-differences').click()")
    keys = browser.run("[...document.querySelectorAll('tr.differs td:first-child')].map(e => e.textContent)")
    assert "data.seed" in keys and "reward.weights" not in keys and "torch" not in keys
    browser.run("at('config-differences').click()")
    assert "reward.weights" in browser.run("at('config-tables').textContent")


@needs_chromium
def test_two_thousand_samples_are_drawn_as_far_as_they_are_seen(browser, tmp_path, record_property):
    path = report(tmp_path, write_run(tmp_path / "run", steps=10, groups=50, length=300))
    started = time.perf_counter()
    browser.open(path, "#samples")
    browser.run("at('sample-all').click()")
    browser.settle()
    record_property("seconds", time.perf_counter() - started)
    assert browser.run("listed.length") == 500
    assert browser.run("document.querySelectorAll('.sample').length") < 200
    before = browser.run("drawn")
    browser.run("scrollTo(0, document.body.scrollHeight)")
    browser.wait(f"drawn > {before}")


@needs_chromium
def test_a_page_without_runs_data_says_what_is_missing(browser, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"step": 1, "data": {"train/loss": 2.0}}) + "\n")
    browser.open(report(tmp_path, log), "#samples")
    for tab, missing in (("samples", "rollout_data_dir"), ("images", "No contact sheets"), ("time", "timing_s")):
        browser.run(f"at('tab-{tab}').click()")
        assert missing in browser.run(f"at('part-{tab}').textContent")
