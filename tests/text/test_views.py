"""Text views, phrases, summary and graph."""

from __future__ import annotations

import pytest

from counterscan.errors import InputError
from counterscan.text import Extractor
from counterscan.text.summary import _page_rank, summarise
from counterscan.text.views import VIEWS, corpus_view, view

READ = Extractor()
REPORT = (
    "INDICATION: Cough. FINDINGS: Stable cardiomegaly. There is a small left and a large right pleural effusion. "
    "8 mm nodule in the right upper lobe. Possible left basilar pneumonia. No pneumothorax. The trachea is midline. "
    "IMPRESSION: Bilateral effusions. No pneumothorax."
)


def test_sections_word_for_word():
    assert view("impression", REPORT) == "Bilateral effusions. No pneumothorax."
    assert view("findings", REPORT).startswith("Stable cardiomegaly. There is")
    assert view("impression", "Small effusion.") == "Small effusion."
    assert view("findings", "IMPRESSION: Small effusion.") == "Small effusion."


def test_rules_v1_holds_positives_only():
    assert view("rules-v1", REPORT) == (
        "stable cardiomegaly, 8 mm nodule in the right upper lobe, small left pleural effusion, "
        "large right pleural effusion"
    )
    assert view("rules-v1", "No effusion. Possible edema.") == "no finding"


def test_rules_v2_adds_uncertain_and_denied_in_order():
    assert view("rules-v2", REPORT) == (
        "stable cardiomegaly, 8 mm nodule in the right upper lobe, small left pleural effusion, "
        "large right pleural effusion, possible pneumonia in the left base, no pneumothorax"
    )
    assert view("rules-v2", "No effusion. Edema. No pneumonia.") == "pulmonary edema, no pneumonia, no pleural effusion"
    assert view("rules-v2", "No pneumonia. Edema. No effusion.") == view("rules-v2", "Edema. No effusion or pneumonia.")


def test_inverted_swaps_polarity():
    assert view("inverted", "Small left effusion. No edema.") == "pulmonary edema, no pleural effusion"
    assert view("inverted", "Possible edema.") == "possible pulmonary edema"


def test_places_read_well():
    assert view("rules-v1", "Left retrocardiac opacity.") == "left retrocardiac lung opacity"
    assert view("rules-v1", "Opacity at the left base.") == "lung opacity in the left base"


def test_devices_keep_their_side_and_place():
    assert view("rules-v1", "Right PICC, tip in the SVC.").startswith("right catheter")


def test_shuffled_gives_every_report_another_ones_text():
    reports = ["Edema.", "No effusion.", "Rib fracture.", "Cardiomegaly.", "Pneumonia."]
    own = corpus_view("rules-v2", reports)
    dealt = corpus_view("shuffled", reports, seed=3)
    assert sorted(dealt) == sorted(own)
    assert all(a != b for a, b in zip(own, dealt, strict=True))
    assert dealt == corpus_view("shuffled", reports, seed=3)
    assert len({tuple(corpus_view("shuffled", reports, seed=s)) for s in range(20)}) > 3
    assert corpus_view("shuffled", []) == []
    assert corpus_view("shuffled", ["Edema."]) == ["pulmonary edema"]


def test_none_is_no_text_and_empty_reports_have_none():
    assert view("none", REPORT) == ""
    for name in VIEWS:
        if name != "shuffled":
            assert view(name, None) == ""
    for name in ("rules-v1", "rules-v2", "inverted", "summary"):
        assert view(name, "Das Herz ist nicht vergrößert, kein Erguss.") == ""
    assert view("rules-v2", "Frontal view.") == ""


def test_views_take_what_was_read_already():
    assert view("rules-v2", READ(REPORT)) == view("rules-v2", REPORT)


def test_every_view_says_what_it_means():
    assert set(VIEWS) == {
        "impression", "findings", "summary", "rules-v1", "rules-v2", "shuffled", "inverted", "none",
    }  # fmt: skip
    assert all(strategy.meaning and "\n" not in strategy.meaning for strategy in VIEWS.values())


def test_unknown_and_impossible_views():
    with pytest.raises(InputError, match=r"unknown text view 'rules-v3'\. There are: impression"):
        view("rules-v3", "")
    with pytest.raises(InputError, match="unknown text view"):
        corpus_view("nothing", [])
    with pytest.raises(InputError, match="Use corpus_view"):
        view("shuffled", REPORT)


def test_summary_keeps_the_sentences_that_say_most():
    text = summarise(READ(REPORT), sentences=1)
    assert text == "There is a small left and a large right pleural effusion."
    many = summarise(READ(REPORT))
    assert text in many
    assert "trachea" not in many
    assert 1 <= many.count(".") <= 3


def test_summary_of_reports_with_little_in_them():
    assert summarise(READ("")) == ""
    assert summarise(READ("Frontal view. Done.")) == "Frontal view"
    assert summarise(READ("IMPRESSION: Small effusion.")) == "Small effusion."


def test_page_rank_of_a_path_of_three():
    # The middle of a path a - b - c: r_b = 0.05 + 0.85 (r_a + r_c), r_a = r_c = 0.05 + 0.425 r_b, so
    # r_b = 0.135 / (1 - 0.7225).
    rank = _page_rank({("a", "b"): 1.0, ("b", "c"): 1.0})
    assert rank["b"] == pytest.approx(0.135 / 0.2775, abs=1e-4)
    assert rank["a"] == pytest.approx(rank["c"])
    assert sum(rank.values()) == pytest.approx(1)


def test_graph_joins_observations_places_and_modifiers():
    graph = READ("Patchy opacity in the left lower lobe, likely atelectasis. No effusion.").graph()
    labels = {node.text: node.label for node in graph.nodes}
    assert labels == {
        "opacity": "OBS-DP",
        "lower lobe": "ANAT-DP",
        "Patchy": "MOD",
        "left": "MOD",
        "atelectasis": "OBS-U",
        "effusion": "OBS-DA",
    }
    edges = {(graph.nodes[e.source].text, e.relation, graph.nodes[e.target].text) for e in graph.edges}
    assert edges == {
        ("opacity", "located_at", "lower lobe"),
        ("left", "modify", "lower lobe"),
        ("Patchy", "modify", "opacity"),
        ("opacity", "suggestive_of", "atelectasis"),
    }
    entities = graph.to_dict()["entities"]
    assert entities["0"]["relations"] == [["located_at", "1"], ["suggestive_of", "4"]]


def test_graph_of_nothing():
    assert READ("").graph().to_dict() == {"entities": {}}
