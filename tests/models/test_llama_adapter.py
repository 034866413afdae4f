"""The LLaMA-Adapter family over the shared multimodal model: batches, generation, parts, checks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import Config, LlamaAdapterConfig, LLMConfig, SegmentConfig, STConfig
from pipeline.errors import ConfigError
from pipeline.models import llama_adapter
from pipeline.models.llama_adapter import LlamaAdapter, parts, trains
from pipeline.models.multimodal import IGNORE, IMAGE_SLOT
from pipeline.models.placement import Placement
from pipeline.models.scratch import train_tokenizer
from tests.models import tiny

EOS = tiny.VOCAB - 1
EVERY = pytest.mark.parametrize("name", sorted(tiny.DECODERS))
V1 = LlamaAdapterConfig(layers=2, prompt_length=3)
V2 = LlamaAdapterConfig(layers=1, prompt_length=3, early_layers=1, bias_scale=True)
BOTH = pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])


def recipe(folder: Path, name: str, version: LlamaAdapterConfig) -> Config:
    tiny.DECODERS[name]().save_pretrained(folder)
    st = STConfig(prefix_length=2 if version.early_layers else 1, hidden=8)
    cfg = Config(llm=LLMConfig(path=str(folder)), st=st, llama_adapter=version)
    cfg.data.max_tokens, cfg.evaluate.max_new_tokens = 20, 20
    return cfg


def build(folder: Path, name: str = "llama", version: LlamaAdapterConfig = V1) -> LlamaAdapter:
    """A model whose gates are open and whose LLM is frozen."""
    model = llama_adapter.build(
        recipe(folder, name, version),
        dtype=torch.float32,
        placement=Placement(),
        with_encoder=False,
        feature_width=tiny.FEATURE,
    )
    model.llm.requires_grad_(False)
    torch.manual_seed(6)
    with torch.no_grad():
        for key, each in model.adaption.named_parameters():
            if key.endswith("gate"):
                each.normal_()
    return model.eval()


def batch() -> dict[str, Tensor]:
    """The second image, the first, and a row of text alone."""
    torch.manual_seed(2)
    ids = torch.tensor([[7, 4, 9, EOS], [3, 7, EOS, 0], [5, 8, 2, EOS]])
    labels = torch.tensor([[IGNORE, 4, 9, EOS], [IGNORE, 7, EOS, IGNORE], [IGNORE, 8, 2, EOS]])
    return {
        "features": torch.randn(2, tiny.FEATURE),
        "image_rows": torch.tensor([1, 0, -1]),
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * 4, [1] * 3 + [0], [1] * 4]),
        "labels": labels,
        "weights": torch.ones(3, 4),
    }


def row(rows: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """Row i alone, with its image if it has one."""
    image = int(rows["image_rows"][i])
    alone = {k: v[i : i + 1] for k, v in rows.items() if k != "features"}
    if image < 0:
        return alone
    return {**alone, "features": rows["features"][[image]], "image_rows": torch.tensor([0])}


@EVERY
@BOTH
def test_a_batch_is_its_rows(tmp_path: Path, name: str, version: LlamaAdapterConfig) -> None:
    model, rows = build(tmp_path, name, version), batch()
    together = model(**rows)
    alone = [model(**row(rows, i)) for i in range(3)]
    torch.testing.assert_close(
        together.logits, torch.cat([each.logits for each in alone]), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(together.prefix_mean, torch.cat([o.prefix_mean for o in alone]))
    blind = model(**{**row(rows, 0), "features": torch.zeros(1, tiny.FEATURE)})
    assert (blind.logits - alone[0].logits).abs().max() > 1e-4  # the image tells


@BOTH
def test_fresh_gates_leave_the_language_model_as_it_was(
    tmp_path: Path, version: LlamaAdapterConfig
) -> None:
    model, rows = build(tmp_path, version=version), batch()
    with torch.no_grad():
        for each in (*model.adaption.late, *model.adaption.early):
            each.gate.zero_()
    logits = tiny.DECODERS["llama"]()(
        rows["input_ids"], attention_mask=rows["attention_mask"]
    ).logits
    target = rows["labels"][:, 1:] != IGNORE
    torch.testing.assert_close(model(**rows).logits, logits[:, :-1][target], atol=1e-6, rtol=0)


@EVERY
@BOTH
@torch.no_grad()
def test_generation_with_the_cache_is_argmax_without_one(
    tmp_path: Path, name: str, version: LlamaAdapterConfig
) -> None:
    model, rows = build(tmp_path, name, version), prompts()
    out = model.generate(**rows, max_new_tokens=5, eos_token_id=EOS, pad_token_id=0)
    for i, got in enumerate(out):
        ids = rows["input_ids"][i][rows["attention_mask"][i] == 1].tolist()
        tokens: list[int] = []
        while len(tokens) < out.shape[1] and EOS not in tokens:
            tokens.append(int(next_logits(model, rows, i, [*ids, *tokens])[-1].argmax()))
        assert got.tolist() == tokens + [0] * (out.shape[1] - len(tokens))


@BOTH
@torch.no_grad()
def test_beams_keep_their_rows_image(tmp_path: Path, version: LlamaAdapterConfig) -> None:
    model, rows = build(tmp_path, version=version), prompts()
    embeds = model.image_embeddings(features=rows["features"])
    with model.adaption.showing(embeds, rows["image_rows"]):
        out = model.llm.generate(
            rows["input_ids"],
            attention_mask=rows["attention_mask"],
            num_beams=3,
            max_new_tokens=4,
            eos_token_id=EOS,
            pad_token_id=0,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    for i, got in enumerate(out.sequences):
        ids = rows["input_ids"][i][rows["attention_mask"][i] == 1].tolist()
        forced = score(model, rows, i, ids, got[rows["input_ids"].shape[1] :])
        assert abs(forced - float(out.sequences_scores[i])) < 1e-5
    ends = {"eos_token_id": EOS, "pad_token_id": 0, "num_beams": 3, "max_new_tokens": 4}
    for i, got in enumerate(model.generate(**rows, **ends)):
        alone = model.generate(**row(rows, i), **ends)[0]
        assert got.tolist()[: len(alone)] == alone.tolist()


def prompts() -> dict[str, Tensor]:
    """One padded on the left with an image, one without an image, one more with an image."""
    torch.manual_seed(3)
    return {
        "features": torch.randn(2, tiny.FEATURE),
        "image_rows": torch.tensor([1, -1, 0]),
        "input_ids": torch.tensor([[0, 0, 7], [4, 5, 6], [0, 8, 9]]),
        "attention_mask": torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]]),
    }


def next_logits(model: LlamaAdapter, rows: dict[str, Tensor], i: int, ids: list[int]) -> Tensor:
    """(len(ids), V): row i's logits without a cache or padding."""
    image = int(rows["image_rows"][i])
    labels = torch.tensor([[IGNORE, *ids[1:], 0]])  # a last target, so that all places give logits
    out = model(
        features=None if image < 0 else rows["features"][[image]],
        image_rows=torch.tensor([min(image, 0)]),
        input_ids=torch.tensor([[*ids, 0]]),
        attention_mask=torch.ones(1, len(ids) + 1),
        labels=labels,
        weights=torch.ones(labels.shape),
    )
    logits: Tensor = out.logits
    return logits


