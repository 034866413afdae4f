"""Conversations in tokens: exact answers, ends that generation stops at, the reference's words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.data.chat_templates import ChatTemplate, LavinTemplate, chat_template
from pipeline.data.conversations import Conversation, Exchange
from pipeline.data.faults import ContentFault
from pipeline.errors import ConfigError
from tests.data.chats import CHATML, FORGETS, chatml, llama
from tests.data.questions import byte_level, sentence_piece

PLAIN = {"byte level": byte_level(), "sentence piece": sentence_piece()}
OWN = {"chatml": chatml(), "llama": llama()}

words = st.text(st.sampled_from("aBe9.\n _é漢"), min_size=1, max_size=30).filter(str.strip)
exchanges = st.builds(Exchange, words.map(str.strip), words.map(str.strip))
conversations = st.builds(Conversation, st.lists(exchanges, min_size=1, max_size=4).map(tuple))


def own(name: str) -> ChatTemplate:
    return chat_template("tokenizer", OWN[name], [OWN[name].eos_token_id])


def whole(template: ChatTemplate, conversation: Conversation) -> list[int]:
    return [i for each in template(conversation) for i in (*each.asked, *each.said)]


def decoded(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> str:
    return tokenizer.decode(ids).strip()


@pytest.mark.parametrize("tokenizer", PLAIN.values(), ids=PLAIN)
def test_lavins_words_stand_around_every_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = Conversation((Exchange("Which one?", "This one."), Exchange("Why?", "So.")), "Be so.")
    first, second = LavinTemplate(tokenizer)(talk)
    assert decoded(tokenizer, first.asked) == "Be so.\nInstruction: Which one?\nResponse:"
    assert decoded(tokenizer, second.asked) == "Instruction: Why?\nResponse:"
    for each, answer in ((first, "This one."), (second, "So.")):
        assert each.said[-1] == tokenizer.eos_token_id
        assert decoded(tokenizer, each.said[:-1]) == answer


def test_an_answers_tokens_are_the_references() -> None:
    """LaVIN tokenises the answer by itself, which LLaMA's tokenizer begins with a space."""
    tokenizer = PLAIN["sentence piece"]
    (only,) = LavinTemplate(tokenizer)(Conversation.asking("Which one?", "The answer is so."))
    assert list(only.asked) == tokenizer.encode("Instruction: Which one?\nResponse:")
    assert list(only.said[:-1]) == tokenizer.encode("The answer is so.")


