"""The renderings: each has all numbers of all steps, and files appear whole or not at all."""

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import cnnx
from cnnx import explain
from cnnx.explain import _image, _text
from cnnx.explain._notation import number, pieces, symbols
from cnnx.explain._steps import Sum, Term, total

IMAGE = [[1, 3, 2, 1], [4, 2, 0, 5], [3, 1, 4, 2], [2, 0, 3, 6]]
VOID = {"meta", "link", "input"}


@pytest.fixture(scope="module", params=["pool", "conv", "net"])
def explanation(request):
    if request.param == "pool":
        return explain.max_pool2d(IMAGE, 2, grad_out=[[0.5, 1.2], [0.8, -0.3]])
    if request.param == "conv":
        return explain.conv2d(IMAGE, [[1, -1], [2, 0]], 1, 2, 1, activation="sigmoid")
    net = cnnx.Sequential(cnnx.Flatten(), cnnx.Dense(4, 2, activation="tanh", rng=0))
    return explain.model(net, [[[1.0, 2.0], [3.0, 4.0]]], [1])


class Page(HTMLParser):
    """The cells and sums of each step, and every address anywhere."""

    def __init__(self):
        super().__init__()
        self.steps, self.addresses, self.open, self.inside = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                self.addresses.append(value)
        if tag == "section":
            self.steps.append({"td": [], "li": [], "caption": []})
        if tag in ("td", "li", "caption"):
            self.steps[-1][tag].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        for tag in ("td", "li", "caption"):
            if tag in self.open:
                self.steps[-1][tag][-1] += text


def plain(text):
    return "".join(piece for piece, _ in symbols(text)).replace("-", "−")


def test_page_has_all_numbers(explanation, tmp_path):
    explanation.save(tmp_path / "steps.html")
    page = Page()
    page.feed((tmp_path / "steps.html").read_text("utf-8"))
    assert page.open == []
    assert len(page.steps) == len(explanation)
    for found, step in zip(page.steps, explanation, strict=True):
        values = [v for panel in step.panels for row in panel.values for v in row]
        assert [cell.replace("−", "-") for cell in found["td"]] == [number(v) for v in values]
        lines = ["".join(text for text, _ in pieces(line)) for line in step.sums]
        assert [line.replace("−", "-") for line in found["li"]] == [
            plain(line).replace("−", "-") for line in lines
        ]


def test_page_needs_nothing_else(explanation, tmp_path):
    explanation.save(tmp_path / "steps.html")
    text = (tmp_path / "steps.html").read_text("utf-8")
    page = Page()
    page.feed(text)
    assert page.addresses == ["data:,"]  # the icon that browsers would otherwise ask for
    for word in ("http:", "https:", "//cdn", "@import", "url(", "fetch(", "{{"):
        assert word not in text.replace('http-equiv="Content', "")
    assert "default-src 'none'" in text


def test_notebook_frame_holds_the_page(explanation):
    html = explanation._repr_html_()
    assert html.startswith("<iframe srcdoc=")
    assert "&lt;section" in html and "<section" not in html


def test_text_has_all_numbers(explanation, tmp_path):
    text = str(explanation)
    explanation.save(tmp_path / "steps.txt")
    assert (tmp_path / "steps.txt").read_text("utf-8") == text + "\n"
    assert max(map(len, text.splitlines())) <= 100
    parts = re.split(r"^── .*$", text, flags=re.MULTILINE)[1:]
    assert len(parts) == len(explanation)
    for part, step in zip(parts, explanation, strict=True):
        assert step.title in part
        for panel in step.panels:
            assert panel.name in part
            for row in panel.values:
                for value in row:
                    assert number(value) in part
        for line in step.sums:
            written = "".join(text for text, _ in pieces(line))
            assert written.replace(" ", "") in re.sub(r"\s", "", part)


def test_terminal_has_colour_only_with_rich_and_a_terminal(explanation, capsys, monkeypatch):
    explanation.show()
    assert capsys.readouterr().out == f"{explanation}\n"
    rich = pytest.importorskip("rich.console")
    monkeypatch.setattr(
        rich, "Console", lambda real=rich.Console: real(force_terminal=True, width=100)
    )
    explanation.show()
    coloured = capsys.readouterr().out
    assert "\x1b[" in coloured
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in bare.splitlines()] == str(explanation).splitlines()
    monkeypatch.setitem(sys.modules, "rich.console", None)  # not installed
    explanation.show()
    assert capsys.readouterr().out == f"{explanation}\n"


def test_narrow_text_wraps(explanation):
    # Panels wider than the terminal stay whole; everything else fits.
    for line in _text.plain(explanation, 60).splitlines():
        assert len(line) <= 60 or "  " in line.strip()