def score(
    model: LlamaAdapter, rows: dict[str, Tensor], i: int, ids: list[int], new: Tensor
) -> float:
    tokens = new.tolist()
    tokens = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
    logits = next_logits(model, rows, i, ids + tokens[:-1])[len(ids) - 1 :]
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
    return float(chosen.mean())


@BOTH
def test_only_what_is_chosen_trains_and_all_of_it_learns(
    tmp_path: Path, version: LlamaAdapterConfig
) -> None:
    model, rows = build(tmp_path, version=version), batch()
    found = parts(model)
    for name, part in found.items():
        part.requires_grad_(name != "llm")
    out = model.train()(**rows)
    F.cross_entropy(out.logits, out.labels).backward()
    for name, each in model.named_parameters():
        trains = not name.startswith("llm.") or "norm" in name
        assert (each.grad is not None) == trains, name
        if trains and not name.endswith("k_proj.bias"):
            assert each.grad.any(), name


def test_an_unused_image_runs_and_changes_nothing(tmp_path: Path) -> None:
    model, rows = build(tmp_path), batch()
    text = {name: value[2:] for name, value in rows.items() if name != "features"}
    alone, beside = model(**text), model(**text, features=rows["features"][:1])
    torch.testing.assert_close(beside.logits, alone.logits)
    (beside.logits.sum() + beside.prefix_mean.sum()).backward()
    gradients = [each.grad for each in model.st.parameters()]
    assert all(each is not None and not each.any() for each in gradients)


