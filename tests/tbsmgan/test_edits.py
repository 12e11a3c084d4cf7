from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from counterscan.errors import InputError
from counterscan.tbsmgan.edits import (
    LabelSwap,
    LearnedConfig,
    LearnedDirection,
    Mention,
    Origin,
    PerImage,
    PerImageConfig,
    RandomDirection,
    StyleConfig,
    StyleDirections,
    WSpace,
    cached,
    measure,
    parse,
)
from counterscan.tbsmgan.edits.base import restored
from counterscan.tbsmgan.edits.prompt import ReportReader, unsided
from counterscan.tbsmgan.edits.style_directions import Channels
from counterscan.tbsmgan.generator import StyleGAN
from tests.tbsmgan.linear import BANK, SHIFT, STEP, LinearText, blocks_of, encoded, linear_gan, painted, texts

EDEMA = parse("Edema", BANK, ReportReader(), LinearText())
QUICK = StyleConfig(images=8, channels=2)


@pytest.fixture(scope="module")
def gan() -> StyleGAN:
    return linear_gan()


@pytest.fixture(scope="module")
def channels(gan: StyleGAN) -> Channels:
    return measure(gan, LinearText(), QUICK)  # type: ignore[arg-type]


def origin(gan: StyleGAN, count: int = 6, labels: tuple[float, float] = (0.0, 0.0)) -> Origin:
    return Origin.sample(gan, torch.tensor([labels]).repeat(count, 1), psi=0.7, seed=3)


# --- prompts ---


def test_a_name_gives_the_banks_phrases_and_free_text_its_side() -> None:
    assert (EDEMA.finding, EDEMA.side) == ("Edema", "")
    assert set(EDEMA.phrases.positives) == {"edema", "severe edema"}
    sided = parse("small left pleural effusion", BANK, ReportReader(), LinearText())
    assert (sided.finding, sided.side, sided.degree, sided.severity) == ("Pleural Effusion", "left", "small", 1.0)
    assert sided.phrases.positives == ("small pleural effusion", "pleural effusion")
    assert parse("severe edema", BANK, ReportReader(), LinearText()).phrases.positives == ("severe edema", "edema")
    named = parse("right pleural effusion", BANK, ReportReader(), LinearText())
    assert (named.side, named.phrases) == ("right", BANK.of("Pleural Effusion"))  # no more than a name and a side


def test_the_direction_is_text_for_less_text_against_whichever_side_is_named() -> None:
    directions = texts()
    assert torch.allclose(directions.of(EDEMA), torch.tensor([1.0, 0, 0, 0, 0]), atol=1e-6)
    left, right, any_side = (
        directions.of(parse(f"{side}pleural effusion", BANK, ReportReader())) for side in ("left ", "right ", "a ")
    )
    assert torch.equal(left, right)
    assert torch.allclose(left, any_side, atol=0.2)
    assert set(directions.others(EDEMA)) == {"Pleural Effusion"}


def test_words_that_the_model_cannot_know_are_left_to_the_bank() -> None:
    asked = parse("gargantuan edema", BANK, ReportReader(), LinearText())
    assert asked.strange == ("gargantuan",)
    assert "gargantuan edema" not in asked.phrases.positives


def test_several_findings_and_a_reader_of_ones_own() -> None:
    both = parse("edema and effusion", BANK, lambda text: [Mention("Edema"), Mention("Pleural Effusion")])
    assert (both.finding, both.also) == ("Edema", ("Pleural Effusion",))
    assert not texts().others(both)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a banana on the table", "speaks of nothing known"),
        ("no edema", "negative strength"),
        ("derrame pleural izquierdo", "not English"),
        ("  ", "empty"),
    ],
)
def test_prompts_about_nothing_known_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(text, BANK, ReportReader())


@pytest.mark.parametrize("text", ["Right-sided edema", "edema on the left side", "edema left"])
def test_a_text_without_its_side(text: str) -> None:
    assert unsided(text) == "edema"
    assert unsided("leftover edema") == "leftover edema"