def test_picture_has_all_numbers_and_no_text_over_another(explanation):
    pytest.importorskip("matplotlib")
    figure = _image.sheet(explanation)
    (axes,) = figure.axes
    shown = [text.get_text().replace("−", "-") for text in axes.texts]
    for step in explanation:
        for panel in step.panels:
            assert {number(v) for row in panel.values for v in row if v is not None} <= set(shown)
    renderer = figure.canvas.get_renderer()
    boxes = np.array([text.get_window_extent(renderer).extents for text in axes.texts])
    frame = figure.bbox.extents
    assert (boxes[:, :2] >= frame[:2] - 1).all() and (boxes[:, 2:] <= frame[2:] + 1).all()
    # Shrunk by 1.5 points on every side, for boxes have room for ascenders that no text here uses.
    margin = 1.5 * figure.dpi / 72
    low, high = boxes[:, :2] + margin, boxes[:, 2:] - margin
    order = np.argsort(low[:, 0])
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            if low[j, 0] >= high[i, 0]:
                break
            apart = low[j, 1] >= high[i, 1] or low[i, 1] >= high[j, 1]
            assert apart, (shown[i], shown[j])


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_pictures_are_repeatable(tmp_path, suffix, start):
    pytest.importorskip("matplotlib")
    e = explain.activation("relu", [-1.0, 2.0])
    for name in ("a", "b"):
        e.save(tmp_path / f"{name}.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    assert data.startswith(start)
    assert data == (tmp_path / f"b.{suffix}").read_bytes()


def test_large_matrices_fit_into_their_cards():
    pytest.importorskip("matplotlib")
    e = explain.avg_pool2d(-234.567 * np.ones((12, 12)), 12)
    figure = _image.sheet(e[1:2])
    renderer = figure.canvas.get_renderer()
    right = max(text.get_window_extent(renderer).x1 for text in figure.axes[0].texts)
    assert right <= figure.bbox.x1 - _image._MARGIN * figure.dpi


def test_too_many_steps_for_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    e = explain.conv2d(np.ones((8, 8)), np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"a picture has room for 60 steps.*highlights"):
        e.save(tmp_path / "a.png")


def test_picture_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"cnnx\[demo\]"):
        explain.activation("relu", [1.0]).save(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    e = explain.activation("relu", [1.0])
    (tmp_path / "a.html").write_text("old")
    monkeypatch.setattr("os.fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        e.save(tmp_path / "a.html")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.html", "old")]


def test_save_errors(tmp_path):
    e = explain.activation("relu", [1.0])
    with pytest.raises(ValueError, match=r"path is 'a\.doc', expected a name that ends in \.html"):
        e.save("a.doc")
    with pytest.raises(ValueError, match="there are no steps"):
        e[:0].save(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (-0.3, "-0.3"),
        (1 / 3, "0.333"),
        (12345.678, "12345.7"),
        (-54.321, "-54.32"),
        (1e-10, "1e-10"),
        (-2e-5, "-2e-5"),
        (2e7, "2e7"),
        (np.inf, "∞"),
        (-np.inf, "-∞"),
        (None, ""),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_sums_as_they_are_written():
    def written(line):
        return "".join(text for text, _ in pieces(line))

    assert (
        written(total("a", [Term((2, -3)), Term((4, 5))])) == "a = 2 · (-3) + 4 · 5 = -6 + 20 = 14"
    )
    assert written(total("a", [Term((1,)), Term((-2,))])) == "a = 1 + (-2) = -1"
    assert written(total("a", [])) == "a = 0"
    assert written(total("a", [Term((7,))])) == "a = 7"
    assert written(Sum("m", (Term((1,)), Term((-2,))), 1, "max({})", ", ")) == "m = max(1, -2) = 1"


def test_titles_are_escaped():
    class Bold:
        def forward(self, x):
            return x * 1

        def backward(self, grad_out):
            return grad_out * 1

    Bold.__name__ = "<b>&"
    assert "<b>&" not in explain.layer(Bold(), [[1.0]])._repr_html_()


# ---- tables of notebooks


def test_layer_table():
    net = cnnx.Sequential(cnnx.Conv2D(1, 4, 3), cnnx.Residual(cnnx.ReLU()), cnnx.Flatten())
    html = net._repr_html_()
    page = Page()
    page.steps.append({"td": [], "li": [], "caption": []})
    page.feed(html)
    assert page.steps[0]["caption"] == ["Sequential: 40 parameters"]
    assert page.steps[0]["td"][:4] == [
        "0",
        "Conv2D(in_channels=1, out_channels=4, kernel_size=3)",
        "weight (4, 1, 3, 3), bias (4,)",
        "40",
    ]
    assert page.steps[0]["td"][5] == "1.body"


def test_report_table():
    report = cnnx.gradcheck(np.sin, np.ones(2), backward=lambda grad_out, x: grad_out)
    html = report._repr_html_()
    assert "FAILED" in html and "WRONG" in html and "#D55E00" in html
    for value in str(report).splitlines()[2].split():
        assert value in html
    passed = cnnx.gradcheck(cnnx.ReLU(), np.ones(2))._repr_html_()
    assert "#D55E00" not in passed