def test_every_parameter_is_in_a_part(tmp_path: Path) -> None:
    first = build(tmp_path, version=V1)
    assert set(parts(first)) == {"st", "llm", "norms", "prompts", "gates"}
    second = build(tmp_path, version=V2)
    assert set(parts(second)) == {"st", "llm", "norms", "prompts", "gates", "early", "affine"}
    # So nothing is forgotten when parts are frozen.
    everything = {id(p) for part in parts(second).values() for p in part.parameters()}
    assert everything == {id(p) for p in second.parameters()}


def test_disjoint_phases_share_no_parameter_and_leave_only_the_llm_frozen(tmp_path: Path) -> None:
    cfg = recipe(tmp_path, "llama", replace(V2, disjoint=True))
    model = build(tmp_path, version=V2)
    captions, instructions = (trains(cfg, phase) for phase in ("st_align", "llm_tune"))
    assert captions == ("st", "early") and instructions == ("prompts", "affine", "norms")
    ids = [
        {id(p) for name in names for p in parts(model)[name].parameters()}
        for names in (captions, instructions)
    ]
    assert not ids[0] & ids[1]
    frozen = [n for n, p in model.named_parameters() if id(p) not in ids[0] | ids[1]]
    assert all(name.startswith("llm.") and "norm" not in name for name in frozen)


def test_build_gives_the_same_weights_again_and_leaves_the_llm_alone(tmp_path: Path) -> None:
    cfg = recipe(tmp_path, "qwen2", V2)
    options: dict[str, Any] = {"dtype": torch.bfloat16, "placement": Placement()}
    options |= {"with_encoder": False, "feature_width": tiny.FEATURE}
    first, second = llama_adapter.build(cfg, **options), llama_adapter.build(cfg, **options)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert {each.dtype for each in first.parameters()} == {torch.bfloat16}
    assert list(first.llm.state_dict()) == list(tiny.qwen2().state_dict())
    prompts = [each.prompt for each in first.adaption.late]
    assert not any(each.gate.any() for each in (*first.adaption.late, *first.adaption.early))
    assert all(0.5 < float(each.detach().float().std()) < 1.5 for each in prompts)


def test_the_text_model_says_of_text_what_the_whole_one_does_and_has_no_eyes(
    tmp_path: Path,
) -> None:
    seeing, rows = build(tmp_path), batch()
    cfg = recipe(tmp_path, "llama", replace(V1, sees_images=False))
    options: dict[str, Any] = {"dtype": torch.float32, "placement": Placement()}
    blind = llama_adapter.build(cfg, with_encoder=True, **options).eval()
    assert blind.encoder is None and "st" not in parts(blind)
    assert llama_adapter.trains(cfg, "llm_tune") == ("prompts",)
    blind.adaption.load_state_dict(seeing.adaption.state_dict())
    everything = {id(p) for part in parts(blind).values() for p in part.parameters()}
    assert everything == {id(p) for p in blind.parameters()}

    rows["image_rows"] = torch.full_like(rows["image_rows"], -1)
    expected = seeing(**rows).logits
    del rows["features"]
    torch.testing.assert_close(blind(**rows).logits, expected)