# --- W ---


def test_the_space_of_w_measures_in_standard_deviations(gan: StyleGAN) -> None:
    space = WSpace(gan, draws=20000)
    move = torch.zeros(1, 2, 4)
    move[..., 3] = 0.5  # of which the standard deviation is 0.5
    assert float(space.size(move)) == pytest.approx(1.0, rel=0.03)
    assert torch.allclose(space.root @ space.inverse, torch.eye(4), atol=1e-4)


# --- S-space directions ---


def test_relevance_finds_the_channel_and_its_sign(gan: StyleGAN, channels: Channels) -> None:
    assert channels.responses.shape == (4, 5)  # the layer to grey is left out
    editor = StyleDirections(gan, texts(), channels, QUICK)
    relevance = editor.relevance(EDEMA)
    assert float(relevance[0]) > 0.9
    assert float(relevance[1:].abs().max()) < 0.3
    assert float(editor.relevance(parse("left pleural effusion", BANK, ReportReader()))[1]) > 0.5


def test_strength_scales_and_minus_is_the_negative(gan: StyleGAN, channels: Channels) -> None:
    editor, start = StyleDirections(gan, texts(), channels, replace(QUICK, channels=1)), origin(gan)
    one, two, minus = (editor.edit(start, EDEMA, strength) for strength in (1.0, 2.0, -1.0))
    step = one.after - one.before
    assert torch.allclose(two.after - two.before, 2 * step, atol=1e-5)
    assert torch.allclose(minus.after - minus.before, -step, atol=1e-5)
    sd = float(channels.deviations[0])
    assert torch.allclose(blocks_of(step), torch.tensor([STEP * sd, 0, 0, 0]).expand(6, 4), atol=1e-5)
    assert (one.touched, one.w, one.method) == (1, None, "style")
    assert one.text_before is not None
    assert one.text_after is not None
    assert bool((one.text_after > one.text_before).all())
    assert float(one.others["Pleural Effusion"].abs().max()) < 0.05
    assert torch.equal(editor.edit(start, EDEMA, 0.0).after, one.before)
    usual = editor.edit(start, EDEMA)
    assert usual.strength == QUICK.usual == editor.usual(EDEMA)


def test_beta_and_the_number_of_channels_choose(gan: StyleGAN, channels: Channels) -> None:
    assert StyleDirections(gan, texts(), channels, replace(QUICK, channels=9)).move(origin(gan), EDEMA).touched == 4
    strict = StyleDirections(gan, texts(), channels, replace(QUICK, channels=9, beta=0.8))
    assert strict.move(origin(gan), EDEMA).touched == 1
    with pytest.raises(InputError, match="no channel"):
        StyleDirections(gan, texts(), channels, replace(QUICK, beta=0.999)).move(origin(gan), EDEMA)
    with pytest.raises(InputError, match="3 channels for a generator with 4"):
        StyleDirections(gan, texts(), Channels(channels.responses[:3], channels.deviations[:3]))


def test_a_cached_generator_answers_a_new_prompt_without_an_image(gan: StyleGAN, tmp_path: object) -> None:
    folder, model = tmp_path, LinearText()
    first = cached(folder, gan, model, QUICK)  # type: ignore[arg-type]
    asked = model.images
    assert asked == 2 * 4 * QUICK.images
    again = cached(folder, gan, model, replace(QUICK, channels=1))  # type: ignore[arg-type]
    assert torch.equal(again.responses, first.responses)
    StyleDirections(gan, texts(model), again).move(origin(gan), EDEMA)
    assert model.images == asked
    cached(folder, gan, model, replace(QUICK, reach=2.0))  # type: ignore[arg-type]
    other = LinearText()
    other.digest = "another"  # type: ignore[misc]
    cached(folder, gan, other, QUICK)  # type: ignore[arg-type]
    assert other.images == asked
    files = sorted(folder.iterdir())  # type: ignore[attr-defined]
    assert len(files) == 3
    for file in files:
        file.write_bytes(b"broken")
    with pytest.raises(InputError, match="damaged"):
        cached(folder, gan, model, QUICK)  # type: ignore[arg-type]