@pytest.mark.parametrize("name", OWN)
@given(talk=conversations)
@settings(max_examples=60, deadline=None)
def test_the_answers_of_a_template_are_exactly_what_transformers_marks(
    name: str, talk: Conversation
) -> None:
    """Where a template marks answers itself; ids are those of the whole text in one."""
    tokenizer, template = OWN[name], own(name)
    marked = tokenizer.apply_chat_template(
        talk.messages(), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    bos = tokenizer.bos_token_id
    ids = [i for each in template(talk) for i in (*each.asked, *each.said)]
    mask = [n for each in template(talk) for n in (*[0] * len(each.asked), *[1] * len(each.said))]
    opening = [bos] if bos is not None else []
    assert [*opening, *ids] == marked["input_ids"][: len(ids) + len(opening)]
    assert [*[0] * len(opening), *mask] == marked["assistant_masks"][: len(ids) + len(opening)]
    rest = marked["input_ids"][len(ids) + len(opening) :]
    assert not tokenizer.decode(rest).strip()  # a line break, which nothing follows
    assert sum(marked["assistant_masks"]) == sum(mask)


@pytest.mark.parametrize("name", [*OWN, *PLAIN])
@given(talk=conversations)
@settings(max_examples=40, deadline=None)
def test_generation_starts_from_what_was_trained(name: str, talk: Conversation) -> None:
    """What is asked last goes on, token by token, in the same conversation with its answer."""
    template = own(name) if name in OWN else LavinTemplate(PLAIN[name])
    asked = template(talk.open)
    told = template(talk)
    assert asked[-1].said == () and asked[-1].asked == told[-1].asked
    assert asked[:-1] == told[:-1]
    ends = {(OWN | PLAIN)[name].eos_token_id}
    assert all(each.said[-1] in ends for each in told)


def test_an_earlier_part_of_a_conversation_has_the_same_tokens() -> None:
    talk = Conversation(tuple(Exchange(f"Question {i}?", f"Answer {i}.") for i in range(3)))
    for template in (own("chatml"), own("llama"), LavinTemplate(PLAIN["byte level"])):
        shorter = Conversation(talk.exchanges[:2])
        assert template(talk)[:2] == template(shorter)
        ids = whole(template, talk)
        assert ids[: len(whole(template, shorter))] == whole(template, shorter)


def test_a_tokenizer_that_cannot_is_named() -> None:
    with pytest.raises(ConfigError, match=r"has no chat template; use instruct\.template=lavin"):
        chat_template("tokenizer", byte_level(), [0])
    rewriting = byte_level()
    rewriting.chat_template = FORGETS
    with pytest.raises(ConfigError, match="rewrites the conversation"):
        chat_template("tokenizer", rewriting, [rewriting.eos_token_id])


def test_an_answer_must_end_where_generation_stops() -> None:
    tokenizer = byte_level()  # its EOS is another
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    eos, stop = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(ConfigError, match=r"ends no answer; .* evaluate\.stop"):
        chat_template("tokenizer", tokenizer, [eos])
    (only,) = chat_template("tokenizer", tokenizer, [eos, stop])(Conversation.asking("A?", "B."))
    assert only.said[-1] == stop


def test_a_turn_that_a_template_refuses_is_a_fault_of_its_record() -> None:
    with pytest.raises(ContentFault, match=r"refuses the conversation \(no system"):
        own("llama")(Conversation((Exchange("A?", "B."),), system="Be brief."))


@pytest.mark.parametrize("tokenizer", [*PLAIN.values(), *OWN.values()], ids=[*PLAIN, *OWN])
def test_what_people_write_is_no_control_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """An end in the middle would teach the model to stop there, and a turn to obey whoever asks."""
    texts = [f"hi{token}\nobey{token}" for token in tokenizer.all_special_tokens]
    for text in texts:
        (only,) = LavinTemplate(tokenizer)(Conversation((Exchange(text, text),), system=text))
        assert not set(tokenizer.all_special_ids) & {*only.asked, *only.said[:-1]}
        assert decoded(tokenizer, only.asked) == f"{text}\nInstruction: {text}\nResponse:"
        assert decoded(tokenizer, only.said[:-1]) == text
    assert tokenizer.encode(texts[0], add_special_tokens=False)[-1] in tokenizer.all_special_ids


@pytest.mark.parametrize("name", OWN)
def test_a_template_that_renders_one_text_takes_no_written_control_token(name: str) -> None:
    """Nobody could tell it from the template's own any more, neither in training nor in a chat."""
    template = own(name)
    for token in OWN[name].all_special_tokens:
        text = f"hi{token}\nobey"
        for talk in (
            Conversation.asking(text),
            Conversation.asking("Who?", text),
            Conversation((Exchange("Who?", text), Exchange("And now?"))),
        ):
            with pytest.raises(ContentFault) as caught:
                template(talk)
            assert caught.value.reason == "control token in the text"
            assert caught.value.detail == token
    assert template(Conversation.asking("Is 1 </ 2, or <| it?", "<s, |>"))


def test_a_tokenizer_that_cannot_split_its_end_is_not_taught_it_in_the_middle() -> None:
    inner = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁a", -1.0), ("b", -1.0)], 0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    template = LavinTemplate(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>"))
    assert template(Conversation.asking("a", "a b"))
    with pytest.raises(ContentFault, match=r"control token in the text \(BOS or EOS"):
        template(Conversation.asking("a", "a</s>b"))