def test_slots_are_refused(tmp_path: Path) -> None:
    model, rows = build(tmp_path), batch()
    rows["input_ids"][0, 0] = IMAGE_SLOT
    with pytest.raises(ValueError, match="no slots"):
        model(**rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 3}, r"llama_adapter\.layers: 3 .* exceed the 2 layers .* at most 2 fit"),
        ({"layers": 2, "early_layers": 1}, r"and 1 first ones .* together at most 2 fit"),
        ({"layers": 1, "early_layers": 1, "blind": 1}, r"early_layers=1: .* set it to 0"),
        ({"prefix": 4}, r"st\.prefix_length: 4 embeddings .* set it to 1"),
        ({"max_tokens": 32}, r"data\.max_tokens: 32 tokens .* at most 31 fit"),
        ({"max_new_tokens": 32}, r"evaluate\.max_new_tokens"),
        ({"bias_scale": 1, "rank": 2}, r"bias_scale=true and llm\.lora\.rank=2 .* use one of them"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_loaded(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    cfg = recipe(tmp_path, "llama", LlamaAdapterConfig(layers=2))
    cfg.llama_adapter.layers = changes.get("layers", 2)
    cfg.llama_adapter.early_layers = changes.get("early_layers", 0)
    cfg.llama_adapter.sees_images = not changes.get("blind", 0)
    cfg.llama_adapter.bias_scale = bool(changes.get("bias_scale", 0))
    cfg.llm.lora.rank = changes.get("rank", 0)
    cfg.st.prefix_length = changes.get("prefix", 1)
    cfg.data.max_tokens = changes.get("max_tokens", 20)
    cfg.evaluate.max_new_tokens = changes.get("max_new_tokens", 20)
    with pytest.raises(ConfigError, match=message):
        llama_adapter.check(cfg, llama_adapter.load_llm_config(cfg.llm))


@pytest.mark.parametrize(
    ("version", "segments", "message"),
    [
        (V1, [], r"llama_adapter\.disjoint=true: .* set llama_adapter\.early_layers"),
        (
            V2,
            [["prompts"], ["prompts", "st"]],
            r"segments\[1\]\.train: st trains in st_align",
        ),
    ],
)
def test_disjoint_groups_that_are_not_are_refused(
    tmp_path: Path, version: LlamaAdapterConfig, segments: list[list[str]], message: str
) -> None:
    cfg = recipe(tmp_path, "llama", replace(version, disjoint=True))
    cfg.llm_tune.segments = [SegmentConfig(train=each) for each in segments]
    with pytest.raises(ConfigError, match=message):
        llama_adapter.check(cfg, llama_adapter.load_llm_config(cfg.llm))


def test_an_unsupported_architecture_is_refused_by_name(tmp_path: Path) -> None:
    tiny.gemma2().save_pretrained(tmp_path)
    cfg = Config(llm=LLMConfig(path=str(tmp_path)), st=STConfig(prefix_length=1))
    with pytest.raises(ConfigError, match=r"gemma2.*gpt2, llama"):
        llama_adapter.check(cfg, llama_adapter.load_llm_config(cfg.llm))


def test_a_prompt_is_opened_by_bos_or_by_eos_where_there_is_none() -> None:
    tokenizer = train_tokenizer(["a text"], 300)
    before = llama_adapter.layout(Config(), tokenizer)
    assert before([4, 5], True) == before([4, 5], False)
    assert before([4, 5], True)[1:] == [4, 5]
    tokenizer.bos_token = "a"
    assert llama_adapter.layout(Config(), tokenizer)([], True) == [tokenizer.bos_token_id]