# --- label swap ---


def test_label_swap_is_the_generators_own_image_of_the_other_condition(gan: StyleGAN) -> None:
    editor, start = LabelSwap(gan), origin(gan)
    assert start.z is not None
    edited = editor.edit(start, EDEMA)
    wanted = gan.synthesize(gan.map(start.z, torch.tensor([[1.0, 0.0]]).repeat(6, 1), 0.7))
    assert torch.allclose(edited.after, wanted, atol=1e-5)
    assert edited.text_before is None
    half = editor.edit(start, EDEMA, editor.usual(EDEMA) / 2)
    assert torch.allclose(half.after - half.before, (edited.after - edited.before) / 2, atol=1e-5)
    ill = origin(gan, labels=(1.0, 1.0))
    healed = editor.edit(ill, EDEMA, -editor.usual(EDEMA))
    gone = blocks_of(healed.after - healed.before)
    assert torch.allclose(gone, torch.tensor([-STEP * SHIFT, 0, 0, 0]).expand(6, 4), atol=1e-5)
    nothing = editor.edit(ill, EDEMA)
    assert torch.allclose(nothing.after, nothing.before, atol=1e-6)


def test_label_swap_of_inverted_images_moves_as_the_means_do(gan: StyleGAN) -> None:
    start = origin(gan)
    both = [LabelSwap(gan).edit(start.w, EDEMA, sign * LabelSwap(gan).usual(EDEMA)) for sign in (1, -1)]
    for sign, edited in zip((1, -1), both, strict=True):
        moved = blocks_of(edited.after - edited.before)
        assert torch.allclose(moved, torch.tensor([sign * STEP * SHIFT, 0, 0, 0]).expand(6, 4), atol=1e-5)


def test_label_swap_needs_a_condition(gan: StyleGAN) -> None:
    with pytest.raises(InputError, match="takes no condition"):
        LabelSwap(gan).edit(origin(gan), replace(EDEMA, finding="Fracture"))


# --- learned direction ---


def test_the_learned_direction_is_the_findings_own(gan: StyleGAN) -> None:
    editor = LearnedDirection(gan, texts(), LearnedConfig(steps=40, batch=16, pixels=0.1))
    u = editor.direction(EDEMA)
    assert float(u.norm()) == pytest.approx(1.0, abs=1e-5)
    step = editor.move(origin(gan), EDEMA).w
    assert step is not None
    share = step[0, 0].abs() / step[0, 0].norm()
    assert float(step[0, 0, 0]) > 0
    assert float(share[0]) > 0.97
    assert editor.direction(EDEMA) is u
    plus, minus = (editor.edit(origin(gan), EDEMA, s) for s in (2.0, -2.0))
    assert torch.allclose(plus.after - plus.before, minus.before - minus.after, atol=1e-5)
    assert torch.allclose(editor.space.size(step), torch.ones(1), atol=1e-3)


def test_a_prompt_that_no_image_can_please_is_refused(gan: StyleGAN) -> None:
    class Deaf(LinearText):
        def embed_images(self, images: torch.Tensor) -> torch.Tensor:
            return super().embed_images(images * 0)

    with pytest.raises(InputError, match="no direction of W"):
        LearnedDirection(gan, texts(Deaf())).direction(EDEMA)


# --- one image ---


def test_per_image_optimisation_goes_either_way_within_its_ball(gan: StyleGAN) -> None:
    editor, start = PerImage(gan, texts(), PerImageConfig(steps=25, views=1)), origin(gan, 2)
    for strength in (2.0, -2.0):
        edited = editor.edit(start, EDEMA, strength)
        moved = blocks_of(edited.after - edited.before)
        assert bool((moved[:, 0] * strength > 0.05).all())
        assert float(moved[:, 1:].abs().max()) < 0.4 * float(moved[:, 0].abs().min())
        assert edited.w is not None
        assert bool((editor.space.size(edited.w - start.w) < 2.0 + 1e-3).all())
    assert torch.equal(editor.edit(start, EDEMA, 0.0).after, editor.edit(start, EDEMA, 0.0).before)


# --- placebo ---


def test_the_placebo_is_as_long_and_goes_elsewhere(gan: StyleGAN, channels: Channels) -> None:
    learned = LearnedDirection(gan, texts(), LearnedConfig(steps=20, batch=8))
    start = origin(gan)
    for like in (learned, LabelSwap(gan), StyleDirections(gan, texts(), channels, QUICK)):
        placebo = RandomDirection(like, seed=1)
        real, other = like.move(start, EDEMA), placebo.move(start, EDEMA)
        assert real.usual == other.usual == placebo.usual(EDEMA)
        if real.w is not None:
            assert other.w is not None
            size = like.space.size
            assert torch.allclose(size(other.w), size(real.w), rtol=1e-3)
            apart = torch.cosine_similarity(real.w.flatten(1), other.w.flatten(1))
            assert float(apart.abs().max()) < 0.95
        else:
            assert real.styles is not None
            assert other.styles is not None
            sds = gan.styles(Origin.sample(gan, gan.draw_labels(4000), psi=1.0).w)[0].std(0)
            lengths = [(move[0] / sds).norm() for move in (real.styles, other.styles)]
            assert float(lengths[0]) == pytest.approx(float(lengths[1]), rel=0.1)
            assert not other.styles[1].any()
        first, again = (RandomDirection(like, seed=1).edit(start, EDEMA, 1.0).after for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.allclose(first, RandomDirection(like, seed=2).edit(start, EDEMA, 1.0).after, atol=1e-3)


# --- what all share ---


def test_many_images_are_edited_in_parts_that_agree(gan: StyleGAN, channels: Channels) -> None:
    editor, start = StyleDirections(gan, texts(), channels, QUICK), origin(gan, 70)
    edited = editor.edit(start, EDEMA, 1.0)
    assert edited.after.shape == (70, 1, 8, 8)
    assert len(edited.latents) == len(edited) == 70
    assert edited.text_after is not None
    assert len(edited.text_after) == len(edited.others["Pleural Effusion"]) == 70
    assert edited.styles is not None
    assert edited.styles[0].shape == (70, 4)
    few = editor.edit(start.take(slice(66, 70)), EDEMA, 1.0)
    assert torch.allclose(edited.after[66:], few.after, atol=1e-6)


def test_bad_latents_strengths_and_settings_are_refused(gan: StyleGAN, channels: Channels) -> None:
    editor = StyleDirections(gan, texts(), channels, QUICK)
    with pytest.raises(InputError, match="num_ws"):
        editor.edit(torch.zeros(3, 4), EDEMA, 1.0)
    with pytest.raises(InputError, match="not finite"):
        editor.edit(origin(gan), EDEMA, float("nan"))
    with pytest.raises(InputError, match="text-image model"):
        LearnedDirection(gan, None)  # type: ignore[arg-type]
    for make, options in (
        (StyleConfig, {"images": 0}),
        (StyleConfig, {"reach": 0.0}),
        (StyleConfig, {"beta": 1.0}),
        (LearnedConfig, {"steps": 0}),
        (LearnedConfig, {"rate": 0.0}),
        (LearnedConfig, {"off": -1.0}),
        (PerImageConfig, {"views": 0}),
        (PerImageConfig, {"usual": 0.0}),
        (PerImageConfig, {"prior": -1.0}),
    ):
        with pytest.raises(InputError, match=next(iter(options))):
            make(**options)  # type: ignore[arg-type]


def test_directions_beside_the_prompt_have_no_share_in_it() -> None:
    class Related(LinearText):
        """Effusion goes with edema."""

        def _said(self, words: list[str]) -> torch.Tensor:
            said = super()._said(words)
            said[0] += 0.8 * said[1]
            return said

    directions = texts(Related())
    own, (other,) = directions.of(EDEMA), directions.beside(EDEMA)
    assert float(directions.others(EDEMA)["Pleural Effusion"] @ own) > 0.4
    assert float(other @ own) == pytest.approx(0.0, abs=1e-6)
    assert float(other.norm()) == pytest.approx(1.0, abs=1e-5)


def test_an_edited_real_image_keeps_what_the_generator_cannot_show(gan: StyleGAN, channels: Channels) -> None:
    dice = torch.Generator().manual_seed(1)
    x = (painted(torch.tensor([[0.1, -0.2, 0.3, 0.0]])) + 0.05 * torch.randn(1, 1, 8, 8, generator=dice)).clamp(-1, 1)
    origin = Origin.of_images(gan, x, encoded(x))
    editor = StyleDirections(gan, texts(), channels, StyleConfig(channels=1))  # type: ignore[arg-type]
    edited = editor.edit(origin, EDEMA, 2.0)
    assert torch.allclose(edited.before, x, atol=1e-6)  # the image itself, not its inversion
    bare = editor.edit(origin.w, EDEMA, 2.0)
    assert torch.allclose(edited.after, restored(bare.before, bare.after, origin.residual)[1])  # type: ignore[arg-type]
    assert ((edited.after - bare.after).abs() <= origin.residual.abs() + 1e-6).all()  # type: ignore[union-attr]
    assert torch.equal(origin.take(slice(0, 1)).residual, origin.residual)  # type: ignore[arg-type]


def test_images_that_were_made_already_are_not_made_again(
    gan: StyleGAN, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, start = StyleDirections(gan, texts(), channels, QUICK), origin(gan)
    shown, wanted = start.shown(gan), editor.edit(start, EDEMA, 1.0)
    assert shown.shown(gan) is shown
    made: list[int] = []
    whole = StyleGAN.synthesize

    def counted(self, *given, **named):  # type: ignore[no-untyped-def]
        found = whole(self, *given, **named)
        made.append(len(found))
        return found

    monkeypatch.setattr(StyleGAN, "synthesize", counted)
    edited = editor.edit(shown, EDEMA, 1.0)
    assert made == [len(start)]  # the edits alone
    assert torch.equal(edited.before, wanted.before)
    assert torch.equal(edited.after, wanted.after)


def test_what_the_generator_misses_fades_where_the_edit_changes_much() -> None:
    before, residual = torch.zeros(1, 1, 64, 64), torch.full((1, 1, 64, 64), 0.1)
    after = before.clone()
    after[..., :32] = 0.5
    real, edited = restored(before, after, residual)
    assert torch.equal(real, residual)
    assert torch.equal(edited[..., :30], after[..., :30])  # its own texture is gone
    assert torch.equal(edited[..., 34:], real[..., 34:])  # untouched
    assert (edited[..., 34:] == 0.1).all()
    assert (edited[..., 33:34] - after[..., 33:34] < 0.1).all()  # fades in between


def test_a_side_in_the_text_confines_the_edit_to_it(gan: StyleGAN) -> None:
    def changed(side: str) -> torch.Tensor:
        """(8,) by column; the generator shows its effusions in the right half, the patient's left."""
        prompt = parse(f"{side} pleural effusion", BANK, ReportReader())
        edited = LabelSwap(gan).edit(Origin.sample(gan, torch.zeros(3, 2)), prompt)
        return (edited.after - edited.before).abs().amax(dim=(0, 1, 2))

    assert (changed("bilateral")[4:] > 0.1).all()
    torch.testing.assert_close(changed("left"), changed("bilateral"))
    assert (changed("right") == 0).all()
